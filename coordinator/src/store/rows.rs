//! Rows as they are read: by the artifacts, by the audit, by reports.

use std::fmt;

use lockstep_proto::ids::{Epoch, Generation, Rank, SampleRange, Step, WorkerId};
use lockstep_proto::message::StepTimes;
use rusqlite::{Connection, Row};
use serde::Serialize;

/// A row of `steps`.
#[derive(Clone, Debug, PartialEq)]
pub struct StepRow {
    /// Which.
    pub step: Step,
    /// Its epoch.
    pub epoch: Epoch,
    /// Generation that applied it.
    pub generation: Generation,
    /// Its number of ranks.
    pub world_size: u32,
    /// Learning rate.
    pub lr: f64,
    /// Mean loss of the global batch.
    pub loss: f64,
    /// Fraction wrong.
    pub error: f64,
    /// Samples that count.
    pub samples: u64,
    /// Samples that were left out.
    pub skipped: u64,
    /// Wrong predictions in it.
    pub wrong: u64,
    /// Digest of what loaders delivered.
    pub digest: u64,
    /// First position of its batch.
    pub batch_start: u64,
    /// Seconds since 1970.
    pub committed_at: f64,
    /// Slowest rank's seconds.
    pub times: StepTimes,
    /// Least share of a rank's chunks that lay ready; `None` where nothing is read ahead.
    pub ready: Option<f64>,
}

impl StepRow {
    /// Images a second of all ranks together; 0 when the step took no time.
    pub fn images_per_s(&self) -> f64 {
        if self.times.wall > 0.0 { self.samples as f64 / self.times.wall } else { 0.0 }
    }

    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let digest: String = row.get(9)?;
        let digest = u64::from_str_radix(&digest, 16)
            .map_err(|error| rusqlite::Error::FromSqlConversionFailure(9, rusqlite::types::Type::Text, error.into()))?;
        Ok(Self {
            step: Step(count(row, 0)?),
            epoch: Epoch(count(row, 1)?),
            generation: Generation(count(row, 2)?),
            world_size: row.get(3)?,
            lr: float(row, 4)?,
            loss: float(row, 5)?,
            error: float(row, 6)?,
            samples: count(row, 7)?,
            skipped: count(row, 16)?,
            wrong: count(row, 8)?,
            digest,
            batch_start: count(row, 10)?,
            committed_at: row.get(11)?,
            times: StepTimes {
                data: float(row, 12)?,
                compute: float(row, 13)?,
                comm: float(row, 14)?,
                wall: float(row, 15)?,
            },
            ready: row.get(17)?,
        })
    }
}

/// A row of `epochs`. Empty fields are those that an epoch does not have: training of epoch 0, a test not made.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EpochRow {
    /// 0 before training.
    pub epoch: Epoch,
    /// Its last committed step.
    pub step: Step,
    /// Images trained on since the run began.
    pub images: u64,
    /// Learning rate of its last step.
    pub lr: Option<f64>,
    /// Mean over its samples.
    pub train_loss: Option<f64>,
    /// Fraction wrong of its samples.
    pub train_error: Option<f64>,
    /// Mean over the test set.
    pub test_loss: Option<f64>,
    /// Fraction wrong of the test set.
    pub test_error: Option<f64>,
    /// Fraction of the test set whose label is not among the five best.
    pub test_error_top5: Option<f64>,
    /// Seconds of training since the run began.
    pub seconds: f64,
    /// Of this epoch.
    pub images_per_s: Option<f64>,
    /// Ranks of its last step.
    pub world_size: u32,
    /// Training samples of this epoch that were left out.
    pub skipped: u64,
    /// Test samples that were left out of its evaluation.
    pub test_skipped: u64,
}

/// A row of `ledger`: what one rank was given in one committed step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LedgerRow {
    /// The step.
    pub step: Step,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its generation.
    pub generation: Generation,
    /// Whose rank.
    pub worker: Option<WorkerId>,
    /// The rank.
    pub rank: Rank,
    /// Positions; may be none.
    pub range: SampleRange,
}

/// A row of `events`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EventRow {
    /// From 1.
    pub id: i64,
    /// Seconds since 1970.
    pub time: f64,
    /// `joined`, `generation_opened`, …
    pub kind: String,
    /// Last generation opened.
    pub generation: Generation,
    /// Last committed step.
    pub step: Step,
    /// Whom it is about.
    pub worker: Option<WorkerId>,
    /// Anything more.
    pub detail: serde_json::Value,
}

