//! What a run wrote down: `run.db`, read while it grows.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row};
use serde_json::Value;

/// A row of `events`.
#[derive(Clone, Debug)]
pub struct Event {
    /// `lost`, `complaint`, …
    pub kind: String,
    /// Last committed step.
    pub step: u64,
    /// Whom it is about.
    pub worker: Option<String>,
    /// Anything more.
    pub detail: Value,
}

/// A row of `steps`, as far as time goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Commit {
    /// Which.
    pub step: u64,
    /// By which generation.
    pub generation: u64,
    /// Of how many ranks.
    pub world_size: u64,
    /// Seconds since 1970.
    pub time: f64,
}

/// Reads the database of one run directory.
#[derive(Debug)]
pub struct Watch {
    connection: Connection,
}

impl Watch {
    /// Opens it; the run must have begun.
    pub fn open(run: &Path) -> Result<Self> {
        let path = run.join("run.db");
        let connection = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .with_context(|| format!("cannot open {}", path.display()))?;
        connection.busy_timeout(Duration::from_secs(10))?;
        Ok(Self { connection })
    }

    /// One number; 0 for NULL.
    pub fn count(&self, sql: &str) -> Result<u64> {
        let value: Option<i64> =
            self.connection.query_row(sql, [], |row| row.get(0)).with_context(|| sql.to_owned())?;
        Ok(value.unwrap_or(0).max(0) as u64)
    }

    /// Last committed step.
    pub fn step(&self) -> Result<u64> {
        self.count("SELECT max(step) FROM steps")
    }

    /// The last commit.
    pub fn last_commit(&self) -> Result<Option<Commit>> {
        self.commit("SELECT step, generation, world_size, committed_at FROM steps ORDER BY step DESC LIMIT 1")
    }

    /// The first commit of a later generation.
    pub fn first_commit_beyond(&self, generation: u64) -> Result<Option<Commit>> {
        self.commit(&format!(
            "SELECT step, generation, world_size, committed_at FROM steps WHERE generation > {generation}
             ORDER BY step LIMIT 1"
        ))
    }

    /// One commit.
    pub fn commit(&self, sql: &str) -> Result<Option<Commit>> {
        let read = |row: &Row<'_>| {
            Ok(Commit {
                step: row.get::<_, i64>(0)? as u64,
                generation: row.get::<_, i64>(1)? as u64,
                world_size: row.get::<_, i64>(2)? as u64,
                time: row.get(3)?,
            })
        };
        Ok(self.connection.query_row(sql, [], read).optional()?)
    }

    /// Commits of steps in `from..=to`, in order.
    pub fn commit_times(&self, from: u64, to: u64) -> Result<Vec<(u64, f64)>> {
        let sql = "SELECT step, committed_at FROM steps WHERE step BETWEEN ?1 AND ?2 ORDER BY step";
        let mut statement = self.connection.prepare_cached(sql)?;
        let rows =
            statement.query_map([from as i64, to as i64], |row| Ok((row.get::<_, i64>(0)? as u64, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The median seconds of the last steps that were taken.
    pub fn median_step_s(&self) -> Result<f64> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT wall_s FROM steps WHERE wall_s IS NOT NULL ORDER BY step DESC LIMIT 64")?;
        let mut walls: Vec<f64> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        walls.sort_by(f64::total_cmp);
        Ok(walls.get(walls.len() / 2).copied().unwrap_or(0.0))
    }

    /// The newest generation; 0 before the first.
    pub fn generation(&self) -> Result<u64> {
        self.count("SELECT max(generation) FROM generations")
    }

    /// The state that a generation began with.
    pub fn base_of(&self, generation: u64) -> Result<u64> {
        self.count(&format!("SELECT base_step FROM generations WHERE generation = {generation}"))
    }

    /// Commits by a generation after it had ended, or out of its turn. There must be none.
    pub fn num_stale(&self) -> Result<u64> {
        self.count(
            "SELECT count(*) FROM steps AS s JOIN generations AS g ON g.generation = s.generation + 1
             WHERE s.step > g.base_step OR s.committed_at > g.opened_at + 0.5",
        )
    }

    /// Events after one, oldest first.
    pub fn events_after(&self, id: i64) -> Result<Vec<Event>> {
        let sql = "SELECT kind, step, worker, detail FROM events WHERE id > ?1 ORDER BY id";
        let mut statement = self.connection.prepare_cached(sql)?;
        let rows = statement.query_map([id], |row| {
            Ok(Event {
                kind: row.get(0)?,
                step: row.get::<_, i64>(1)? as u64,
                worker: row.get(2)?,
                detail: serde_json::from_str(&row.get::<_, String>(3)?).unwrap_or(Value::Null),
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The newest event.
    pub fn last_event(&self) -> Result<i64> {
        Ok(self.count("SELECT max(id) FROM events")? as i64)
    }

    /// Times that a worker said that it had joined.
    pub fn joins_of(&self, worker: &str) -> Result<u64> {
        self.count(&format!("SELECT count(*) FROM events WHERE kind = 'joined' AND worker = '{worker}'"))
    }
}
