//! A worker's life: join, synchronise, train, leave. One task that never blocks; replicas compute in their own threads.
//!
//! ```text
//! dial ─► Welcome ─► load data, build replicas ─► Ready ─► ┌ Open ─► Plan … Committed … ─► Close ─► Halted ┐ ─► Finish
//!   ▲                                                      └───────────────────◄───────────────────────────┘
//!   └── stream broken: replicas go on through their window; the session dials again, halts them, and says Ready with
//!       what they hold and the reports that nobody acknowledged
//! ```
//! A signal, or the coordinator's `Drain`, lets every replica of the process finish the same item, then leaves with
//! code 75. A second signal leaves at once, and so does the end of standard input, where that was asked for.

mod outbox;
mod run;
mod setup;
mod signals;
mod signs;

pub use run::{Session, Signal};
pub use setup::{Done, Loading, Workshop};
pub use signals::{listen, stdin_closes};

/// What a worker process is told by its command line.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the coordinator is.
    pub coordinator: crate::connect::Coordinator,
    /// Unique name of the process.
    pub worker: lockstep_proto::ids::WorkerId,
    /// One entry a replica.
    pub devices: Vec<String>,
    /// What carries the sums.
    pub transport: crate::door::Transport,
    /// Host under which other workers reach this one.
    pub advertise: String,
    /// Best instruction set that this process may use.
    pub isa: String,
    /// How long an absent coordinator is waited for before the first `Welcome`.
    pub patience: std::time::Duration,
    /// How long replicas may take to halt once their collectives were aborted; before that they have a sixth of it to
    /// finish what is in hand. One that takes longer hangs, and the process ends.
    pub halt: std::time::Duration,
    /// For tests of refusals: send a canary that is not the computed one.
    pub fault_canary: bool,
}
