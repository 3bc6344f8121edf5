//! Who is slow, and what share of a batch that leaves it.
//!
//! In a synchronous step all ranks take the same time: only the time that a rank spends outside collectives tells. What
//! a chunk costs a rank is the median of that over its last steps. A rank that is much slower than the median rank is
//! named; with `elastic.balance` each chunk goes to the rank that would be done with it first.

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
    named: BTreeSet<Rank>,
    /// Steps since shares changed.
    num_steps: usize,
    /// A step was added that nobody has looked at.
    is_news: bool,
}

impl Speeds {
    pub(super) fn new(world_size: usize) -> Self {
        Self { recent: vec![VecDeque::new(); world_size], named: BTreeSet::new(), num_steps: 0, is_news: false }
    }

    /// A committed step of this generation.
    pub(super) fn add(&mut self, shards: &[u32], reports: &[StepReport]) {
        (self.num_steps, self.is_news) = (self.num_steps + 1, true);
        for report in reports {
            let rank = report.rank.0 as usize;
            let (Some(recent), Some(chunks @ 1..)) = (self.recent.get_mut(rank), shards.get(rank).copied()) else {
                continue;
            };
            if recent.len() == WINDOW {
                recent.pop_front();
            }
            recent.push_back((report.times.data + report.times.compute) / f64::from(chunks));
        }
    }

    /// Medians by rank; `None` for a rank that has not done enough steps.
    fn medians(&self) -> Vec<Option<f64>> {
        let median = |recent: &VecDeque<f64>| {
            let mut sorted: Vec<f64> = recent.iter().copied().collect();
            sorted.sort_by(f64::total_cmp);
            (sorted.len() == WINDOW).then(|| sorted[WINDOW / 2])
        };
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

    /// Costs that give a better split of `chunks` than `shards`, if there is one by far.
    fn better(&mut self, shards: &[u32], most: u32) -> Option<Vec<u64>> {
        if self.num_steps < 2 * WINDOW {
            return None;
        }
        let costs: Option<Vec<u64>> =
            self.medians().into_iter().map(|median| Some(((median? * 1e9).round() as u64).max(1))).collect();
        let costs = costs?;
        let longest = |shards: &[u32]| shards.iter().zip(&costs).map(|(n, cost)| u64::from(*n) * cost).max();
        let others = split_by_cost(shards.iter().sum(), &costs, most);
        let is_better = longest(&others)? as f64 <= WORTH_IT * longest(shards)? as f64;
        if is_better {
            (self.num_steps, self.recent) = (0, vec![VecDeque::new(); self.recent.len()]);
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
            world.speeds.better(&shards, self.config.most_chunks()).map(|costs| Change { from, costs })
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
