//! What a call is asked to do.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// How many trials a scenario makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Amount {
    /// As few as show that it works: for CI.
    Few,
    /// What a person waits for.
    #[default]
    Usual,
    /// What the goals ask for.
    Goal,
}

/// A call.
#[derive(Clone, Debug)]
pub struct Options {
    /// `lockstep`.
    pub lockstep: PathBuf,
    /// `lockstep-worker`.
    pub worker: PathBuf,
    /// Where runs are kept; `None`: in a temporary folder, which goes.
    pub dir: Option<PathBuf>,
    /// Promises or scenarios; empty: all.
    pub only: Vec<String>,
    /// Decides victims and moments.
    pub seed: u64,
    /// How many trials.
    pub amount: Amount,
    /// The same for one scenario, by name.
    pub trials: BTreeMap<String, u32>,
    /// How long the soak lasts.
    pub soak: Duration,
    /// Seconds between two faults of the soak, least and most.
    pub fault_every_s: (u64, u64),
    /// How long the coordinator is away in the long absence.
    pub absent: Duration,
    /// Added to every recipe: `key=value`.
    pub sets: Vec<String>,
    /// `torchrun`, for the comparison with it.
    pub torchrun: Option<PathBuf>,
}

impl Options {
    /// The usual call with these executables.
    pub fn new(lockstep: PathBuf, worker: PathBuf) -> Self {
        Self {
            lockstep,
            worker,
            dir: None,
            only: Vec::new(),
            seed: 1,
            amount: Amount::Usual,
            trials: BTreeMap::new(),
            soak: Duration::from_secs(120),
            fault_every_s: (5, 30),
            absent: Duration::from_secs(60),
            sets: Vec::new(),
            torchrun: None,
        }
    }
}
