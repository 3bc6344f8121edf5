//! Reading a run: status, audit, report. Never writes, needs no lease.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_proto::ids::Step;
use lockstep_proto::message::DataIdentity;
use rusqlite::{Connection, OpenFlags};

use super::{CheckpointRow, EpochRow, EventRow, FILE_NAME, LedgerRow, StepRow, StoreError, rows, schema};

/// `run.db`, opened for reading.
#[derive(Debug)]
pub struct RunReader {
    connection: Connection,
    path: PathBuf,
}

impl RunReader {
    /// Opens the store of a run directory.
    ///
    /// # Errors
    /// When it is not there, damaged, or of a newer schema version.
    pub fn open(run_dir: &Path) -> Result<Self, StoreError> {
        let path = run_dir.join(FILE_NAME);
        let sql = |error| StoreError::sql(&path, error);
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&path, flags).map_err(sql)?;
        connection.busy_timeout(Duration::from_secs(10)).map_err(sql)?;
        schema::adapt(&connection, &path)?;
        Ok(Self { connection, path })
    }

    /// Committed steps, ascending, handed out one by one.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn each_step(&self, each: impl FnMut(StepRow)) -> Result<(), StoreError> {
        rows::steps(&self.connection, Step(0), each).map_err(|error| self.error(error))
    }

    /// The last committed step; 0 before the first.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn last_step(&self) -> Result<Step, StoreError> {
        let last: Option<i64> = self
            .connection
            .query_row("SELECT max(step) FROM steps", [], |row| row.get(0))
            .map_err(|error| self.error(error))?;
        Ok(Step(last.map_or(0, i64::unsigned_abs)))
    }

    /// The ledger, by step and rank, handed out row by row.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn each_ledger_row(&self, each: impl FnMut(LedgerRow)) -> Result<(), StoreError> {
        rows::ledger(&self.connection, each).map_err(|error| self.error(error))
    }

    /// All epochs, ascending.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn epochs(&self) -> Result<Vec<EpochRow>, StoreError> {
        rows::epochs(&self.connection).map_err(|error| self.error(error))
    }

    /// Events after the one numbered `after` (0: all), ascending.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn events(&self, after: i64) -> Result<Vec<EventRow>, StoreError> {
        rows::events(&self.connection, after).map_err(|error| self.error(error))
    }

    /// All checkpoints ever saved, ascending.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn checkpoints(&self) -> Result<Vec<CheckpointRow>, StoreError> {
        rows::checkpoints(&self.connection).map_err(|error| self.error(error))
    }

    /// Identity of the run.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn run_id(&self) -> Result<String, StoreError> {
        self.connection.query_row("SELECT run_id FROM run", [], |row| row.get(0)).map_err(|error| self.error(error))
    }

    /// The data set that the first worker settled; `None` before that.
    ///
    /// # Errors
    /// When the file cannot be read, or holds something else there.
    pub fn data(&self) -> Result<Option<DataIdentity>, StoreError> {
        let text: Option<String> = self
            .connection
            .query_row("SELECT data FROM run", [], |row| row.get(0))
            .map_err(|error| self.error(error))?;
        text.map(|text| serde_json::from_str(&text)).transpose().map_err(|error| StoreError::Malformed {
            path: self.path.clone(),
            what: format!("run.data is not a data set's identity: {error}"),
        })
    }

    /// The hash of the final state; `None` while the run is not finished.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn final_state_sha256(&self) -> Result<Option<String>, StoreError> {
        self.connection
            .query_row("SELECT state_sha256 FROM run", [], |row| row.get(0))
            .map_err(|error| self.error(error))
    }

    fn error(&self, error: rusqlite::Error) -> StoreError {
        StoreError::sql(&self.path, error)
    }
}
