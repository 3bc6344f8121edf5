//! What a run says about itself, and what may be asked of it: `lockstep status`, `top`, the dashboard.

use serde::Serialize;

use crate::ids::{Epoch, Generation, Lineage, Rank, Step, WorkerId};
use crate::message::GpuHealth;

/// A run, seen from outside. `--json` prints exactly this.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Status {
    /// Identity of the run.
    pub run_id: String,
    /// The recipe's name.
    pub name: String,
    /// The coordinator's path of the run directory.
    pub run_dir: String,
    /// What is going on.
    pub phase: Phase,
    /// The open generation, or the last one.
    pub generation: Generation,
    /// The current history.
    pub lineage: Lineage,
    /// Ranks of the open generation; 0 while none is open.
    pub world_size: u32,
    /// Last committed step.
    pub step: Step,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Epoch of the last committed step.
    pub epoch: Epoch,
    /// Epochs of the whole run.
    pub total_epochs: u64,
    /// Training loss of the last committed step.
    pub loss: Option<f64>,
    /// Training error of the last committed step, a fraction.
    pub error: Option<f64>,
    /// Learning rate of the last committed step.
    pub lr: Option<f64>,
    /// Test error of the last evaluation, a fraction.
    pub test_error: Option<f64>,
    /// Images a second, lately.
    pub images_per_s: Option<f64>,
    /// Seconds to the end at that rate.
    pub eta_s: Option<f64>,
    /// Worker processes, in order of their names.
    pub members: Vec<MemberStatus>,
    /// The last thing worth telling, as a line of text.
    pub last_event: Option<String>,
    /// When the coordinator started, seconds since 1970.
    pub started_unix_s: f64,
    /// When this was true, seconds since 1970.
    pub updated_unix_s: f64,
}

/// What a run is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// For workers.
    #[default]
    Waiting,
    /// A generation is open; its ranks take over the base state.
    Syncing,
    /// Steps, evaluations, checkpoints.
    Training,
    /// A generation was closed; its workers report what they hold.
    Halting,
    /// Asked to end: the step in hand, a checkpoint, farewell.
    Draining,
    /// Complete.
    Done,
    /// Ended before its last step.
    Failed,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Waiting, Self::Syncing, Self::Training, Self::Halting, Self::Draining, Self::Done, Self::Failed];

    /// For programs, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Syncing => "syncing",
            Self::Training => "training",
            Self::Halting => "halting",
            Self::Draining => "draining",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Waiting => "waiting for workers",
            Self::Syncing => "syncing",
            Self::Training => "training",
            Self::Halting => "halting",
            Self::Draining => "draining",
            Self::Done => "done",
            Self::Failed => "failed",
        })
    }
}

/// A worker process, seen from outside.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MemberStatus {
    /// Who.
    pub worker: WorkerId,
    /// Its host.
    pub host: String,
    /// Its process.
    pub pid: u32,
    /// Its replicas.
    pub devices: Vec<String>,
    /// Its ranks in the open generation; none while it waits.
    pub ranks: Vec<Rank>,
    /// The last step that all of its ranks reported.
    pub last_step: Step,
    /// Seconds since it was last heard.
    pub last_report_age_s: f64,
    /// How its GPUs are, where it tells.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuHealth>,
}

/// What may be asked of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// Finish the step in hand, save, end as resumable.
    Stop {
        /// Who asks, and why.
        reason: String,
    },
}
