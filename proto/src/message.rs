//! What coordinator and worker say to each other, as domain types. `wire.rs` turns these into protobuf and back; no
//! generated type is seen anywhere else.
//!
//! ```text
//! worker                                coordinator
//!   Hello ───────────────────────────────►  who is it?
//!   ◄──────────────────── Welcome | Refused  recipe, instruction set, run directory
//!   Ready ───────────────────────────────►  data, canary, state held, addresses
//!   ◄──────────────────── Refused | Open     a generation: ranks, leader, base
//!   Synced ──────────────────────────────►  state hash after the broadcast
//!   ◄──────────────────────────────── Plan   a window ahead
//!   Reported, Evaluated, CheckpointSaved ─►
//!   Progress ────────────────────────────►  every second: it lives, and its ranks get on
//!   ◄─────────────────────────── Committed
//!   Complained ──────────────────────────►  a collective failed
//!   ◄─────────────────────────────── Close   abort, then say what you hold
//!   Halted ──────────────────────────────►
//!   Leaving ─────────────────────────────►  a signal: may it go?
//!   ◄───────────────────────── Drain | Finish
//!   Left ────────────────────────────────►
//! ```
//! Everything after `Ready` carries the generation; anything from an older one is refused.

use crate::exit::ExitCode;
use crate::ids::{Epoch, Generation, Lineage, Rank, SampleRange, StateId, Step, WorkerId};

/// Raised with every incompatible change of the wire contract.
pub const PROTOCOL_VERSION: u32 = 2;

/// A sha256, as lower-case hex.
pub type Sha256 = String;

/// From a worker to the coordinator.
#[derive(Clone, Debug, PartialEq)]
pub enum FromWorker {
    /// The first message of a stream.
    Hello(Hello),
    /// Data and model are loaded; the worker may be given ranks.
    Ready(Ready),
    /// All ranks of this worker hold the base state of the generation.
    Synced(Synced),
    /// One rank finished one step: its update is known to have happened.
    Reported(StepReport),
    /// One rank finished an evaluation (its figures describe the whole test set).
    Evaluated(EvalReport),
    /// Rank 0's process wrote a checkpoint; it is complete and visible.
    CheckpointSaved(CheckpointSaved),
    /// A collective failed. The generation cannot go on.
    Complained(Complaint),
    /// The answer to `Close`: communicators aborted, this is what the worker's ranks hold.
    Halted(Halted),
    /// Every second or so, from `Ready` on: the process lives, and this is how far its ranks are.
    Progress(Progress),
    /// It was asked to go, and goes once it is told to: `Drain` where the run continues without it, `Finish` once the
    /// state is saved where it does not.
    Leaving(Leaving),
    /// The checkpoint that this leader was to start from does not load.
    CheckpointBad(CheckpointBad),
    /// The last message of a stream: the worker goes, and why.
    Left(Left),
}

/// From the coordinator to a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum ToWorker {
    /// Answer to `Hello`.
    Welcome(Welcome),
    /// Not admitted; the stream ends. The reason tells a person what to do.
    Refused(Refused),
    /// A generation opens.
    Open(Open),
    /// What to do next, in order. Items of consecutive messages follow one another without a gap.
    Plan(Plan),
    /// The generation is over: abort its communicators, forget its plan, answer `Halted`.
    Close(Close),
    /// Steps up to this one are durable: reports up to it may be forgotten.
    Committed {
        /// Of which generation.
        generation: Generation,
        /// Up to and with this step.
        step: Step,
    },
    /// Leave after the step in hand.
    Drain(Drain),
    /// The run is over, well or badly. Leave with this code.
    Finish(Finish),
}

/// Who a worker is.
#[derive(Clone, Debug, PartialEq)]
pub struct Hello {
    /// Must equal [`PROTOCOL_VERSION`].
    pub protocol: u32,
    /// `lockstep-worker` version and source commit.
    pub build: String,
    /// Unique name of the process.
    pub worker: WorkerId,
    /// Host name.
    pub host: String,
    /// Process id.
    pub pid: u32,
    /// One entry a replica: `cpu`, `cuda:0`, …
    pub devices: Vec<String>,
    /// Best instruction set of this CPU: an entry of [`crate::isa::LADDER`].
    pub isa: String,
    /// The run that this worker's state belongs to, when it holds any.
    pub run_id: Option<String>,
}

