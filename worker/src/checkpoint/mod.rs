//! Checkpoints: a folder of named tensors and a manifest with their hashes, complete or absent.
//!
//! ```text
//! replica ─ snapshot ─► writer thread ─► RUN/checkpoints/.step-N.tmp-…  ─ fsync, rename ─►  RUN/checkpoints/step-N
//!                            └─ run directory not seen here ─► upload to the coordinator
//! leader ◄─ verify ◄─ read ◄─ RUN/checkpoints/step-N, or download
//! ```
//! `model.safetensors` holds parameters and running statistics under stable names in logical (NCHW) order,
//! `optimizer.safetensors` the solver's buffers as `<buffer>.<parameter>`, `manifest.json` which state that is.

mod read;
mod transfer;
mod write;
mod writer;

use std::collections::BTreeMap;
use std::path::PathBuf;

use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Epoch, Generation, StateId};
use lockstep_proto::manifest::ManifestError;
use lockstep_proto::message::Sha256;

use crate::compute::Named;
use crate::exit::Exit;

pub use read::{Loaded, read, recipe_of};
pub use transfer::{Depot, RemoteDepot};
pub use write::{dir_name, write};
pub(crate) use write::{replace, serialize_counted};
pub use writer::{Place, Saver, Writer};

/// File of parameters and running statistics.
pub const MODEL_FILE: &str = "model.safetensors";
/// File of the optimizer's state.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";

/// A copy of a state, taken between two steps.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Which state.
    pub id: StateId,
    /// The generation that saves it: not always the one that applied the step.
    pub generation: Generation,
    /// Epoch of its step.
    pub epoch: Epoch,
    /// Position of the next step's first sample, in its epoch's order.
    pub next_position: u64,
    /// Scheduled values of the step, by name.
    pub scheduled: BTreeMap<String, f64>,
    /// Ranks of the generation that saves it.
    pub world_size: u32,
    /// Hash of the recipe's keys that decide the course.
    pub recipe_sha256: Sha256,
    /// Hash of the state.
    pub state_sha256: Sha256,
    /// Parameters and running statistics.
    pub model: Vec<Named>,
    /// The optimizer's state.
    pub optimizer: Vec<Named>,
}

/// A checkpoint that is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// `step-N`.
    pub dir: String,
    /// Bytes of all its files.
    pub bytes: u64,
}

/// Why a checkpoint could not be saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The disk refused.
    #[error("cannot write {}: {source}; free some space or make it writable, then resume", path.display())]
    Write {
        /// File or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// File or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The manifest is missing or wrong, or a file is not what it says.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A file of tensors does not parse.
    #[error("{}: not a file of tensors: {reason}; use another checkpoint", path.display())]
    Tensors {
        /// File.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The coordinator did not take or give it.
    #[error("cannot {what} checkpoint {dir}: {reason}")]
    Transfer {
        /// `upload` or `download`.
        what: &'static str,
        /// `step-N`.
        dir: String,
        /// What the coordinator said.
        reason: String,
        /// Its code.
        code: ExitCode,
    },
}

impl CheckpointError {
    /// What a process exits with for it.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Write { .. } => ExitCode::CantCreate,
            Self::Read { .. } => ExitCode::NoInput,
            Self::Manifest(error) => error.exit_code(),
            Self::Tensors { .. } => ExitCode::Data,
            Self::Transfer { code, .. } => *code,
        }
    }
}

impl From<CheckpointError> for Exit {
    fn from(error: CheckpointError) -> Self {
        Self::new(error.exit_code(), error.to_string())
    }
}
