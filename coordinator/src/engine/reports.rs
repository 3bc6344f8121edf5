//! What the ranks of one generation said about steps that are not committed yet.

use std::collections::BTreeMap;

use lockstep_proto::ids::{Generation, Rank, Step};
use lockstep_proto::message::{EvalReport, StepReport, StepTimes};

use super::balance::{Change, Splits};

/// Partial reports. Those of a closed generation are kept until the next one opens: one rank's report describes a
/// whole step, so it suffices for a row whose update is known to have happened.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Reports {
    generation: Generation,
    splits: Splits,
    steps: BTreeMap<Step, BTreeMap<Rank, StepReport>>,
    evaluations: BTreeMap<Step, BTreeMap<Rank, EvalReport>>,
}

impl Reports {
    /// A world size of 0: unknown, then nothing can be made of reports.
    pub(super) fn new(generation: Generation, splits: Splits) -> Self {
        Self { generation, splits, steps: BTreeMap::new(), evaluations: BTreeMap::new() }
    }

    /// How the steps of the generation split.
    pub(super) fn splits(&self) -> &Splits {
        &self.splits
    }

    /// From some step on they split otherwise.
    pub(super) fn resplit(&mut self, change: Change) {
        self.splits.change(change);
    }

    pub(super) fn generation(&self) -> Generation {
        self.generation
    }

    pub(super) fn world_size(&self) -> u32 {
        self.splits.world_size()
    }

    pub(super) fn add_step(&mut self, report: StepReport) {
        if report.rank.0 < self.world_size() {
            self.steps.entry(report.step).or_default().insert(report.rank, report);
        }
    }

    pub(super) fn add_evaluation(&mut self, report: EvalReport) {
        if report.rank.0 < self.world_size() {
            self.evaluations.entry(report.step).or_default().insert(report.rank, report);
        }
    }

    /// Whether all ranks (`all`), or any of them, reported the step.
    pub(super) fn has_step(&self, step: Step, all: bool) -> bool {
        is_enough(self.steps.get(&step), self.world_size(), all)
    }

    /// The same for an evaluation.
    pub(super) fn has_evaluation(&self, step: Step, all: bool) -> bool {
        is_enough(self.evaluations.get(&step), self.world_size(), all)
    }

    pub(super) fn has_evaluation_of(&self, step: Step, rank: Rank) -> bool {
        self.evaluations.get(&step).is_some_and(|reports| reports.contains_key(&rank))
    }

    /// Takes out what was said about a step; ascending by rank.
    pub(super) fn take_step(&mut self, step: Step) -> Vec<StepReport> {
        self.steps.remove(&step).unwrap_or_default().into_values().collect()
    }

    pub(super) fn take_evaluation(&mut self, step: Step) -> Vec<EvalReport> {
        self.evaluations.remove(&step).unwrap_or_default().into_values().collect()
    }
}

fn is_enough<R>(reports: Option<&BTreeMap<Rank, R>>, world_size: u32, all: bool) -> bool {
    reports.is_some_and(|reports| !all || reports.len() == world_size as usize)
}

/// Ranks whose figures are not those of the first. Bits are compared: with the canonical order they are equal.
pub(super) fn dissenters<R, const N: usize>(reports: &[R], figures: impl Fn(&R) -> (Rank, [u64; N])) -> Vec<Rank> {
    let Some(first) = reports.first().map(&figures) else { return Vec::new() };
    reports.iter().map(figures).filter(|(_, other)| *other != first.1).map(|(rank, _)| rank).collect()
}

/// Of the rank that had the least ready.
pub(super) fn least_ready(reports: &[StepReport]) -> Option<f64> {
    reports.iter().filter_map(|report| report.ready).reduce(f64::min)
}

/// The slowest rank's seconds, figure by figure.
pub(super) fn slowest(reports: &[StepReport]) -> StepTimes {
    reports.iter().fold(StepTimes::default(), |slowest, report| StepTimes {
        data: slowest.data.max(report.times.data),
        compute: slowest.compute.max(report.times.compute),
        comm: slowest.comm.max(report.times.comm),
        wall: slowest.wall.max(report.times.wall),
    })
}
