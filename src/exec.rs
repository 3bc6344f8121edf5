//! Finding `lockstep-worker`, and becoming it.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use lockstep_proto::exit::ExitCode;

use crate::failure::Failure;

/// Names the worker's executable, when it is not beside this one.
pub const WORKER_VARIABLE: &str = "LOCKSTEP_WORKER";
const NAME: &str = "lockstep-worker";

/// The worker's executable: `LOCKSTEP_WORKER`, else beside this one.
///
/// # Errors
/// When it is not there (78).
pub fn worker_path() -> Result<PathBuf, Failure> {
    let missing = |path: &std::path::Path, why: &str| {
        let reason = format!("{}: no such file{why}: build it with `cargo xtask build`", path.display());
        Failure::new(ExitCode::Config, reason)
    };
    if let Some(path) = std::env::var_os(WORKER_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from) {
        return if path.is_file() { Ok(path) } else { Err(missing(&path, " (LOCKSTEP_WORKER)")) };
    }
    let own = std::env::current_exe().map_err(|error| {
        Failure::new(ExitCode::Config, format!("cannot tell where this program is: {error}: set {WORKER_VARIABLE}"))
    })?;
    let path = own.with_file_name(NAME);
    if path.is_file() { Ok(path) } else { Err(missing(&path, ", and LOCKSTEP_WORKER names none")) }
}

/// Becomes `lockstep-worker SUBCOMMAND ARGS`; returns only when that fails.
pub fn worker(subcommand: &str, args: &[OsString]) -> Failure {
    worker_with(subcommand, args, None)
}

/// The same, with a variable set for it.
pub fn worker_with(subcommand: &str, args: &[OsString], variable: Option<(&str, String)>) -> Failure {
    match worker_path() {
        Err(failure) => failure,
        Ok(path) => {
            let error = Command::new(&path).arg(subcommand).args(args).envs(variable).exec();
            Failure::new(ExitCode::Config, format!("cannot start {}: {error}", path.display()))
        }
    }
}
