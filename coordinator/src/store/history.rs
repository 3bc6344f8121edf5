//! What a store knows when a coordinator starts on it.

use std::path::Path;

use lockstep_proto::ids::{Epoch, Generation, Lineage, StateId, Step};
use lockstep_proto::manifest::Manifest;
use lockstep_proto::message::DataIdentity;
use rusqlite::{Connection, OptionalExtension};

use super::rows::count;
use crate::engine::{History, StoredCheckpoint};

/// A checkpoint that does not count, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadCheckpoint {
    /// `step-N`.
    pub dir: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Reads the history; proves every checkpoint on disk. Bad ones are left out and listed.
pub(super) fn load(connection: &Connection, run_dir: &Path) -> rusqlite::Result<(History, Vec<BadCheckpoint>)> {
    let (lineage, data, isa, canary, finished) =
        connection.query_row("SELECT lineage, data, isa, canary, finished_step FROM run", [], |row| {
            let data: Option<String> = row.get(1)?;
            let isa: Option<String> = row.get(2)?;
            let canary: Option<String> = row.get(3)?;
            let finished: Option<i64> = row.get(4)?;
            Ok((Lineage(count(row, 0)?), data, isa, canary, finished))
        })?;
    let settled = match (data, isa) {
        (Some(data), Some(isa)) => {
            let data: DataIdentity = serde_json::from_str(&data).map_err(|error| {
                rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, error.into())
            })?;
            Some((data, isa, canary))
        }
        _ => None,
    };
    let generation = connection
        .query_row("SELECT IFNULL(MAX(generation), 0) FROM generations", [], |row| count(row, 0).map(Generation))?;
    let world_size = connection.query_row(
        "SELECT COUNT(*) FROM generation_members WHERE generation = ?1",
        [super::rows::int(generation.0)],
        |row| row.get(0),
    )?;
    let splits = splits(connection, generation)?;
    let committed =
        connection.query_row("SELECT IFNULL(MAX(step), 0) FROM steps", [], |row| count(row, 0).map(Step))?;
    let spans = all(connection, "SELECT MIN(step), generation FROM steps GROUP BY generation ORDER BY 1", |row| {
        Ok((Step(count(row, 0)?), Generation(count(row, 1)?)))
    })?;
    let errors =
        all(connection, "SELECT wrong, samples FROM steps ORDER BY step", |row| Ok((count(row, 0)?, count(row, 1)?)))?;
    let evaluated = all(connection, "SELECT epoch FROM evaluations ORDER BY epoch", |row| count(row, 0).map(Epoch))?;
    let best = connection
        .query_row(
            "SELECT step, error FROM evaluations WHERE error IS NOT NULL ORDER BY error, step LIMIT 1",
            [],
            |row| Ok((Step(count(row, 0)?), row.get(1)?)),
        )
        .optional()?;
    let (checkpoints, bad) = checkpoints(connection, run_dir)?;
    let history = History {
        settled,
        generation,
        world_size,
        splits,
        lineage,
        committed,
        spans,
        errors,
        evaluated,
        best,
        checkpoints,
        finished: finished.is_some_and(|step| step >= 0),
    };
    Ok((history, bad))
}

/// How the steps of a generation split, where not evenly.
fn splits(connection: &Connection, generation: Generation) -> rusqlite::Result<Vec<(Step, Vec<u64>)>> {
    #[derive(serde::Deserialize)]
    struct Detail {
        from: Step,
        ns_a_chunk: Vec<u64>,
    }
    connection
        .prepare("SELECT detail FROM events WHERE kind = 'split' AND generation = ?1 ORDER BY id")?
        .query_map([super::rows::int(generation.0)], |row| {
            let detail: String = row.get(0)?;
            let Detail { from, ns_a_chunk } = serde_json::from_str(&detail).map_err(|error| {
                rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, error.into())
            })?;
            Ok((from, ns_a_chunk))
        })?
        .collect()
}

fn checkpoints(
    connection: &Connection,
    run_dir: &Path,
) -> rusqlite::Result<(Vec<StoredCheckpoint>, Vec<BadCheckpoint>)> {
    let rows = all(
        connection,
        "SELECT c.step, c.epoch, c.path, c.best, c.lineage, c.generation, s.generation
         FROM checkpoints AS c LEFT JOIN steps AS s ON s.step = c.step
         WHERE c.deleted_at IS NULL ORDER BY c.step",
        |row| {
            let state = StateId {
                lineage: Lineage(count(row, 4)?),
                generation: Generation(count(row, 5)?),
                step: Step(count(row, 0)?),
            };
            let path: String = row.get(2)?;
            let applied: Option<i64> = row.get(6)?;
            let dir = path.rsplit('/').next().unwrap_or_default().to_owned();
            let stored = StoredCheckpoint { state, epoch: Epoch(count(row, 1)?), dir, best: row.get(3)? };
            Ok((stored, path, applied))
        },
    )?;
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for (stored, path, applied) in rows {
        // Step 0 is in every history; any other state only if its generation applied that step.
        let known = stored.state.step == Step(0) || applied == Some(stored.state.generation.0 as i64);
        let reason = match Manifest::verify(&run_dir.join(&path)) {
            Err(error) => error.to_string(),
            Ok(manifest) if manifest.state() != stored.state => {
                format!("{path} holds {}, the run recorded {}", manifest.state(), stored.state)
            }
            Ok(_) if !known => format!("{path} holds {}, which is not in the history of the run", stored.state),
            Ok(_) => {
                good.push(stored);
                continue;
            }
        };
        tracing::warn!(checkpoint = stored.dir, reason, "checkpoint does not load, an older one is used");
        bad.push(BadCheckpoint { dir: stored.dir, reason });
    }
    Ok((good, bad))
}

fn all<T>(
    connection: &Connection,
    sql: &str,
    read: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Vec<T>> {
    connection.prepare(sql)?.query_map([], read)?.collect()
}
