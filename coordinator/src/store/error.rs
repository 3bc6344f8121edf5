//! What can go wrong with `run.db`.

use std::path::{Path, PathBuf};

use lockstep_proto::exit::ExitCode;
use rusqlite::ErrorCode;

use super::schema::SCHEMA_VERSION;

/// Why a store cannot be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite failed.
    #[error("{}: {}", path.display(), describe(error))]
    Sql {
        /// The file.
        path: PathBuf,
        /// What it says.
        error: rusqlite::Error,
    },
    /// Written by another version.
    #[error(
        "{} has schema {found}, this version knows up to {SCHEMA_VERSION}; use the lockstep that wrote it, or a newer one",
        path.display()
    )]
    Schema {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
    /// Another coordinator writes this run.
    #[error(
        "run directory {} is held by another coordinator: process {pid} on host {host}; stop that one first",
        run_dir.display()
    )]
    Held {
        /// The run directory.
        run_dir: PathBuf,
        /// Where it runs.
        host: String,
        /// Its process.
        pid: u32,
    },
    /// Another coordinator took the run over.
    #[error("{} was taken over by another coordinator; this one may no longer write it", path.display())]
    Replaced {
        /// The file.
        path: PathBuf,
    },
    /// A value in the file makes no sense.
    #[error("{}: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Table, column and value.
        what: String,
    },
    /// A file beside it cannot be written.
    #[error("cannot write {}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
}

impl StoreError {
    pub(super) fn sql(path: &Path, error: rusqlite::Error) -> Self {
        Self::Sql { path: path.to_owned(), error }
    }

    /// 73 for what cannot be written, 65 for a damaged file, 76 for another version.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Sql { error, .. } => match error.sqlite_error_code() {
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => ExitCode::Data,
                Some(_) => ExitCode::CantCreate,
                None => ExitCode::Data,
            },
            Self::Schema { .. } => ExitCode::Protocol,
            Self::Held { .. } | Self::Replaced { .. } | Self::File { .. } => ExitCode::CantCreate,
            Self::Malformed { .. } => ExitCode::Data,
        }
    }
}

fn describe(error: &rusqlite::Error) -> String {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => "disk full; free some space and resume".to_owned(),
        Some(ErrorCode::ReadOnly) => "cannot be written: it or its folder is read-only".to_owned(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            format!("damaged ({error}); restore it from a copy, or start a new run directory")
        }
        _ => error.to_string(),
    }
}
