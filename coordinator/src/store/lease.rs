//! One coordinator a run: a row with host, process and expiry. SQLite's own locks do not last between transactions,
//! and on a network file system may not hold at all.

use std::path::Path;

use rusqlite::{OptionalExtension, Transaction};
use uuid::Uuid;

use super::StoreError;
use crate::host;

/// How long a lease lasts without renewal, milliseconds. Clocks of hosts that share a run must agree to a few seconds.
const TERM_MS: i64 = 15_000;

/// The right to write a run, held by one process.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    token: String,
}

impl Lease {
    /// Takes a lease that is free, expired, or whose holder is dead.
    pub(super) fn acquire(transaction: &Transaction<'_>, path: &Path, now_ms: i64) -> Result<Self, StoreError> {
        let sql = |error| StoreError::sql(path, error);
        let holder = transaction
            .query_row("SELECT host, namespace, pid, started, expires_ms FROM lease", [], |row| {
                Ok(Holder {
                    host: row.get(0)?,
                    namespace: row.get(1)?,
                    pid: row.get(2)?,
                    started: row.get(3)?,
                    expires_ms: row.get(4)?,
                })
            })
            .optional()
            .map_err(sql)?;
        let run_dir = path.parent().unwrap_or(path).to_owned();
        if let Some(holder) = holder.filter(|holder| holder.holds(now_ms)) {
            return Err(StoreError::Held { run_dir, host: holder.host, pid: holder.pid });
        }
        let lease = Self { token: Uuid::new_v4().to_string() };
        let pid = std::process::id();
        transaction
            .execute(
                "INSERT OR REPLACE INTO lease (id, token, host, namespace, pid, started, expires_ms)
                 VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6)",
                (
                    &lease.token,
                    host::name(),
                    host::namespace(),
                    pid,
                    host::started(pid).unwrap_or_default(),
                    now_ms + TERM_MS,
                ),
            )
            .map_err(sql)?;
        Ok(lease)
    }

    /// Prolongs it. Part of every transaction, so that nothing is written by a coordinator that was replaced.
    pub(super) fn renew(&self, transaction: &Transaction<'_>, path: &Path, now_ms: i64) -> Result<(), StoreError> {
        let renewed = transaction
            .execute("UPDATE lease SET expires_ms = ?1 WHERE token = ?2", (now_ms + TERM_MS, &self.token))
            .map_err(|error| StoreError::sql(path, error))?;
        if renewed == 1 { Ok(()) } else { Err(StoreError::Replaced { path: path.to_owned() }) }
    }

    /// Gives it up.
    pub(super) fn release(&self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        transaction.execute("DELETE FROM lease WHERE token = ?1", [&self.token]).map(drop)
    }
}

struct Holder {
    host: String,
    namespace: String,
    pid: u32,
    started: String,
    expires_ms: i64,
}

impl Holder {
    fn holds(&self, now_ms: i64) -> bool {
        if self.namespace == host::namespace() && self.host == host::name() {
            // A pid alone may be another process by now.
            return host::started(self.pid).is_some_and(|started| started == self.started);
        }
        now_ms < self.expires_ms
    }
}
