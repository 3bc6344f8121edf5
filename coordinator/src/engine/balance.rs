//! Who is slow, and what share of a batch that leaves it.
//!
//! In a synchronous step all ranks take the same time: only the time that a rank spends outside collectives tells. What
//! a chunk costs a rank is the median of that over its last steps. A rank that is much slower than the median rank is
//! named; with `elastic.balance` each chunk goes to the rank that would be done with it first.
//!
//! What a chunk costs may depend on how many a rank has, so a change is a trial: if steps took longer afterwards, it is
//! taken back, and the next one waits twice as long.

use std::collections::{BTreeSet, VecDeque};

use lockstep_proto::ids::{Rank, Step};
use lockstep_proto::message::StepReport;
use lockstep_proto::split::{num_chunks, split_by_cost, split_even};
use serde_json::json;

use super::effect::{History, Record};
use super::{Engine, Phase};

/// Steps that a rank's speed is the median of.
const WINDOW: usize = 10;
/// So many times slower than the median rank is a straggler.
const STRAGGLER: f64 = 2.0;
/// Less than this, and it is none any more.
const CAUGHT_UP: f64 = 1.4;
/// Another split must make a step shorter by this much.
const WORTH_IT: f64 = 0.9;
/// After a change, steps that are longer by more than this were made so by it.
const WORSE: f64 = 1.03;
/// Steps of one split before the next, at least and at most.
const HOLD: (usize, usize) = (2 * WINDOW, 64 * WINDOW);

/// From step `from` on, shares follow `costs`: nanoseconds a chunk, by rank.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Change {
    pub(super) from: Step,
    pub(super) costs: Vec<u64>,
}

/// How the steps of a generation split. It is a part of the history: whoever commits a step must know its shards.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Splits {
    world_size: u32,
    /// The most chunks of one rank.
    most: u32,
    /// Ascending.
    changes: Vec<Change>,
}

impl Splits {
    pub(super) fn even(world_size: u32, most: u32) -> Self {
        Self { world_size, most, changes: Vec::new() }
    }

    /// Those of the newest generation of a history.
    pub(super) fn of(history: &History, most: u32) -> Self {
        let change = |(from, costs): &(Step, Vec<u64>)| Change { from: *from, costs: costs.clone() };
        Self { world_size: history.world_size, most, changes: history.splits.iter().map(change).collect() }
    }

    pub(super) fn world_size(&self) -> u32 {
        self.world_size
    }

    pub(super) fn change(&mut self, change: Change) {
        self.changes.push(change);
    }

    /// What they follow in a step; all the same where they are even.
    fn costs(&self, step: Step) -> Vec<u64> {
        let change = self.changes.iter().rev().find(|change| change.from <= step);
        change.map_or_else(|| vec![1; self.world_size as usize], |change| change.costs.clone())
    }

    /// Chunks of each rank in a step.
    pub(super) fn shards(&self, num_chunks: u32, step: Step) -> Vec<u32> {
        match self.changes.iter().rev().find(|change| change.from <= step) {
            Some(change) if change.costs.len() == self.world_size as usize => {
                split_by_cost(num_chunks, &change.costs, self.most)
            }
            _ => split_even(num_chunks, self.world_size),
        }
    }
}

/// Seconds a chunk of each rank, over its last steps.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Speeds {
    recent: Vec<VecDeque<f64>>,
    /// Seconds of the last steps, by their slowest ranks.
    walls: VecDeque<f64>,
    named: BTreeSet<Rank>,
    /// The first step of the present shares; those before tell nothing of them.
    from: Step,
    /// Steps since then.
    num_steps: usize,
    /// So many of them before shares may change again.
    hold: usize,
    /// How it was before the last change, until that has shown what it is worth.
    before: Option<Before>,
    /// A step was added that nobody has looked at.
    is_news: bool,
}

/// Before a change.
#[derive(Clone, Debug, PartialEq)]
struct Before {
    wall: f64,
    costs: Vec<u64>,
}

fn push(recent: &mut VecDeque<f64>, seconds: f64) {
    if recent.len() == WINDOW {
        recent.pop_front();
    }
    recent.push_back(seconds);
}

/// `None` before there are enough of them.
fn median(recent: &VecDeque<f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = recent.iter().copied().collect();
    sorted.sort_by(f64::total_cmp);
    (sorted.len() == WINDOW).then(|| sorted[WINDOW / 2])
}

impl Speeds {
    pub(super) fn new(world_size: usize) -> Self {
        Self {
            recent: vec![VecDeque::new(); world_size],
            walls: VecDeque::new(),
            named: BTreeSet::new(),
            from: Step(0),
            num_steps: 0,
            hold: HOLD.0,
            before: None,
            is_news: false,
        }
    }

    /// Nothing is known of the shares that begin there.
    fn begin(&mut self, from: Step) {
        (self.from, self.num_steps) = (from, 0);
        self.walls.clear();
        self.recent.iter_mut().for_each(VecDeque::clear);
    }

