//! How far a run of a sweep is, read from its directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lockstep_coordinator::run_dir;
use lockstep_coordinator::store::{FILE_NAME, RunReader, StoreError};
use lockstep_proto::exit::ExitCode;
use serde::{Deserialize, Serialize};

/// How far a run is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum RunState {
    /// Nothing is there.
    Absent,
    /// Begun, and not finished: it runs, or was cut off.
    Partial {
        /// The last committed step.
        step: u64,
    },
    /// All steps are done.
    Done,
    /// It ended with an error when it was last tried, or cannot be read.
    Failed {
        /// The last committed step.
        step: u64,
        /// What it exited with.
        code: u8,
        /// What it said.
        reason: String,
    },
}

impl RunState {
    /// One word for a list, with the step where there is one.
    pub fn describe(&self) -> String {
        match self {
            Self::Absent => "absent".to_owned(),
            Self::Partial { step } => format!("partial (step {step})"),
            Self::Done => "done".to_owned(),
            Self::Failed { code, .. } => format!("failed ({code})"),
        }
    }
}

/// Reads the state of a run directory of a sweep.
pub fn state(dir: &Path) -> RunState {
    let step = match read(dir) {
        Ok(Some(Progress::Done)) => return RunState::Done,
        Ok(None) => None,
        Ok(Some(Progress::Step(step))) => Some(step),
        Err(error) => {
            return RunState::Failed { step: 0, code: error.exit_code().code(), reason: error.to_string() };
        }
    };
    match (Mark::read(dir), step) {
        (Some(Mark { code, reason }), step) => RunState::Failed { step: step.unwrap_or(0), code, reason },
        (None, Some(step)) => RunState::Partial { step },
        (None, None) => RunState::Absent,
    }
}

enum Progress {
    Done,
    Step(u64),
}

fn read(dir: &Path) -> Result<Option<Progress>, StoreError> {
    if !run_dir::holds_run(dir) {
        return Ok(None);
    }
    if !dir.join(FILE_NAME).exists() {
        return Ok(Some(Progress::Step(0)));
    }
    let reader = match RunReader::open(dir) {
        Ok(reader) => reader,
        // Cut off while it was made: a coordinator makes it anew.
        Err(StoreError::Schema { found: 0, .. }) => return Ok(Some(Progress::Step(0))),
        Err(error) => return Err(error),
    };
    Ok(Some(match reader.final_state_sha256()? {
        Some(_) => Progress::Done,
        None => Progress::Step(reader.last_step()?.0),
    }))
}

/// What a failed run leaves beside its directory, `seed-<k>.failed`: nothing inside it says why the command ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// What it exited with.
    pub(super) code: u8,
    /// The last it said.
    pub(super) reason: String,
}

impl Mark {
    /// A mark for an end with this code.
    pub(super) fn new(code: ExitCode, reason: &str) -> Self {
        Self { code: code.code(), reason: reason.to_owned() }
    }

    fn path(dir: &Path) -> PathBuf {
        dir.with_extension("failed")
    }

    /// The mark of a run; `None` when there is none, or none that can be read.
    fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(Self::path(dir)).ok()?).ok()
    }

    /// Leaves it.
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        fs::write(Self::path(dir), serde_json::to_vec(self)?)
    }

    /// Removes it, if it is there.
    pub(super) fn remove(dir: &Path) -> io::Result<()> {
        match fs::remove_file(Self::path(dir)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_decides() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("seed-0");
        assert_eq!(state(&dir), RunState::Absent);
        fs::create_dir(&dir).unwrap();
        assert_eq!(state(&dir), RunState::Absent);
        fs::write(dir.join("recipe.toml"), "").unwrap();
        assert_eq!(state(&dir), RunState::Partial { step: 0 });
        // SQLite takes an empty file for a new database.
        fs::write(dir.join(FILE_NAME), "").unwrap();
        assert_eq!(state(&dir), RunState::Partial { step: 0 });
        Mark::new(ExitCode::Software, "loss is NaN").write(&dir).unwrap();
        let failed = RunState::Failed { step: 0, code: 70, reason: "loss is NaN".into() };
        assert_eq!(state(&dir), failed);
        Mark::remove(&dir).unwrap();
        Mark::remove(&dir).unwrap();
        assert_eq!(state(&dir), RunState::Partial { step: 0 });
        fs::write(dir.join(FILE_NAME), "this is no database, whatever its name says").unwrap();
        assert!(matches!(state(&dir), RunState::Failed { code: 65, .. }), "{:?}", state(&dir));
    }
}