/// What a worker needs in order to load.
#[derive(Clone, Debug, PartialEq)]
pub struct Welcome {
    /// Identity of the run: survives restarts of the coordinator.
    pub run_id: String,
    /// The whole resolved recipe, TOML.
    pub recipe_toml: String,
    /// The coordinator's path of the run directory; a worker writes there only if it finds the nonce.
    pub run_dir: String,
    /// Content of `RUN/.nonce`.
    pub run_nonce: String,
    /// Instruction set of the run: the worker lowers itself to it before its first tensor.
    pub isa: String,
}

/// Identity of a data set, as the audit and the join check know it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DataIdentity {
    /// `cifar10`, …
    pub name: String,
    /// Number of training samples (after `data.limit`).
    pub num_train: u64,
    /// Number of test samples.
    pub num_test: u64,
    /// Number of classes.
    pub num_classes: u32,
    /// sha256 over the content of both splits.
    pub fingerprint: Sha256,
}

/// A worker that could compute.
#[derive(Clone, Debug, PartialEq)]
pub struct Ready {
    /// What data it sees.
    pub data: DataIdentity,
    /// Hash of the gradient of one fixed chunk; `None` with `reduction = "fast"`.
    pub canary: Option<Sha256>,
    /// What its ranks hold, if they hold any of this run.
    pub state: Option<StateId>,
    /// Data-plane address of each replica, `host:port`, in device order.
    pub addresses: Vec<String>,
    /// Whether it found `RUN/.nonce`.
    pub sees_run_dir: bool,
}

/// A rank of a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The rank.
    pub rank: Rank,
    /// Whose it is.
    pub worker: WorkerId,
    /// Index of the replica within that process.
    pub replica: u32,
    /// Where its collectives listen.
    pub address: String,
}

/// Where the leader gets the base state from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Initialise from the recipe's seed: step 0.
    Init,
    /// It holds it already.
    Held,
    /// Load `checkpoints/<dir>` of the run directory, or download it.
    Checkpoint {
        /// `step-N`.
        dir: String,
    },
}

/// A new membership of the world.
#[derive(Clone, Debug, PartialEq)]
pub struct Open {
    /// Its number.
    pub generation: Generation,
    /// The history that it continues.
    pub lineage: Lineage,
    /// The state that every rank must hold before the first planned item.
    pub base: StateId,
    /// All ranks, ascending; world size is their number.
    pub members: Vec<Member>,
    /// Who broadcasts the base state.
    pub leader: Rank,
    /// Where the leader has it from.
    pub source: Source,
    /// Secret of this generation: connections without it are refused.
    pub rendezvous: String,
}

/// Every rank holds the base.
#[derive(Clone, Debug, PartialEq)]
pub struct Synced {
    /// Of which generation.
    pub generation: Generation,
    /// Hash of the state (parameters, optimizer, statistics): equal on all ranks.
    pub state_sha256: Sha256,
}

/// A piece of the plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Of which generation.
    pub generation: Generation,
    /// In order.
    pub items: Vec<PlanItem>,
}

/// One thing that all ranks do together.
#[derive(Clone, Debug, PartialEq)]
pub enum PlanItem {
    /// An optimizer step.
    Step(StepPlan),
    /// Evaluate the state after `step` on the whole test set, as epoch `epoch`.
    Evaluate {
        /// 0 before training.
        epoch: Epoch,
        /// The state it describes.
        step: Step,
    },
    /// Rank 0's process saves the state after `step`; the others go on.
    Checkpoint {
        /// The state to save.
        step: Step,
        /// The epoch of that step (0 for step 0).
        epoch: Epoch,
    },
}

/// An optimizer step: everything about it that the recipe decides.
#[derive(Clone, Debug, PartialEq)]
pub struct StepPlan {
    /// Which.
    pub step: Step,
    /// In which epoch, from 1.
    pub epoch: Epoch,
    /// Learning rate.
    pub lr: f64,
    /// Positions of the global batch.
    pub batch: SampleRange,
    /// Chunks of each rank, ascending by rank; they tile the batch.
    pub shards: Vec<u32>,
}

/// One rank's report of one step. All but times and `ready` describe the whole global batch.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// Of which generation.
    pub generation: Generation,
    /// Whose.
    pub rank: Rank,
    /// Which step.
    pub step: Step,
    /// Mean cross-entropy over the global batch, before the update.
    pub loss: f64,
    /// Wrong predictions in the global batch.
    pub wrong: u64,
    /// Samples that the batch's figures are of.
    pub samples: u64,
    /// Reduced digest of what all loaders delivered.
    pub digest: u64,
    /// Samples of the global batch that were left out: `samples` are the others. Ascending by position.
    pub skipped: Vec<Skipped>,
    /// Share of this rank's chunks that lay ready when the step asked for them; `None` where nothing is read ahead.
    pub ready: Option<f64>,
    /// Seconds of this rank.
    pub times: StepTimes,
}

