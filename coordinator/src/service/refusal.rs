//! What the service refuses, and the one place that maps it to gRPC.

use std::io;
use std::path::{Path, PathBuf};

use lockstep_proto::ids::Generation;
use lockstep_proto::manifest::ManifestError;
use lockstep_proto::wire::WireError;
use tonic::Status;

/// Why a call fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// No token, or a wrong one.
    #[error("the coordinator wants a token and got {got}; set LOCKSTEP_TOKEN, or --token, to the coordinator's")]
    Token {
        /// "none" or "another".
        got: &'static str,
    },
    /// The message does not keep the contract.
    #[error("{0}")]
    Wire(#[from] WireError),
    /// A stream that says nothing.
    #[error("nothing was heard for {seconds} s where a message was due")]
    Silent {
        /// How long.
        seconds: u64,
    },
    /// The transport failed.
    #[error("{0}")]
    Transport(Box<Status>),
    /// Messages in an order that makes no sense.
    #[error("{0}")]
    Malformed(String),
    /// Of another run.
    #[error("this coordinator serves run {ours}, not {theirs}; check the coordinator's address")]
    OtherRun {
        /// Ours.
        ours: String,
        /// Theirs.
        theirs: String,
    },
    /// From an older generation.
    #[error("generation {theirs} is over, {ours} is open")]
    OldGeneration {
        /// Ours.
        ours: Generation,
        /// Theirs.
        theirs: Generation,
    },
    /// No such checkpoint.
    #[error("there is no checkpoint `{dir}` in this run")]
    NoCheckpoint {
        /// `step-N`.
        dir: String,
    },
    /// The checkpoint is not what its manifest says.
    #[error("{0}")]
    Manifest(#[from] ManifestError),
    /// The run directory cannot be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The run is over.
    #[error("the run is over, the coordinator is about to exit")]
    Over,
}

impl Refusal {
    pub(crate) fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        move |error| Self::Io { path: path.to_owned(), error }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::Token { .. } => Status::unauthenticated(text),
            Refusal::Wire(error) => error.into(),
            Refusal::Silent { .. } => Status::deadline_exceeded(text),
            Refusal::Transport(status) => *status,
            Refusal::Malformed(_) => Status::invalid_argument(text),
            Refusal::OtherRun { .. } | Refusal::OldGeneration { .. } => Status::failed_precondition(text),
            Refusal::NoCheckpoint { .. } => Status::not_found(text),
            Refusal::Manifest(_) => Status::data_loss(text),
            Refusal::Io { .. } => Status::internal(text),
            Refusal::Over => Status::unavailable(text),
        }
    }
}
