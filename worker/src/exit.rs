//! How this process ends: a code of the table and a reason for a person.

use lockstep_proto::exit::ExitCode;

/// An end, good or bad.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Exit {
    /// What the process exits with.
    pub code: ExitCode,
    /// Why: names the thing and the remedy.
    pub reason: String,
}

impl Exit {
    /// An end with this code, for this reason.
    pub fn new(code: ExitCode, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }
}