/// A sample that could not be read and was left out (`data.image.bad = "skip"`).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Skipped {
    /// Its position in the epoch; in an evaluation its number in the test set.
    pub position: u64,
    /// Its file, relative to `data.path`.
    pub file: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Where one rank's time went in one step, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepTimes {
    /// Waiting for samples.
    pub data: f64,
    /// Computing.
    pub compute: f64,
    /// Communication that compute did not hide.
    pub comm: f64,
    /// The whole step.
    pub wall: f64,
}

/// One rank's report of an evaluation of the whole test set.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalReport {
    /// Of which generation.
    pub generation: Generation,
    /// Whose.
    pub rank: Rank,
    /// Epoch that it stands for.
    pub epoch: Epoch,
    /// State that was evaluated.
    pub step: Step,
    /// Mean cross-entropy over the test set.
    pub loss: f64,
    /// Fraction wrong.
    pub error: f64,
    /// Fraction whose label is not among the five best.
    pub error_top5: f64,
    /// Test samples that these figures are of.
    pub samples: u64,
    /// Test samples that were left out, ascending.
    pub skipped: Vec<Skipped>,
    /// Seconds.
    pub seconds: f64,
}

/// A checkpoint is complete and visible in the run directory.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointSaved {
    /// Of which generation.
    pub generation: Generation,
    /// Whose state.
    pub state: StateId,
    /// Its epoch.
    pub epoch: Epoch,
    /// `step-N`.
    pub dir: String,
    /// Bytes of all files.
    pub bytes: u64,
    /// Hash of the state.
    pub state_sha256: Sha256,
}

/// A collective failed.
#[derive(Clone, Debug, PartialEq)]
pub struct Complaint {
    /// Of which generation.
    pub generation: Generation,
    /// Who complains.
    pub rank: Rank,
    /// While working on this step.
    pub step: Step,
    /// Whom it blames, if anyone.
    pub culprit: Option<Rank>,
    /// What happened: operation, deadline, error.
    pub what: String,
}

/// The communicators of the generation are gone.
#[derive(Clone, Debug, PartialEq)]
pub struct Halted {
    /// The generation that was closed.
    pub generation: Generation,
    /// What the worker's ranks hold: the least of them. `None` before any state.
    pub state: Option<StateId>,
}

/// Signs of life. Only what computation itself counts says that a rank gets on: a message alone says no more than that
/// the process is not stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Of which generation; 0 for none.
    pub generation: Generation,
    /// Those of this worker.
    pub ranks: Vec<RankProgress>,
    /// Its GPUs, where the driver tells.
    pub gpus: Vec<GpuHealth>,
}

/// How a GPU is, as the driver tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct GpuHealth {
    /// `cuda:0`
    pub device: String,
    /// Share of the last moments in which a kernel ran, percent.
    pub utilization_percent: u32,
    /// Bytes in use, by whomever.
    pub memory_used: u64,
    /// Bytes that it has.
    pub memory_total: u64,
    /// Degrees Celsius.
    pub temperature_c: u32,
}

/// How far one rank is within what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankProgress {
    /// Whose.
    pub rank: Rank,
    /// Grows with every piece of work: a chunk through a segment, a collective. Its size means nothing.
    pub beats: u64,
    /// It waits in a collective, or for its disk: if it does not get on, that is not its own fault.
    pub is_waiting: bool,
}

/// A worker was asked to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// By what.
    pub reason: String,
}

/// A checkpoint is damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointBad {
    /// Of which generation.
    pub generation: Generation,
    /// `step-N`.
    pub dir: String,
    /// File, and what is wrong with it.
    pub reason: String,
}

/// A worker goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Left {
    /// The exit code that its process is about to give.
    pub code: ExitCode,
    /// Why, for a person.
    pub reason: String,
}

/// Not admitted.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    /// The code that the worker exits with.
    pub code: ExitCode,
    /// What is wrong and what to do about it.
    pub reason: String,
}

/// A generation is over.
#[derive(Clone, Debug, PartialEq)]
pub struct Close {
    /// Which.
    pub generation: Generation,
    /// Why.
    pub reason: String,
}

/// Finish the step in hand, then leave.
#[derive(Clone, Debug, PartialEq)]
pub struct Drain {
    /// Why.
    pub reason: String,
}

/// The run is over.
#[derive(Clone, Debug, PartialEq)]
pub struct Finish {
    /// 0 when it is done.
    pub code: ExitCode,
    /// Why, for a person.
    pub reason: String,
}
