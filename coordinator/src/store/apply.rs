//! Records become rows. Everything here happens inside a transaction of the writer.

use std::collections::HashMap;

use lockstep_proto::ids::{Epoch, Generation, Lineage, SampleRange, StateId, Step, WorkerId};
use lockstep_proto::message::{Member, Skipped};
use rusqlite::{OptionalExtension, Transaction};
use serde_json::{Value, json};

use super::rows::int;
use crate::engine::{CommittedStep, Record};

/// Turns records into rows, and remembers which splits it wrote.
#[derive(Debug, Default)]
pub(super) struct Applier {
    splits: HashMap<(Generation, Vec<(i64, i64)>), i64>,
}

impl Applier {
    /// Writes one record. A failed transaction must not be followed by another with the same applier.
    pub(super) fn apply(&mut self, tx: &Transaction<'_>, record: &Record, now: f64) -> rusqlite::Result<()> {
        match record {
            Record::Settled { worker, data, isa, canary } => {
                let text = json!(data).to_string();
                tx.execute("UPDATE run SET data = ?1, isa = ?2, canary = ?3", (&text, isa, canary))?;
                event(tx, now, "settled", Some(worker), json!({ "data": data, "isa": isa, "canary": canary }))
            }
            Record::Joined { worker, host, pid, devices } => {
                left(tx, now, worker, "replaced by a new connection")?;
                tx.execute(
                    "INSERT INTO members (worker, host, pid, devices, joined_at) VALUES (?1, ?2, ?3, ?4, ?5)",
                    (&worker.0, host, pid, json!(devices).to_string(), now),
                )?;
                let detail = json!({ "host": host, "pid": pid, "devices": devices });
                event(tx, now, "joined", Some(worker), detail)
            }
            Record::Left { worker, reason } => {
                left(tx, now, worker, reason)?;
                event(tx, now, "left", Some(worker), json!({ "reason": reason }))
            }
            Record::Opened { generation, lineage, base, members } => {
                opened(tx, now, (*generation, *lineage), *base, members)
            }
            Record::Committed(step) => self.committed(tx, now, step),
            Record::Evaluated { epoch, step, generation, world_size, loss, error, error_top5, skipped } => {
                tx.execute(
                    "INSERT OR REPLACE INTO evaluations
                     (epoch, step, generation, world_size, loss, error, error_top5, evaluated_at, skipped)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                    rusqlite::params![
                        int(epoch.0),
                        int(step.0),
                        int(generation.0),
                        world_size,
                        loss,
                        error,
                        error_top5,
                        now,
                        skipped.len() as i64,
                    ],
                )?;
                left_out(tx, now, (*generation, *step), "test", (*epoch, skipped))?;
                refresh_epoch(tx, *epoch)?;
                let detail = json!({ "epoch": epoch, "evaluated_step": step, "loss": loss, "error": error });
                event(tx, now, "evaluated", None, detail)
            }
            Record::EpochEnded { epoch, .. } => refresh_epoch(tx, *epoch),
            Record::CheckpointSaved { state, epoch, dir, bytes, best } => {
                saved(tx, now, *state, *epoch, (dir, *bytes, *best))
            }
            Record::CheckpointDeleted { dir } => {
                let sql = "UPDATE checkpoints SET deleted_at = ?1 WHERE path = ?2 AND deleted_at IS NULL";
                tx.execute(sql, (now, path(dir)))?;
                event(tx, now, "checkpoint_deleted", None, json!({ "path": path(dir) }))
            }
            Record::RolledBack { from, to, lineage } => {
                self.splits.clear();
                rolled_back(tx, now, *from, *to, *lineage)
            }
            Record::Split { generation, from, costs } => tx
                .execute(
                    "INSERT INTO events (time, kind, generation, step, detail)
                     VALUES (?1, 'split', ?2, IFNULL((SELECT MAX(step) FROM steps), 0), ?3)",
                    (now, int(generation.0), json!({ "from": from, "ns_a_chunk": costs }).to_string()),
                )
                .map(drop),
            Record::Note { kind, generation, step, worker, detail } => tx
                .prepare_cached(
                    "INSERT INTO events (time, kind, generation, step, worker, detail) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                )?
                .execute((
                    now,
                    kind,
                    int(generation.0),
                    int(step.0),
                    worker.as_ref().map(|worker| &worker.0),
                    detail.to_string(),
                ))
                .map(drop),
            Record::Finished { step, state_sha256 } => {
                tx.execute("UPDATE run SET finished_step = ?1, state_sha256 = ?2", (int(step.0), state_sha256))?;
                event(tx, now, "finished", None, json!({ "state_sha256": state_sha256 }))
            }
        }
    }

    fn committed(&mut self, tx: &Transaction<'_>, now: f64, step: &CommittedStep) -> rusqlite::Result<()> {
        let start = step.shards.first().map_or(0, |shard| shard.start);
        let split = self.split(tx, step.generation, start, &step.shards)?;
        let error = if step.samples > 0 { step.wrong as f64 / step.samples as f64 } else { 0.0 };
        tx.prepare_cached(
            "INSERT INTO steps (step, epoch, generation, world_size, lr, loss, error, samples, digest, committed_at,
                                wrong, batch_start, split, data_s, compute_s, comm_s, wall_s, skipped, data_ready)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)",
        )?
        .execute(rusqlite::params![
            int(step.step.0),
            int(step.epoch.0),
            int(step.generation.0),
            step.shards.len() as i64,
            step.lr,
            step.loss,
            error,
            int(step.samples),
            format!("{:016x}", step.digest),
            now,
            int(step.wrong),
            int(start),
            split,
            step.times.data,
            step.times.compute,
            step.times.comm,
            step.times.wall,
            step.skipped.len() as i64,
            step.ready,
        ])?;
        left_out(tx, now, (step.generation, step.step), "train", (step.epoch, &step.skipped))
    }

    /// The split of a batch, relative to the batch's start: steps that were cut alike share one.
    fn split(
        &mut self,
        tx: &Transaction<'_>,
        generation: Generation,
        start: u64,
        shards: &[SampleRange],
    ) -> rusqlite::Result<i64> {
        let cuts: Vec<(i64, i64)> =
            shards.iter().map(|shard| (int(shard.start) - int(start), int(shard.len))).collect();
        if let Some(split) = self.splits.get(&(generation, cuts.clone())) {
            return Ok(*split);
        }
        tx.execute(
            "INSERT INTO splits (generation, world_size) VALUES (?1, ?2)",
            (int(generation.0), shards.len() as i64),
        )?;
        let split = tx.last_insert_rowid();
        let mut statement =
            tx.prepare_cached("INSERT INTO split_shards (split, rank, offset, len) VALUES (?1, ?2, ?3, ?4)")?;
        for (rank, (offset, len)) in cuts.iter().enumerate() {
            statement.execute((split, rank as i64, offset, len))?;
        }
        self.splits.insert((generation, cuts), split);
        Ok(split)
    }
}

