//! What can be wrong with data, said so that a person can act on it.

use std::io;
use std::path::PathBuf;

use lockstep_proto::exit::ExitCode;

/// Data that is missing, damaged, or cannot be fetched.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The recipe names no folder.
    #[error("data.path is empty: run `lockstep data fetch {kind}`, then set data.path to the folder that it prints")]
    NoPath {
        /// `data.kind`
        kind: &'static str,
    },
    /// The folder of `data.path` is not there.
    #[error("{}: no such folder: run `lockstep data fetch {kind}` or set data.path", path.display())]
    NoFolder {
        /// `data.path`
        path: PathBuf,
        /// `data.kind`
        kind: &'static str,
    },
    /// A file of the set is not there.
    #[error("{}: no such file: run `lockstep data fetch {kind}` or set data.path", path.display())]
    NoFile {
        /// The file.
        path: PathBuf,
        /// `data.kind`
        kind: &'static str,
    },
    /// A file of the set cannot be read.
    #[error("{}: cannot read at offset {offset}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Bytes from its start.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// A file ends inside a record.
    #[error(
        "{}: truncated: it ends at offset {bytes}, inside record {record}, which began at offset {offset} and has \
         {record_bytes} bytes; a whole file has {expected} bytes: run `lockstep data fetch {kind}`",
        path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The record that is cut, from 0.
        record: u64,
        /// Where that record begins.
        offset: u64,
        /// Size of a record.
        record_bytes: u64,
        /// Size of a whole file.
        expected: u64,
        /// `data.kind`
        kind: &'static str,
    },
    /// A file has whole records, but too few or too many.
    #[error(
        "{}: {records} records, expected {expected}: it ends at offset {bytes}, not {expected_bytes}: run `lockstep \
         data fetch {kind}`",
        path.display()
    )]
    WrongCount {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// Records in it.
        records: u64,
        /// Records of a good file.
        expected: u64,
        /// Size of a good file.
        expected_bytes: u64,
        /// `data.kind`
        kind: &'static str,
    },
    /// A label that the set does not have.
    #[error(
        "{}: label {label} in record {record} (offset {offset}), expected 0…{}: the file is damaged or belongs to \
         another set: run `lockstep data fetch {kind}`",
        path.display(), num_classes - 1
    )]
    BadLabel {
        /// The file.
        path: PathBuf,
        /// The record, from 0.
        record: u64,
        /// Where its label byte lies.
        offset: u64,
        /// The label.
        label: u8,
        /// Labels are below this.
        num_classes: u32,
        /// `data.kind`
        kind: &'static str,
    },
    /// Asked to fetch what is built in.
    #[error("{kind} is built in: there is nothing to fetch")]
    NothingToFetch {
        /// `data.kind`
        kind: &'static str,
    },
    /// The archive cannot be downloaded.
    #[error(
        "cannot download {url}: {reason}; without a network download it elsewhere, put it at {} and run this command \
         again",
        place.display()
    )]
    Unreachable {
        /// What was asked for.
        url: String,
        /// What went wrong.
        reason: String,
        /// Where a copy made by hand is found.
        place: PathBuf,
    },
    /// The archive is not the official one.
    #[error(
        "{}: md5 {found}, expected {expected}: the copy is damaged or is another file: remove it and fetch again",
        path.display()
    )]
    Checksum {
        /// The archive, or its address.
        path: PathBuf,
        /// Its md5.
        found: String,
        /// The official one's md5.
        expected: &'static str,
    },
    /// The archive does not hold what it should.
    #[error("{}: {reason}: not the archive of {kind}", path.display())]
    Archive {
        /// The archive, or its address.
        path: PathBuf,
        /// What is odd.
        reason: String,
        /// `data.kind`
        kind: &'static str,
    },
    /// The destination is there but not whole.
    #[error("{}: already there, and not whole: move it away and run this command again", path.display())]
    InTheWay {
        /// The folder.
        path: PathBuf,
    },
    /// The destination cannot be written.
    #[error("{}: cannot write: {source}", path.display())]
    Write {
        /// What was to be written.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl DataError {
    /// How a process ends that meets this.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::NoPath { .. } | Self::NoFolder { .. } | Self::NoFile { .. } | Self::Read { .. } => ExitCode::NoInput,
            Self::Truncated { .. }
            | Self::WrongCount { .. }
            | Self::BadLabel { .. }
            | Self::Checksum { .. }
            | Self::Archive { .. } => ExitCode::Data,
            Self::NothingToFetch { .. } => ExitCode::Usage,
            Self::Unreachable { .. } => ExitCode::Unavailable,
            Self::InTheWay { .. } | Self::Write { .. } => ExitCode::CantCreate,
        }
    }
}