    /// A committed step of this generation.
    pub(super) fn add(&mut self, shards: &[u32], reports: &[StepReport]) {
        if reports.first().is_none_or(|report| report.step < self.from) {
            return;
        }
        (self.num_steps, self.is_news) = (self.num_steps + 1, true);
        push(&mut self.walls, reports.iter().map(|report| report.times.wall).fold(0.0, f64::max));
        for report in reports {
            let rank = report.rank.0 as usize;
            let (Some(recent), Some(chunks @ 1..)) = (self.recent.get_mut(rank), shards.get(rank).copied()) else {
                continue;
            };
            push(recent, (report.times.data + report.times.compute) / f64::from(chunks));
        }
    }

    /// Medians by rank; `None` for a rank that has not done enough steps.
    fn medians(&self) -> Vec<Option<f64>> {
        self.recent.iter().map(median).collect()
    }

    /// As if nobody had been named yet.
    #[cfg(test)]
    pub(super) fn forget_who_was_named(&mut self) {
        self.named.clear();
    }

    /// Ranks that are slow, with how many times slower than the median rank (of two, the faster), not named before.
    pub(super) fn stragglers(&mut self) -> Vec<(Rank, f64, f64)> {
        let medians = self.medians();
        let mut sorted: Vec<f64> = medians.iter().flatten().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let Some(usual) = sorted.get(sorted.len().saturating_sub(1) / 2).copied().filter(|usual| *usual > 0.0) else {
            return Vec::new();
        };
        let slow = (0..).zip(medians).filter_map(|(rank, median)| Some((Rank(rank), median? / usual, median?)));
        let slow: Vec<_> = slow.collect();
        // Whoever caught up is named again the next time.
        for (rank, ..) in slow.iter().filter(|(_, factor, _)| *factor < CAUGHT_UP) {
            self.named.remove(rank);
        }
        let slow = slow.into_iter().filter(|(_, factor, _)| *factor >= STRAGGLER);
        slow.filter(|(rank, ..)| self.named.insert(*rank)).collect()
    }

    /// Costs to split by from `now.from` on, if that is better by far than `shards`, which follow from `now.costs`.
    fn better(&mut self, shards: &[u32], most: u32, now: Change) -> Option<Vec<u64>> {
        if self.num_steps < self.hold {
            return None;
        }
        let wall = median(&self.walls)?;
        if let Some(before) = self.before.take() {
            if wall > WORSE * before.wall {
                self.hold = (2 * self.hold).min(HOLD.1);
                self.begin(now.from);
                return Some(before.costs);
            }
            self.hold = HOLD.0;
        }
        let costs: Option<Vec<u64>> =
            self.medians().into_iter().map(|median| Some(((median? * 1e9).round() as u64).max(1))).collect();
        let costs = costs?;
        let longest = |shards: &[u32]| shards.iter().zip(&costs).map(|(n, cost)| u64::from(*n) * cost).max();
        let others = split_by_cost(shards.iter().sum(), &costs, most);
        let is_better = longest(&others)? as f64 <= WORTH_IT * longest(shards)? as f64;
        if is_better {
            self.before = Some(Before { wall, costs: now.costs });
            self.begin(now.from);
        }
        is_better.then_some(costs)
    }
}

impl Engine {
    /// Names stragglers; gives them less. Looks only where a step was committed: medians are not for every message.
    pub(super) fn balance(&mut self) {
        let (Phase::Training, Some(world)) = (self.phase, &mut self.world) else { return };
        if !std::mem::take(&mut world.speeds.is_news) {
            return;
        }
        let named: Vec<_> = world
            .speeds
            .stragglers()
            .into_iter()
            .filter_map(|(rank, factor, seconds)| {
                let member = world.members.get(rank.0 as usize)?;
                let detail = json!({ "rank": rank, "times_slower": factor, "seconds_a_chunk": seconds });
                Some((member.worker.clone(), detail))
            })
            .collect();
        let recipe = &self.config.recipe;
        let num_chunks = num_chunks(recipe.train.batch, recipe.train.chunk);
        let change = if recipe.elastic.balance && world.resplit.is_none() && self.stop.is_none() {
            let shards = self.reports.splits().shards(num_chunks, world.planned);
            let from = world.planned.next();
            let now = Change { from, costs: self.reports.splits().costs(world.planned) };
            world.speeds.better(&shards, self.config.most_chunks(), now).map(|costs| Change { from, costs })
        } else {
            None
        };
        let generation = world.generation;
        for (worker, detail) in named {
            self.note("straggler", Some(worker), detail);
        }
        if let Some(change) = change {
            let (from, costs) = (change.from, change.costs.clone());
            let seq = self.persist(Record::Split { generation, from, costs });
            if let Some(world) = &mut self.world {
                world.resplit = Some((seq, change));
            }
        }
    }
}