/// `checkpoints/step-N`.
pub(super) fn path(dir: &str) -> String {
    format!("checkpoints/{dir}")
}

/// An event of now: the last generation opened, the last step committed.
pub(super) fn event(
    tx: &Transaction<'_>,
    now: f64,
    kind: &str,
    worker: Option<&WorkerId>,
    detail: Value,
) -> rusqlite::Result<()> {
    tx.prepare_cached(
        "INSERT INTO events (time, kind, generation, step, worker, detail)
         VALUES (?1, ?2, IFNULL((SELECT MAX(generation) FROM generations), 0),
                 IFNULL((SELECT MAX(step) FROM steps), 0), ?3, ?4)",
    )?
    .execute((now, kind, worker.map(|worker| &worker.0), detail.to_string()))
    .map(drop)
}

/// An event for each sample that a step or an evaluation left out.
fn left_out(
    tx: &Transaction<'_>,
    now: f64,
    (generation, step): (Generation, Step),
    split: &str,
    (epoch, skipped): (Epoch, &[Skipped]),
) -> rusqlite::Result<()> {
    if skipped.is_empty() {
        return Ok(());
    }
    let mut statement = tx.prepare_cached(
        "INSERT INTO events (time, kind, generation, step, detail) VALUES (?1, 'sample_skipped', ?2, ?3, ?4)",
    )?;
    for Skipped { position, file, reason } in skipped {
        let detail = json!({ "split": split, "epoch": epoch, "position": position, "file": file, "reason": reason });
        statement.execute((now, int(generation.0), int(step.0), detail.to_string()))?;
    }
    Ok(())
}

fn left(tx: &Transaction<'_>, now: f64, worker: &WorkerId, reason: &str) -> rusqlite::Result<()> {
    let sql = "UPDATE members SET left_at = ?1, reason = ?2 WHERE worker = ?3 AND left_at IS NULL";
    tx.execute(sql, (now, reason, &worker.0)).map(drop)
}

