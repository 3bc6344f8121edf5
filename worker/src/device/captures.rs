//! Which steps run as a graph. Every rank comes to the same answer, from what all of them know: how far the generation
//! is, and how the batch is split.

use std::collections::BTreeMap;

use lockstep_proto::ids::Step;

use super::gpu::Graph;

/// Steps at the beginning of a generation that run eagerly: recovery does not pay for captures.
const FIRST_EAGER: u64 = 20;
/// Eager steps of a shape before it is captured: libraries have chosen their algorithms by then.
const WARM: u32 = 3;
/// Shapes that are kept. A run has one or two (the last batch of an epoch).
const MOST: usize = 8;

/// What decides the shapes of everything in a step, on every rank.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    /// Samples of the global batch.
    pub batch: u64,
    /// Chunks of each rank.
    pub shards: Vec<u32>,
    /// Height and width of the images.
    pub image: (usize, usize),
}

/// How a step runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Operation by operation.
    Eager,
    /// It is captured now, and then replayed.
    Capture,
    /// As it was captured.
    Replay(Graph),
}

/// The graphs of one generation.
#[derive(Debug)]
pub struct Captures {
    base: Step,
    seen: BTreeMap<Shape, u32>,
    graphs: BTreeMap<Shape, Graph>,
    /// Why there are none.
    refusal: Option<String>,
}

impl Captures {
    /// For a generation that begins after `base`; `refusal` says why nothing can be captured.
    pub fn new(base: Step, refusal: Option<String>) -> Self {
        Self { base, seen: BTreeMap::new(), graphs: BTreeMap::new(), refusal }
    }

    /// How `step` runs.
    pub fn decide(&mut self, step: Step, shape: &Shape) -> Mode {
        if let Some(graph) = self.graphs.get(shape) {
            return Mode::Replay(*graph);
        }
        let seen = self.seen.entry(shape.clone()).or_default();
        *seen += 1;
        let is_due = step.0 > self.base.0 + FIRST_EAGER && *seen > WARM && self.graphs.len() < MOST;
        if is_due && self.refusal.is_none() { Mode::Capture } else { Mode::Eager }
    }

    /// Keeps a graph that every rank has captured.
    pub fn keep(&mut self, shape: Shape, graph: Graph) {
        self.graphs.insert(shape, graph);
    }

    /// Nothing is captured any more.
    pub fn refuse(&mut self, why: String) {
        self.refusal.get_or_insert(why);
    }

    /// Gives up all graphs.
    pub fn drain(&mut self) -> Vec<Graph> {
        std::mem::take(&mut self.graphs).into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(batch: u64) -> Shape {
        Shape { batch, shards: vec![4, 4], image: (32, 32) }
    }

    #[test]
    fn a_generation_begins_eagerly_and_captures_each_shape_once_it_is_warm() {
        let mut captures = Captures::new(Step(100), None);
        for step in 101..=120 {
            assert_eq!(captures.decide(Step(step), &shape(128)), Mode::Eager, "step {step}");
        }
        assert_eq!(captures.decide(Step(121), &shape(128)), Mode::Capture);
        captures.keep(shape(128), Graph(7));
        assert_eq!(captures.decide(Step(122), &shape(128)), Mode::Replay(Graph(7)));
        assert_eq!(captures.decide(Step(123), &shape(80)), Mode::Eager, "the short last batch is new");
        assert_eq!(captures.drain(), [Graph(7)]);
        assert_eq!(captures.decide(Step(124), &shape(128)), Mode::Capture, "what was given up is captured anew");
    }

    #[test]
    fn nothing_is_captured_after_a_refusal_and_not_more_than_is_kept() {
        let mut captures = Captures::new(Step(0), Some("the rate is no device value".into()));
        assert!((1..100).all(|step| captures.decide(Step(step), &shape(1)) == Mode::Eager));
        let mut many = Captures::new(Step(0), None);
        for batch in 0..MOST as u64 {
            many.keep(shape(batch), Graph(batch));
        }
        assert!((100..200).all(|step| many.decide(Step(step), &shape(1000)) == Mode::Eager));
    }
}
