//! What a report is made of: tables of rows of runs, whether they come from sweeps or from run directories.

use std::path::PathBuf;

use lockstep_coordinator::provenance::Provenance;
use lockstep_proto::message::DataIdentity;
use lockstep_proto::recipe::Recipe;

use super::curve::Curve;
use crate::sweep::file::Reference;

/// One table of results, with its two figures.
#[derive(Clone, Debug)]
pub struct Table {
    /// For file names and data: `arch_shallow`.
    pub name: String,
    /// Heading.
    pub title: String,
    /// Rows, in order.
    pub rows: Vec<Row>,
}

/// Runs that differ in their seed and in nothing else.
#[derive(Clone, Debug)]
pub struct Row {
    /// What the table calls it.
    pub label: String,
    /// Published figures.
    pub reference: Reference,
    /// Its recipe, whatever the seed.
    pub recipe: Recipe,
    /// Its runs, no seed twice.
    pub runs: Vec<Run>,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Run {
    /// `train.seed`
    pub seed: u64,
    /// Its directory, as it was named.
    pub dir: PathBuf,
    /// How it stands.
    pub state: State,
    /// What its directory says; `None` when there is nothing to read.
    pub details: Option<Details>,
}

/// How a run stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing is there.
    NotRun,
    /// Begun and not finished.
    Unfinished {
        /// The last committed step.
        step: u64,
        /// All steps of its course; 0 when that is not known yet.
        total: u64,
        /// Why it stopped, if it did and said so.
        reason: Option<String>,
    },
    /// It ended with an error, or cannot be read.
    Failed {
        /// The last committed step.
        step: u64,
        /// All steps of its course; 0 when that is not known.
        total: u64,
        /// What it said.
        reason: String,
    },
    /// All steps are done.
    Done,
}

/// What a run directory says.
#[derive(Clone, Debug, Default)]
pub struct Details {
    /// Where it came from.
    pub provenance: Provenance,
    /// Its data set.
    pub data: Option<DataIdentity>,
    /// Hash of the recipe's keys that decide the course.
    pub recipe_sha256: String,
    /// Hash of the final state.
    pub state_sha256: Option<String>,
    /// The last evaluation, if it is of the last step of a finished run.
    pub test_error: Option<f64>,
    /// Positions of an epoch: its training samples, or a multiple with `data.repeats`.
    pub num_positions: u64,
    /// Epochs of its course.
    pub total_epochs: u64,
    /// Training loss, smoothed.
    pub loss: Curve,
    /// Training loss, as fine as a picture can show.
    pub loss_fine: Curve,
    /// Test error of every evaluation.
    pub test: Curve,
}

/// Mean and spread over seeds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stats {
    /// How many.
    pub num: usize,
    /// Their mean.
    pub mean: f64,
    /// Sample standard deviation (n − 1); `None` of one.
    pub sd: Option<f64>,
}

impl Stats {
    /// Of values; `None` without any.
    pub fn of(values: &[f64]) -> Option<Self> {
        let num = values.len();
        if num == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / num as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let sd = (num > 1).then(|| (squares / (num - 1) as f64).sqrt());
        Some(Self { num, mean, sd })
    }
}

impl Run {
    /// The reported number: the test error after the last epoch of a finished run, never the best over epochs.
    pub fn test_error(&self) -> Option<f64> {
        self.details.as_ref().filter(|_| self.state == State::Done)?.test_error
    }

    /// What stands where a number cannot; `None` when there is one.
    pub fn remark(&self) -> Option<String> {
        let of = |step: u64, total: u64| match total {
            0 => format!("step {step}"),
            total => format!("step {step} of {total}"),
        };
        match &self.state {
            State::NotRun => Some("not run".to_owned()),
            State::Unfinished { step, total, reason: None } => Some(of(*step, *total)),
            State::Unfinished { step, total, reason: Some(reason) } => {
                Some(format!("stopped at {}: {reason}", of(*step, *total)))
            }
            State::Failed { step, total, reason } => Some(format!("failed at {}: {reason}", of(*step, *total))),
            State::Done if self.test_error().is_none() => Some("not evaluated at its end".to_owned()),
            State::Done => None,
        }
    }
}

impl Row {
    /// Seeds that have a number, with it.
    pub fn errors(&self) -> Vec<(u64, f64)> {
        self.runs.iter().filter_map(|run| Some((run.seed, run.test_error()?))).collect()
    }

    /// Over the seeds that have a number.
    pub fn stats(&self) -> Option<Stats> {
        let errors: Vec<f64> = self.errors().into_iter().map(|(_, error)| error).collect();
        Stats::of(&errors)
    }

    /// The data set as its runs saw it.
    pub fn data(&self) -> Option<&DataIdentity> {
        self.runs.iter().find_map(|run| run.details.as_ref()?.data.as_ref())
    }
}