fn opened(
    tx: &Transaction<'_>,
    now: f64,
    (generation, lineage): (Generation, Lineage),
    base: StateId,
    members: &[Member],
) -> rusqlite::Result<()> {
    tx.execute("UPDATE generations SET closed_at = ?1 WHERE closed_at IS NULL", [now])?;
    tx.execute(
        "INSERT INTO generations (generation, lineage, base_lineage, base_generation, base_step, opened_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        (int(generation.0), int(lineage.0), int(base.lineage.0), int(base.generation.0), int(base.step.0), now),
    )?;
    let mut statement = tx.prepare_cached(
        "INSERT INTO generation_members (generation, rank, worker, replica, address) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    for member in members {
        let address = &member.address;
        statement.execute((int(generation.0), member.rank.0, &member.worker.0, member.replica, address))?;
    }
    tx.execute("UPDATE run SET lineage = ?1", [int(lineage.0)])?;
    let detail = json!({ "lineage": lineage, "base_step": base.step, "world_size": members.len() });
    event(tx, now, "generation_opened", None, detail)
}

fn saved(
    tx: &Transaction<'_>,
    now: f64,
    state: StateId,
    epoch: Epoch,
    (dir, bytes, best): (&str, u64, bool),
) -> rusqlite::Result<()> {
    if best {
        tx.execute("UPDATE checkpoints SET best = 0 WHERE best = 1", [])?;
    }
    tx.execute(
        "INSERT OR REPLACE INTO checkpoints (step, epoch, path, bytes, saved_at, best, lineage, generation)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        (
            int(state.step.0),
            int(epoch.0),
            path(dir),
            int(bytes),
            now,
            best,
            int(state.lineage.0),
            int(state.generation.0),
        ),
    )?;
    let detail = json!({ "path": path(dir), "saved_step": state.step, "bytes": bytes, "best": best });
    event(tx, now, "checkpoint_saved", None, detail)
}

fn rolled_back(tx: &Transaction<'_>, now: f64, from: Step, to: Step, lineage: Lineage) -> rusqlite::Result<()> {
    for table in ["steps", "evaluations", "epochs"] {
        tx.execute(&format!("DELETE FROM {table} WHERE step > ?1"), [int(to.0)])?;
    }
    tx.execute("DELETE FROM split_shards WHERE split NOT IN (SELECT split FROM steps)", [])?;
    tx.execute("DELETE FROM splits WHERE split NOT IN (SELECT split FROM steps)", [])?;
    let sql = "UPDATE checkpoints SET deleted_at = ?1, best = 0 WHERE step > ?2 AND deleted_at IS NULL";
    tx.execute(sql, (now, int(to.0)))?;
    tx.execute("UPDATE run SET lineage = ?1, finished_step = NULL, state_sha256 = NULL", [int(lineage.0)])?;
    event(tx, now, "rolled_back", None, json!({ "from": from, "to": to, "lineage": lineage }))
}

/// Computes the row of an epoch from its steps, and from its evaluation if that is of its last step.
fn refresh_epoch(tx: &Transaction<'_>, epoch: Epoch) -> rusqlite::Result<()> {
    let last: Option<(i64, Option<f64>, i64)> = tx
        .query_row(
            "SELECT step, lr, world_size FROM steps WHERE epoch = ?1 ORDER BY step DESC LIMIT 1",
            [int(epoch.0)],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .optional()?;
    let last = match last {
        Some(last) => last,
        // Before training there are no steps; the evaluation says how many ranks made it.
        None => {
            let sql = "SELECT step, NULL, world_size FROM evaluations WHERE epoch = ?1";
            let row = tx.query_row(sql, [int(epoch.0)], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
            match row.optional()? {
                Some(row) => row,
                None => return Ok(()),
            }
        }
    };
    tx.execute(
        "INSERT OR REPLACE INTO epochs (epoch, step, images, lr, train_loss, train_error, test_loss, test_error,
                                        test_error_top5, seconds, images_per_s, world_size, skipped, test_skipped)
         SELECT ?1, ?2, run.images, ?3, own.loss, own.error, test.loss, test.error, test.error_top5, run.seconds,
                own.images / own.seconds, ?4, own.skipped, IFNULL(test.skipped, 0)
         FROM (SELECT IFNULL(SUM(samples), 0) AS images, IFNULL(SUM(wall_s), 0.0) AS seconds
               FROM steps WHERE step <= ?2) AS run,
              (SELECT SUM(loss * samples) / SUM(samples) AS loss, SUM(wrong) * 1.0 / SUM(samples) AS error,
                      SUM(samples) * 1.0 AS images, SUM(wall_s) AS seconds, IFNULL(SUM(skipped), 0) AS skipped
               FROM steps WHERE epoch = ?1) AS own
              LEFT JOIN evaluations AS test ON test.epoch = ?1 AND test.step = ?2",
        (int(epoch.0), last.0, last.1, last.2),
    )
    .map(drop)
}
