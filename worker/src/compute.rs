//! What a replica asks of the mathematics: the seam between the protocol and libtorch. Sessions, synchronisation and
//! checkpoints know only this, so that they are tested with integers in place of tensors.

use std::sync::Arc;

use lockstep_collective::{Collective, CollectiveError};
use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Generation, StateId, Step};
use lockstep_proto::message::{Sha256, Skipped, StepPlan, StepTimes};

use crate::exit::Exit;
use crate::pulse::Pulse;

/// One tensor by name: little endian, logical (NCHW) order.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    /// Stable, torch-like: `layer1.0.conv1.weight`.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Logical shape.
    pub shape: Vec<usize>,
    /// Elements, little endian.
    pub bytes: Vec<u8>,
}

/// Element type of a [`Named`] tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit float.
    F32,
    /// 64-bit float.
    F64,
}

/// What a step gave, of the whole global batch.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOutcome {
    /// Mean cross-entropy.
    pub loss: f64,
    /// Wrong predictions.
    pub wrong: u64,
    /// Samples that count.
    pub samples: u64,
    /// The others, of all ranks.
    pub skipped: Vec<Skipped>,
    /// Reduced digest.
    pub digest: u64,
    /// Share of this rank's chunks that lay ready; `None` where nothing is read ahead.
    pub ready: Option<f64>,
    /// Seconds of this rank.
    pub times: StepTimes,
}

/// What an evaluation gave, of the whole test set.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalOutcome {
    /// Mean cross-entropy.
    pub loss: f64,
    /// Fraction wrong.
    pub error: f64,
    /// Fraction whose label is not among the five best.
    pub error_top5: f64,
    /// Test samples that count.
    pub samples: u64,
    /// The others, of all ranks.
    pub skipped: Vec<Skipped>,
    /// Seconds.
    pub seconds: f64,
}

/// Why a replica could not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum ComputeError {
    /// A collective failed: the generation is over, the replica is not.
    #[error(transparent)]
    Collective(CollectiveError),
    /// The checkpoint that this rank was to start from does not load: the generation is over, the replica is not.
    #[error("checkpoint {dir}: {reason}")]
    BadCheckpoint {
        /// `step-N`.
        dir: String,
        /// File, and what is wrong with it.
        reason: String,
    },
    /// The process cannot go on.
    #[error(transparent)]
    Fatal(#[from] Exit),
}

impl ComputeError {
    /// The process cannot go on.
    pub fn fatal(code: ExitCode, reason: impl Into<String>) -> Self {
        Self::Fatal(Exit::new(code, reason))
    }
}

impl From<CollectiveError> for ComputeError {
    fn from(error: CollectiveError) -> Self {
        match error {
            // Of no use in any later generation either: the process pays, and whoever started it starts another.
            CollectiveError::Unusable { what } => Self::fatal(ExitCode::Config, what),
            error => Self::Collective(error),
        }
    }
}

impl From<ComputeError> for Exit {
    fn from(error: ComputeError) -> Self {
        match error {
            ComputeError::Fatal(exit) => exit,
            error => Self::new(ExitCode::Software, error.to_string()),
        }
    }
}

/// A replica's state and what can be done to it. Lives in one thread.
pub trait Compute {
    /// From now on what gets done is counted here.
    fn watch(&mut self, _pulse: Arc<Pulse>) {}

    /// Hash of the gradient of one fixed chunk. Leaves the state untouched.
    ///
    /// # Errors
    /// The computation failed.
    fn canary(&mut self) -> Result<Sha256, ComputeError>;

    /// Step 0, from the recipe's seed. The state has no id until [`set_id`](Self::set_id).
    fn initialise(&mut self);

    /// Step 0 as the recipe wants it: from its seed, or from its weights.
    ///
    /// # Errors
    /// Weights that are missing or of another model.
    fn begin(&mut self) -> Result<(), ComputeError> {
        self.initialise();
        Ok(())
    }

    /// Uses this collective until [`leave`](Self::leave).
    fn join(&mut self, collective: Arc<dyn Collective>);

    /// Drops the collective.
    fn leave(&mut self);

    /// A step that the plan has in store, in order: what it needs may be read ahead. [`leave`](Self::leave) and
    /// [`join`](Self::join) make it void.
    fn announce(&mut self, _plan: &StepPlan) {}

    /// One optimizer step; afterwards the id is that of `plan.step` in `generation`.
    ///
    /// # Errors
    /// A failed collective leaves the state as it was.
    fn step(&mut self, generation: Generation, plan: &StepPlan) -> Result<StepOutcome, ComputeError>;

    /// Begins a step. What is known by now, of this step or of steps before it, in order; with the rest
    /// [`settle`](Self::settle) comes out.
    ///
    /// # Errors
    /// As for a step; it may be one of a step before.
    fn advance(&mut self, generation: Generation, plan: &StepPlan) -> Result<Vec<(Step, StepOutcome)>, ComputeError> {
        self.step(generation, plan).map(|outcome| vec![(plan.step, outcome)])
    }

    /// Waits for everything that was begun.
    ///
    /// # Errors
    /// As for a step.
    fn settle(&mut self) -> Result<Vec<(Step, StepOutcome)>, ComputeError> {
        Ok(Vec::new())
    }

    /// The last step that was begun.
    fn reached(&self) -> Option<Step> {
        self.id().map(|id| id.step)
    }

    /// Kernels, copies and waits of a step, where steps are captured.
    fn nodes(&self) -> Option<u64> {
        None
    }

    /// Evaluates the state, which is that after `step`, on the whole test set.
    ///
    /// # Errors
    /// As for a step.
    fn evaluate(&mut self, step: Step) -> Result<EvalOutcome, ComputeError>;

    /// Which state this is; `None` before any.
    fn id(&self) -> Option<StateId>;

    /// Names the state.
    fn set_id(&mut self, id: Option<StateId>);

    /// Parameters and statistics, then the optimizer's state; each sorted by name.
    fn tensors(&self) -> (Vec<Named>, Vec<Named>);

    /// Takes over tensors, as [`tensors`](Self::tensors) gave them.
    ///
    /// # Errors
    /// Names or shapes differ from the model's.
    fn load(&mut self, model: &[Named], optimizer: &[Named]) -> Result<(), ComputeError>;

    /// Hash of the whole state.
    fn sha256(&self) -> Sha256;

    /// The whole state, flat, for the broadcast; the same length on every rank.
    fn to_bytes(&self) -> Vec<u8>;

    /// Takes over what [`to_bytes`](Self::to_bytes) gave.
    ///
    /// # Errors
    /// The length differs.
    fn take_bytes(&mut self, bytes: &[u8]) -> Result<(), ComputeError>;
}
