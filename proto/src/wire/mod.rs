//! The wire, and nothing but the wire: generated types and their conversions. Inward of here are domain types only.
//!
//! A sentinel, a missing part, an unknown kind or code is a [`WireError`], never a panic and never a default.

use crate::exit::ExitCode;

mod from_worker;
mod status;
#[cfg(test)]
mod tests;
mod tls;
mod to_worker;
mod transfer;

pub use tls::{TlsError, TlsFiles};

/// The most bytes of one message, in either direction: a chunk of a checkpoint is the largest, a plan window for a
/// large world comes next.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// Generated from `proto/lockstep.proto`.
#[allow(missing_docs, clippy::all)]
pub mod pb {
    tonic::include_proto!("lockstep.v1");
}

/// A message that keeps the encoding but not the contract.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A part that must be there is not.
    #[error("message lacks `{field}`; are both sides of the same version?")]
    Missing {
        /// `message.field`.
        field: &'static str,
    },
    /// None of the kinds that this version knows.
    #[error("`{message}` is of a kind that this version does not know; are both sides of the same version?")]
    UnknownKind {
        /// The message.
        message: &'static str,
    },
    /// A number that stands for something, but for nothing that this version knows.
    #[error("`{field}` is {code}, which this version does not know; are both sides of the same version?")]
    UnknownCode {
        /// `message.field`.
        field: &'static str,
        /// What it was.
        code: i64,
    },
    /// A value that makes no sense.
    #[error("`{field}` {what}")]
    Invalid {
        /// `message.field`.
        field: &'static str,
        /// What is wrong with it.
        what: String,
    },
}

impl WireError {
    /// Always "other protocol or version".
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::Protocol
    }
}

impl From<WireError> for tonic::Status {
    fn from(error: WireError) -> Self {
        tonic::Status::invalid_argument(error.to_string())
    }
}

/// A part that must be there.
fn need<T>(part: Option<T>, field: &'static str) -> Result<T, WireError> {
    part.ok_or(WireError::Missing { field })
}

/// A string that must say something.
fn text(text: String, field: &'static str) -> Result<String, WireError> {
    if text.is_empty() { Err(WireError::Missing { field }) } else { Ok(text) }
}

/// Presence is `optional`: there but empty is neither.
fn optional_text(value: Option<String>, field: &'static str) -> Result<Option<String>, WireError> {
    value.map(|value| text(value, field)).transpose()
}

/// A single component of a path, harmless to join to a folder.
fn component(name: String, field: &'static str) -> Result<String, WireError> {
    let name = text(name, field)?;
    if crate::manifest::is_plain_name(&name) {
        Ok(name)
    } else {
        Err(WireError::Invalid { field, what: format!("is `{name}`, expected a plain file name") })
    }
}

fn exit_code(code: u32, field: &'static str) -> Result<ExitCode, WireError> {
    u8::try_from(code).ok().and_then(ExitCode::from_code).ok_or(WireError::UnknownCode { field, code: i64::from(code) })
}

/// Bytes of a file: some, but not too many.
fn chunk(bytes: Vec<u8>, field: &'static str) -> Result<Vec<u8>, WireError> {
    if bytes.len() > crate::transfer::MAX_CHUNK_BYTES {
        let what = format!("holds {} bytes, more than {}", bytes.len(), crate::transfer::MAX_CHUNK_BYTES);
        return Err(WireError::Invalid { field, what });
    }
    Ok(bytes)
}
