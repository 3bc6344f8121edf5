//! How a command fails: a code of the table and a reason for a person. The one place where errors become exit codes.

use std::fmt;
use std::path::Path;

use lockstep_coordinator::CoordinatorError;
use lockstep_coordinator::run_dir::RunDirError;
use lockstep_coordinator::store::StoreError;
use lockstep_data::DataError;
use lockstep_proto::exit::ExitCode;
use lockstep_proto::recipe::RecipeError;

/// The end of a command that did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What the process exits with.
    pub code: ExitCode,
    /// Names the thing and the remedy.
    pub reason: String,
}

impl Failure {
    /// A failure with this code, for this reason.
    pub fn new(code: ExitCode, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }

    /// Something that is needed cannot be read.
    pub fn unreadable(path: &Path, error: impl fmt::Display) -> Self {
        Self::new(ExitCode::NoInput, format!("cannot read {}: {error}", path.display()))
    }

    /// Something cannot be written.
    pub fn unwritable(path: &Path, error: impl fmt::Display) -> Self {
        Self::new(ExitCode::CantCreate, format!("cannot write {}: {error}", path.display()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl From<RecipeError> for Failure {
    fn from(error: RecipeError) -> Self {
        Self::new(error.exit_code(), error.to_string())
    }
}

impl From<DataError> for Failure {
    fn from(error: DataError) -> Self {
        Self::new(error.exit_code(), error.to_string())
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::new(error.exit_code(), error.to_string())
    }
}

impl From<CoordinatorError> for Failure {
    fn from(error: CoordinatorError) -> Self {
        Self::new(error.exit_code(), error.to_string())
    }
}

impl From<RunDirError> for Failure {
    fn from(error: RunDirError) -> Self {
        Self::new(error.exit_code(), error.to_string())
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        let code = match status.code() {
            tonic::Code::Unavailable | tonic::Code::DeadlineExceeded => ExitCode::Unavailable,
            tonic::Code::Unauthenticated | tonic::Code::PermissionDenied => ExitCode::NoPermission,
            tonic::Code::Unimplemented | tonic::Code::InvalidArgument => ExitCode::Protocol,
            _ => ExitCode::Software,
        };
        Self::new(code, format!("coordinator: {}", status.message()))
    }
}
