//! What the engine wants done. Plain data; one runtime file executes it, in order.

use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Epoch, Generation, Lineage, SampleRange, StateId, Step, WorkerId};
use lockstep_proto::message::{DataIdentity, Member, Skipped, ToWorker};

use super::event::{Seq, StreamId};

/// A wish of the engine.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Put a message on a stream. A stream that is gone is no error.
    Send {
        /// Which.
        stream: StreamId,
        /// What.
        message: ToWorker,
    },
    /// Close a stream once all that was sent is flushed.
    Hangup {
        /// Which.
        stream: StreamId,
    },
    /// Hand a record to the store. The runtime groups records into transactions and answers `Event::Persisted`.
    Persist {
        /// Its number.
        seq: Seq,
        /// What to write.
        record: Record,
    },
    /// A checkpoint is no longer wanted (retention): delete its folder.
    DeleteCheckpoint {
        /// `step-N`.
        dir: String,
    },
    /// The run is over: flush, tell everyone, exit with this code.
    End {
        /// The code.
        code: ExitCode,
        /// Why, for a person.
        reason: String,
    },
}

/// A line of the truth. Later truth — resume, audit, dashboard — comes from these alone.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// What the first worker settled for the whole run.
    Settled {
        /// Whose they are.
        worker: WorkerId,
        /// Data set of the run.
        data: DataIdentity,
        /// Its instruction set.
        isa: String,
        /// Its canary, with the canonical order.
        canary: Option<String>,
    },
    /// A worker was admitted.
    Joined {
        /// Who.
        worker: WorkerId,
        /// Its host.
        host: String,
        /// Its process.
        pid: u32,
        /// Its replicas.
        devices: Vec<String>,
    },
    /// A worker is gone.
    Left {
        /// Who.
        worker: WorkerId,
        /// Why.
        reason: String,
    },
    /// One transaction: close the generation before, forget its partial reports, open this one.
    Opened {
        /// Its number.
        generation: Generation,
        /// The history that it continues.
        lineage: Lineage,
        /// Where it starts.
        base: StateId,
        /// Its ranks.
        members: Vec<Member>,
    },
    /// A committed step, its row and its shards.
    Committed(Box<CommittedStep>),
    /// An evaluation.
    Evaluated {
        /// 0 before training.
        epoch: Epoch,
        /// State that was evaluated.
        step: Step,
        /// Generation that did it.
        generation: Generation,
        /// Number of ranks.
        world_size: u32,
        /// Mean cross-entropy.
        loss: f64,
        /// Fraction wrong.
        error: f64,
        /// Fraction whose label is not among the five best.
        error_top5: f64,
        /// Test samples that were left out. Kept as events.
        skipped: Vec<Skipped>,
    },
    /// An epoch ended (or the run, inside one): its row is computed from its steps, and from its evaluation if any.
    EpochEnded {
        /// Which.
        epoch: Epoch,
        /// Its last committed step.
        step: Step,
    },
    /// A checkpoint is complete, and its state is in the history.
    CheckpointSaved {
        /// State in it.
        state: StateId,
        /// Its epoch.
        epoch: Epoch,
        /// `step-N`.
        dir: String,
        /// Bytes of all files.
        bytes: u64,
        /// Whether its evaluation is the best so far.
        best: bool,
    },
    /// A checkpoint was deleted.
    CheckpointDeleted {
        /// `step-N`.
        dir: String,
    },
    /// One transaction: rows of steps > `to` leave `steps`, the ledger and `epochs`; a new lineage begins;
    /// `metrics.jsonl` and `epochs.csv` are rebuilt.
    RolledBack {
        /// Last committed step before.
        from: Step,
        /// The checkpoint's step.
        to: Step,
        /// The new history.
        lineage: Lineage,
    },
    /// From step `from` on, the batches of a generation are split by what a chunk costs each rank. Kept as an event.
    Split {
        /// Which generation.
        generation: Generation,
        /// Its first step.
        from: Step,
        /// Nanoseconds a chunk, by rank.
        costs: Vec<u64>,
    },
    /// A row of `events` that is not implied by another record (those write theirs themselves).
    Note {
        /// `lost`, `refused`, `recovered`, `complaint`, …
        kind: String,
        /// Generation, if any is open.
        generation: Generation,
        /// Last committed step.
        step: Step,
        /// Worker it is about.
        worker: Option<WorkerId>,
        /// Anything more, JSON.
        detail: serde_json::Value,
    },
    /// The run is complete.
    Finished {
        /// Its last step.
        step: Step,
        /// Hash of the final state: the run's identity.
        state_sha256: String,
    },
}

/// All that is kept of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct CommittedStep {
    /// Which.
    pub step: Step,
    /// Its epoch.
    pub epoch: Epoch,
    /// Generation that applied it.
    pub generation: Generation,
    /// Learning rate.
    pub lr: f64,
    /// Mean loss of the global batch.
    pub loss: f64,
    /// Wrong predictions in it.
    pub wrong: u64,
    /// Samples that count.
    pub samples: u64,
    /// Those that were left out. Kept as events.
    pub skipped: Vec<Skipped>,
    /// Digest of what loaders delivered.
    pub digest: u64,
    /// Share of its chunks that lay ready at the rank that had the fewest; `None` where nothing is read ahead.
    pub ready: Option<f64>,
    /// Ranges of positions, ascending by rank; members are those of the generation.
    pub shards: Vec<SampleRange>,
    /// Slowest rank's seconds: data, compute, exposed communication, wall.
    pub times: lockstep_proto::message::StepTimes,
}

/// What a store knows of a run when a coordinator starts on it. `Default` is a new run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// What the first worker settled.
    pub settled: Option<(DataIdentity, String, Option<String>)>,
    /// Highest generation ever opened.
    pub generation: Generation,
    /// Its number of ranks (0: unknown, or none yet).
    pub world_size: u32,
    /// How its steps split, where not evenly: from which step on, and each rank's nanoseconds a chunk.
    pub splits: Vec<(Step, Vec<u64>)>,
    /// Current lineage (0: none yet).
    pub lineage: Lineage,
    /// Last committed step and the generation that applied it.
    pub committed: Step,
    /// Generation of each committed step as spans: (first step, generation), ascending.
    pub spans: Vec<(Step, Generation)>,
    /// Wrong predictions and samples of each committed step, from step 1.
    pub errors: Vec<(u64, u64)>,
    /// Epochs that have an evaluation.
    pub evaluated: Vec<Epoch>,
    /// Test error of each evaluated epoch's step, for `best`.
    pub best: Option<(Step, f64)>,
    /// Checkpoints that load (hashes verified), ascending by step, with their states.
    pub checkpoints: Vec<StoredCheckpoint>,
    /// Whether the run was finished already.
    pub finished: bool,
}

/// A checkpoint whose files are all there and hash to what its manifest says.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredCheckpoint {
    /// State in it.
    pub state: StateId,
    /// Its epoch.
    pub epoch: Epoch,
    /// `step-N`.
    pub dir: String,
    /// Whether it was the best.
    pub best: bool,
}
