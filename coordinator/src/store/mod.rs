//! `run.db`: the truth of a run. One process writes it, under a lease; anyone may read it.
//!
//! ```text
//! engine ─Persist─► runtime ─► writer thread ─ one transaction ─► run.db ─► metrics.jsonl, epochs.csv, tensorboard/
//!                       ◄───── Persisted ───────────────────────────┘
//! ```

mod apply;
mod error;
mod history;
mod lease;
mod reader;
mod rows;
mod schema;
mod writer;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};
use serde_json::json;

pub use error::StoreError;
pub use history::BadCheckpoint;
pub use reader::RunReader;
pub use rows::{CheckpointRow, EpochRow, EventRow, LedgerRow, StepRow};
pub use schema::SCHEMA_VERSION;
pub(crate) use writer::{Answer, Writer};
pub use writer::{Entry, Hurdle, Writing};

use crate::clock;
use crate::engine::{History, Record};
use crate::host;

/// Name of the file in the run directory.
pub const FILE_NAME: &str = "run.db";

/// The store, opened for writing: this process holds the lease.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    path: PathBuf,
    run_id: String,
    lease: lease::Lease,
    applier: apply::Applier,
}

impl Store {
    /// Opens `run_dir/run.db`, creating it when it is not there, and takes its lease.
    ///
    /// # Errors
    /// When another coordinator holds it, another version wrote it, it is damaged, or it cannot be written.
    pub fn open(run_dir: &Path) -> Result<Self, StoreError> {
        let path = run_dir.join(FILE_NAME);
        let sql = |error| StoreError::sql(&path, error);
        let mut connection = Connection::open(&path).map_err(sql)?;
        connection.busy_timeout(Duration::from_secs(10)).map_err(sql)?;
        // The journal mode of a file that another program version wrote is none of our business.
        let found = schema::version(&connection).map_err(sql)?;
        if !(0..=SCHEMA_VERSION).contains(&found) {
            return Err(StoreError::Schema { path, found });
        }
        // The write-ahead log needs memory shared by all users of the file: not to be had over a network.
        let journal = if host::is_network(run_dir) { "TRUNCATE" } else { "WAL" };
        connection
            .pragma_update_and_check(None, "journal_mode", journal, |row| row.get::<_, String>(0))
            .map_err(sql)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(sql)?;
        connection.pragma_update(None, "foreign_keys", "OFF").map_err(sql)?;

        let now = clock::unix_s();
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
        schema::prepare(&tx, &path, &uuid::Uuid::new_v4().to_string(), now)?;
        let lease = lease::Lease::acquire(&tx, &path, clock::unix_ms())?;
        // Whoever was connected to the coordinator before this one is not connected to this one.
        tx.execute("UPDATE members SET left_at = ?1, reason = 'the coordinator ended' WHERE left_at IS NULL", [now])
            .map_err(sql)?;
        let started = json!({ "host": host::name(), "pid": std::process::id() });
        apply::event(&tx, now, "coordinator_started", None, started).map_err(sql)?;
        let run_id = tx.query_row("SELECT run_id FROM run", [], |row| row.get(0)).map_err(sql)?;
        tx.commit().map_err(sql)?;
        Ok(Self { connection, path, run_id, lease, applier: apply::Applier::default() })
    }

    /// Identity of the run: made with the file, the same for its life.
    pub fn run_id(&self) -> &str {
        &self.run_id
    }

    /// The hash of the final state; `None` while the run is not finished.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn final_state_sha256(&self) -> Result<Option<String>, StoreError> {
        self.connection
            .query_row("SELECT state_sha256 FROM run", [], |row| row.get(0))
            .map_err(|error| StoreError::sql(&self.path, error))
    }

    /// What is known of the run. Checkpoints are proved against their manifests; those that fail are left out, and
    /// leave an event `checkpoint_bad`.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn load_history(&mut self) -> Result<(History, Vec<BadCheckpoint>), StoreError> {
        let sql = |error| StoreError::sql(&self.path, error);
        let run_dir = self.path.parent().unwrap_or(Path::new("."));
        let (history, bad) = history::load(&self.connection, run_dir).map_err(sql)?;
        if !bad.is_empty() {
            let tx = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
            for bad in &bad {
                let detail = json!({ "path": apply::path(&bad.dir), "reason": bad.reason });
                apply::event(&tx, clock::unix_s(), "checkpoint_bad", None, detail).map_err(sql)?;
            }
            tx.commit().map_err(sql)?;
        }
        Ok((history, bad))
    }

    /// Writes records in one transaction, which also prolongs the lease: all of them, or none.
    ///
    /// # Errors
    /// When the file cannot be written or another coordinator took over. The store is of no use afterwards.
    pub fn write<'a>(&mut self, records: impl IntoIterator<Item = &'a Record>) -> Result<(), StoreError> {
        let sql = |error| StoreError::sql(&self.path, error);
        let tx = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
        self.lease.renew(&tx, &self.path, clock::unix_ms())?;
        let now = clock::unix_s();
        for record in records {
            self.applier.apply(&tx, record, now).map_err(sql)?;
        }
        tx.commit().map_err(sql)
    }

    /// Gives the lease up and closes the file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn close(mut self) -> Result<(), StoreError> {
        let sql = |error| StoreError::sql(&self.path, error);
        let tx = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
        self.lease.release(&tx).map_err(sql)?;
        tx.commit().map_err(sql)
    }

    /// For reading what was just written.
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// `run.db`.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Reading helpers, for the artifacts.
pub(crate) mod read {
    pub(crate) use super::rows::{epochs, events, steps};
}
