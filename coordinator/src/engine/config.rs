//! What an engine is told once, and how long it waits.

use std::time::Duration;

use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::Step;
use lockstep_proto::recipe::Recipe;

/// How long the store may take to confirm a record.
pub(super) const STORE_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a new generation waits for what a worker is about to say about newer steps.
pub(super) const HOLD: Duration = Duration::from_secs(10);
/// The first step of a generation, a synchronisation and a checkpoint may take at least this.
pub(super) const SLOW_START: Duration = Duration::from_secs(120);
/// So many generations in a row may fail without a committed step.
pub(super) const MAX_FRUITLESS: u32 = 10;
/// After so many of them someone is left out, although it is not clear whose fault it is.
pub(super) const PATIENT_GENERATIONS: u32 = 3;
/// How long a worker is left out that its peers cannot reach, at least and at most: five times what it cost, twice as long
/// each time.
pub(super) const LEFT_OUT: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(3600));

/// A run, as the engine sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineConfig {
    /// Resolved and checked.
    pub recipe: Recipe,
    /// Identity of the run: survives restarts.
    pub run_id: String,
    /// The coordinator's path of the run directory.
    pub run_dir: String,
    /// Content of `RUN/.nonce`.
    pub run_nonce: String,
}

impl EngineConfig {
    /// From the start of gathering to giving up.
    pub(super) fn join_timeout(&self) -> Duration {
        seconds(self.recipe.elastic.join_timeout_s)
    }

    /// Between two signs of life.
    pub(super) fn stall_timeout(&self) -> Duration {
        seconds(self.recipe.elastic.stall_timeout_s)
    }

    /// The most chunks of a batch that a rank takes; `u32::MAX`: any.
    pub(super) fn most_chunks(&self) -> u32 {
        match self.recipe.elastic.max_shard {
            0 => u32::MAX,
            samples => u32::try_from(samples / u64::from(self.recipe.train.chunk.max(1))).unwrap_or(u32::MAX),
        }
    }

    /// For a rank that waits for others.
    pub(super) fn step_timeout(&self) -> Duration {
        seconds(self.recipe.elastic.step_timeout_s)
    }

    /// The same for what takes longer than a step.
    pub(super) fn slow_timeout(&self) -> Duration {
        self.step_timeout().max(SLOW_START)
    }
}

/// Far from overflow, whatever the recipe says.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX).min(Duration::from_secs(1 << 32))
}

/// Why no engine can continue a history.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// Steps are committed, but nothing holds their result.
    #[error(
        "the run has {committed} committed steps, but none of its checkpoints loads; restore one from a backup, or \
         start again in a new run directory"
    )]
    NoCheckpoint {
        /// Last committed step.
        committed: Step,
    },
}

impl EngineError {
    /// How the process ends.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::NoCheckpoint { .. } => ExitCode::Data,
        }
    }
}
