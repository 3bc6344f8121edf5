//! What trains, and how fast: from the groups of a recipe to parameters, layers, operations and stretches of the flat
//! buffers. Without such keys everything trains at one rate, in one stretch.

use lockstep_proto::recipe::{FrozenBn, Group, Recipe};
use lockstep_torch::TorchError;
use tch::Tensor;

use crate::exec::Statistics;
use crate::program::{FlatLayout, NormId, Op, ParamId, Program, Segment};
use crate::state::Running;

/// A stretch of the flat buffers that trains at one rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// First element.
    pub start: usize,
    /// Number of elements, padding among them.
    pub len: usize,
    /// Multiplies the learning rate.
    pub lr_scale: f64,
}

/// A recipe's fine-tuning over a program.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// By parameter.
    frozen: Vec<bool>,
    /// By norm layer: its running statistics are its statistics, and stay.
    fixed: Vec<bool>,
    /// The first operation with a parameter that trains: backward goes no further.
    first: usize,
    /// What trains, ascending.
    spans: Vec<Span>,
    /// What does not, as (start, length), ascending.
    gaps: Vec<(usize, usize)>,
}

impl Tuning {
    /// What `recipe` says of `program`.
    pub fn new(recipe: &Recipe, program: &Program, layout: &FlatLayout) -> Self {
        let model = &recipe.model;
        let is_frozen = |name: &str| Group::of(name).is_some_and(|group| model.freeze.contains(&group));
        let frozen: Vec<bool> = program.params.iter().map(|param| is_frozen(&param.name)).collect();
        let fixes = model.frozen_bn == FrozenBn::Running;
        let fixed = program.norms.iter().map(|norm| fixes && frozen[norm.gamma.0]).collect();
        let trains = |op: &Op| match op {
            Op::Conv { w, .. } | Op::Linear { w, .. } => !frozen[w.0],
            Op::Norm { norm, .. } => !frozen[program.norms[norm.0].gamma.0],
            Op::Add { .. } | Op::Act { .. } | Op::Subsample { .. } | Op::MaxPool { .. } | Op::Pool { .. } => false,
        };
        let first = program.ops.iter().position(trains).unwrap_or(program.ops.len());

        let (mut spans, mut gaps): (Vec<Span>, Vec<(usize, usize)>) = (Vec::new(), Vec::new());
        for (place, id) in layout.order.iter().enumerate() {
            let start = layout.entries[id.0].offset;
            let end = layout.order.get(place + 1).map_or(layout.len, |next| layout.entries[next.0].offset);
            let len = end - start;
            if frozen[id.0] {
                gaps.push((start, len));
                continue;
            }
            let group = Group::of(&program.params[id.0].name);
            let lr_scale = group.map_or(1.0, |group| recipe.optim.lr_scale.of(group));
            match spans.last_mut() {
                Some(last) if last.start + last.len == start && last.lr_scale == lr_scale => last.len += len,
                _ => spans.push(Span { start, len, lr_scale }),
            }
        }
        Self { frozen, fixed, first, spans, gaps }
    }

    /// Whether a parameter stays as it is.
    pub fn is_frozen(&self, param: ParamId) -> bool {
        self.frozen[param.0]
    }

    /// What trains, ascending.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Whether backward has nothing to do in this segment, nor in any before it.
    pub fn ends_before(&self, segment: &Segment) -> bool {
        segment.ops.end <= self.first
    }

    /// The fixed statistics of a layer that has such.
    pub fn statistics(&self, norm: NormId, running: &[Running], eps: f64) -> Option<Statistics> {
        let Running { mean, variance } = &running[norm.0];
        self.fixed[norm.0].then(|| Statistics::fixed(mean, variance, eps))
    }

    /// Whether a layer's running statistics stay.
    pub fn is_fixed(&self, norm: usize) -> bool {
        self.fixed[norm]
    }

    /// The running statistics that follow the batches.
    pub fn following<'a>(&'a self, running: &'a mut [Running]) -> impl Iterator<Item = &'a mut Running> {
        running.iter_mut().zip(&self.fixed).filter(|(_, fixed)| !**fixed).map(|(running, _)| running)
    }

    /// Clears the gradient of what does not train, whatever is in it.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn mask(&self, gradient: &Tensor) -> Result<(), TorchError> {
        for (start, len) in &self.gaps {
            let _ = gradient.f_narrow(0, *start as i64, *len as i64)?.f_zero_()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model;

    fn tuning(sets: &[&str]) -> (Program, FlatLayout, Tuning) {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        let recipe = Recipe::load("demo", &sets).unwrap();
        let program = model::build(&recipe.model, 10);
        let layout = FlatLayout::new(&program);
        let tuning = Tuning::new(&recipe, &program, &layout);
        (program, layout, tuning)
    }

    #[test]
    fn without_keys_everything_is_one_stretch() {
        let (program, layout, tuning) = tuning(&[]);
        assert_eq!(tuning.spans(), [Span { start: 0, len: layout.len, lr_scale: 1.0 }]);
        assert!(program.segments().iter().all(|segment| !tuning.ends_before(segment)));
        assert!((0..program.norms.len()).all(|norm| !tuning.is_fixed(norm)));
    }

    #[test]
    fn stretches_and_gaps_tile_the_buffer_and_hold_what_the_groups_say() {
        let (program, layout, tuning) =
            tuning(&["model.freeze=[\"stem\", \"layer2\"]", "optim.lr_scale={ head = 10.0 }"]);
        let mut pieces: Vec<(usize, usize)> = tuning.spans.iter().map(|span| (span.start, span.len)).collect();
        pieces.extend(&tuning.gaps);
        pieces.sort_unstable();
        let end = pieces.iter().try_fold(0, |at, (start, len)| (at == *start).then_some(start + len));
        assert_eq!(end, Some(layout.len), "{pieces:?}");
        for (param, entry) in program.params.iter().zip(&layout.entries) {
            let holds = |span: &&Span| (span.start..span.start + span.len).contains(&entry.offset);
            let scale = tuning.spans.iter().find(holds).map(|span| span.lr_scale);
            let want = match Group::of(&param.name).unwrap() {
                Group::Stem | Group::Layer2 => None,
                Group::Head => Some(10.0),
                _ => Some(1.0),
            };
            assert_eq!(scale, want, "{}", param.name);
        }
    }

    #[test]
    fn backward_stops_where_nothing_before_trains() {
        let (program, _, tuning) = tuning(&["model.freeze=[\"stem\", \"layer1\"]"]);
        let trains = |op: usize| {
            let of = |id: ParamId| program.params[id.0].name.starts_with("layer2");
            matches!(&program.ops[op], Op::Conv { w, .. } if of(*w))
        };
        let first = (0..program.ops.len()).find(|op| trains(*op)).unwrap();
        for segment in program.segments() {
            assert_eq!(tuning.ends_before(&segment), segment.ops.end <= first, "{segment:?}");
        }
    }
}