impl fmt::Display for EventRow {
    /// `lost worker-3 at step 12: reason`, with the file if it is about one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        if let Some(worker) = &self.worker {
            write!(f, " {worker}")?;
        }
        write!(f, " at step {}", self.step)?;
        let text = |key: &str| self.detail.get(key).and_then(serde_json::Value::as_str);
        if let Some(file) = text("file") {
            write!(f, ": {file}")?;
        }
        match text("reason") {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

/// A row of `checkpoints`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CheckpointRow {
    /// The state's step.
    pub step: Step,
    /// Its epoch.
    pub epoch: Epoch,
    /// `checkpoints/step-N`, relative to the run directory.
    pub path: String,
    /// Bytes of all files.
    pub bytes: u64,
    /// Seconds since 1970.
    pub saved_at: f64,
    /// Whether it has the lowest test error.
    pub best: bool,
    /// Seconds since 1970.
    pub deleted_at: Option<f64>,
}

/// SQLite's integers are signed; what we count stays below 2⁶³.
pub(super) fn int(value: u64) -> i64 {
    value as i64
}

pub(super) fn count(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
}

/// SQLite stores NaN as NULL.
fn float(row: &Row<'_>, column: usize) -> rusqlite::Result<f64> {
    Ok(row.get::<_, Option<f64>>(column)?.unwrap_or(f64::NAN))
}

/// Committed steps after `after`, ascending, handed out one by one.
pub fn steps(connection: &Connection, after: Step, mut each: impl FnMut(StepRow)) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(
        "SELECT step, epoch, generation, world_size, lr, loss, error, samples, wrong, digest, batch_start,
                committed_at, data_s, compute_s, comm_s, wall_s, skipped, data_ready
         FROM steps WHERE step > ?1 ORDER BY step",
    )?;
    let mut rows = statement.query([int(after.0)])?;
    while let Some(row) = rows.next()? {
        each(StepRow::read(row)?);
    }
    Ok(())
}

/// The whole ledger, by step and rank, handed out row by row: it may be long.
pub fn ledger(connection: &Connection, mut each: impl FnMut(LedgerRow)) -> rusqlite::Result<()> {
    let mut statement = connection
        .prepare("SELECT step, epoch, generation, worker, rank, start, len FROM ledger ORDER BY step, rank, start")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        each(LedgerRow {
            step: Step(count(row, 0)?),
            epoch: Epoch(count(row, 1)?),
            generation: Generation(count(row, 2)?),
            worker: row.get::<_, Option<String>>(3)?.map(WorkerId),
            rank: Rank(row.get(4)?),
            range: SampleRange { start: count(row, 5)?, len: count(row, 6)? },
        });
    }
    Ok(())
}

/// All epochs, ascending.
pub fn epochs(connection: &Connection) -> rusqlite::Result<Vec<EpochRow>> {
    let mut statement = connection.prepare_cached(
        "SELECT epoch, step, images, lr, train_loss, train_error, test_loss, test_error, test_error_top5, seconds,
                images_per_s, world_size, skipped, test_skipped
         FROM epochs ORDER BY epoch",
    )?;
    let rows = statement.query_map([], |row| {
        Ok(EpochRow {
            epoch: Epoch(count(row, 0)?),
            step: Step(count(row, 1)?),
            images: count(row, 2)?,
            lr: row.get(3)?,
            train_loss: row.get(4)?,
            train_error: row.get(5)?,
            test_loss: row.get(6)?,
            test_error: row.get(7)?,
            test_error_top5: row.get(8)?,
            seconds: row.get(9)?,
            images_per_s: row.get(10)?,
            world_size: row.get(11)?,
            skipped: count(row, 12)?,
            test_skipped: count(row, 13)?,
        })
    })?;
    rows.collect()
}

/// Events after the one numbered `after`, ascending.
pub fn events(connection: &Connection, after: i64) -> rusqlite::Result<Vec<EventRow>> {
    let mut statement = connection.prepare_cached(
        "SELECT id, time, kind, generation, step, worker, detail FROM events WHERE id > ?1 ORDER BY id",
    )?;
    let rows = statement.query_map([after], |row| {
        let detail: String = row.get(6)?;
        Ok(EventRow {
            id: row.get(0)?,
            time: row.get(1)?,
            kind: row.get(2)?,
            generation: Generation(count(row, 3)?),
            step: Step(count(row, 4)?),
            worker: row.get::<_, Option<String>>(5)?.map(WorkerId),
            detail: serde_json::from_str(&detail).unwrap_or(serde_json::Value::String(detail)),
        })
    })?;
    rows.collect()
}

/// All checkpoints ever saved, ascending by step.
pub fn checkpoints(connection: &Connection) -> rusqlite::Result<Vec<CheckpointRow>> {
    let mut statement = connection
        .prepare("SELECT step, epoch, path, bytes, saved_at, best, deleted_at FROM checkpoints ORDER BY step")?;
    let rows = statement.query_map([], |row| {
        Ok(CheckpointRow {
            step: Step(count(row, 0)?),
            epoch: Epoch(count(row, 1)?),
            path: row.get(2)?,
            bytes: count(row, 3)?,
            saved_at: row.get(4)?,
            best: row.get(5)?,
            deleted_at: row.get(6)?,
        })
    })?;
    rows.collect()
}
