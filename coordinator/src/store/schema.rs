//! Tables of `run.db`.
//!
//! ```text
//! run ─ lease                              one row each
//! generations ─< generation_members        who was which rank
//!      └──────< splits ─< split_shards     how a batch of one length was cut: shared by all steps that were cut so
//! steps >─ splits                          ledger = steps × split_shards × generation_members, a view
//! evaluations ─ epochs                     epochs is computed from steps and evaluations
//! events   members   checkpoints
//! ```
//! Times are seconds since 1970. Positions and counts are below 2⁶³. `steps.digest` is 16 hex digits.

use std::path::Path;

use rusqlite::{Connection, Transaction};

use super::StoreError;

/// The version that this program writes, and the newest that it reads.
pub const SCHEMA_VERSION: i64 = 2;

const TABLES: &str = "
CREATE TABLE run (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    run_id TEXT NOT NULL,
    created_at REAL NOT NULL,
    lineage INTEGER NOT NULL DEFAULT 0,
    data TEXT,
    isa TEXT,
    canary TEXT,
    finished_step INTEGER,
    state_sha256 TEXT
) STRICT;

CREATE TABLE lease (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    token TEXT NOT NULL,
    host TEXT NOT NULL,
    namespace TEXT NOT NULL,
    pid INTEGER NOT NULL,
    started TEXT NOT NULL,
    expires_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE generations (
    generation INTEGER PRIMARY KEY,
    lineage INTEGER NOT NULL,
    base_lineage INTEGER NOT NULL,
    base_generation INTEGER NOT NULL,
    base_step INTEGER NOT NULL,
    opened_at REAL NOT NULL,
    closed_at REAL
) STRICT;

CREATE TABLE generation_members (
    generation INTEGER NOT NULL REFERENCES generations,
    rank INTEGER NOT NULL,
    worker TEXT NOT NULL,
    replica INTEGER NOT NULL,
    address TEXT NOT NULL,
    PRIMARY KEY (generation, rank)
) STRICT, WITHOUT ROWID;

CREATE TABLE splits (
    split INTEGER PRIMARY KEY,
    generation INTEGER NOT NULL REFERENCES generations,
    world_size INTEGER NOT NULL
) STRICT;

CREATE TABLE split_shards (
    split INTEGER NOT NULL REFERENCES splits,
    rank INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    len INTEGER NOT NULL,
    PRIMARY KEY (split, rank)
) STRICT, WITHOUT ROWID;

CREATE TABLE steps (
    step INTEGER PRIMARY KEY,
    epoch INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    world_size INTEGER NOT NULL,
    lr REAL,
    loss REAL,
    error REAL,
    samples INTEGER NOT NULL,
    digest TEXT NOT NULL,
    committed_at REAL NOT NULL,
    wrong INTEGER NOT NULL,
    batch_start INTEGER NOT NULL,
    split INTEGER NOT NULL REFERENCES splits,
    data_s REAL,
    compute_s REAL,
    comm_s REAL,
    wall_s REAL,
    skipped INTEGER NOT NULL DEFAULT 0,
    data_ready REAL
) STRICT;
CREATE INDEX steps_by_epoch ON steps (epoch);

CREATE VIEW ledger AS
SELECT s.step, s.epoch, s.generation, m.worker, h.rank, s.batch_start + h.offset AS start, h.len
FROM steps AS s
JOIN split_shards AS h ON h.split = s.split
LEFT JOIN generation_members AS m ON m.generation = s.generation AND m.rank = h.rank;

CREATE TABLE evaluations (
    epoch INTEGER PRIMARY KEY,
    step INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    world_size INTEGER NOT NULL,
    loss REAL,
    error REAL,
    error_top5 REAL,
    evaluated_at REAL NOT NULL,
    skipped INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE epochs (
    epoch INTEGER PRIMARY KEY,
    step INTEGER NOT NULL,
    images INTEGER NOT NULL,
    lr REAL,
    train_loss REAL,
    train_error REAL,
    test_loss REAL,
    test_error REAL,
    test_error_top5 REAL,
    seconds REAL NOT NULL,
    images_per_s REAL,
    world_size INTEGER NOT NULL,
    skipped INTEGER NOT NULL DEFAULT 0,
    test_skipped INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    time REAL NOT NULL,
    kind TEXT NOT NULL,
    generation INTEGER NOT NULL,
    step INTEGER NOT NULL,
    worker TEXT,
    detail TEXT NOT NULL
) STRICT;

CREATE TABLE members (
    worker TEXT NOT NULL,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    devices TEXT NOT NULL,
    joined_at REAL NOT NULL,
    left_at REAL,
    reason TEXT
) STRICT;
CREATE INDEX members_by_worker ON members (worker);

CREATE TABLE checkpoints (
    step INTEGER PRIMARY KEY,
    epoch INTEGER NOT NULL,
    path TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    saved_at REAL NOT NULL,
    best INTEGER NOT NULL,
    deleted_at REAL,
    lineage INTEGER NOT NULL,
    generation INTEGER NOT NULL
) STRICT;
";

/// Columns that came with version 2: samples that were left out.
const FROM_1_TO_2: &str = "
ALTER TABLE steps ADD COLUMN skipped INTEGER NOT NULL DEFAULT 0;
ALTER TABLE steps ADD COLUMN data_ready REAL;
ALTER TABLE evaluations ADD COLUMN skipped INTEGER NOT NULL DEFAULT 0;
ALTER TABLE epochs ADD COLUMN skipped INTEGER NOT NULL DEFAULT 0;
ALTER TABLE epochs ADD COLUMN test_skipped INTEGER NOT NULL DEFAULT 0;
";

/// A file of version 1 as readers want it, which must not change it.
const AS_2: &str = "
CREATE TEMP VIEW steps AS SELECT *, 0 AS skipped, NULL AS data_ready FROM main.steps;
CREATE TEMP VIEW evaluations AS SELECT *, 0 AS skipped FROM main.evaluations;
CREATE TEMP VIEW epochs AS SELECT *, 0 AS skipped, 0 AS test_skipped FROM main.epochs;
";

/// Makes a file that is only read look as if it were of this version.
pub(super) fn adapt(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let sql = |error| StoreError::sql(path, error);
    match version(connection).map_err(sql)? {
        SCHEMA_VERSION => Ok(()),
        1 => connection.execute_batch(AS_2).map_err(sql),
        found => Err(StoreError::Schema { path: path.to_owned(), found }),
    }
}

/// The version of a file; 0 for one without tables.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Creates the tables of a new file; brings an older one to this version; refuses what a newer program wrote.
pub(super) fn prepare(transaction: &Transaction<'_>, path: &Path, run_id: &str, now: f64) -> Result<(), StoreError> {
    let sql = |error| StoreError::sql(path, error);
    match version(transaction).map_err(sql)? {
        0 => {
            transaction.execute_batch(TABLES).map_err(sql)?;
            transaction
                .execute("INSERT INTO run (id, run_id, created_at) VALUES (1, ?1, ?2)", (run_id, now))
                .map_err(sql)?;
            transaction.pragma_update(None, "user_version", SCHEMA_VERSION).map_err(sql)
        }
        1 => {
            transaction.execute_batch(FROM_1_TO_2).map_err(sql)?;
            transaction.pragma_update(None, "user_version", SCHEMA_VERSION).map_err(sql)
        }
        SCHEMA_VERSION => Ok(()),
        found => Err(StoreError::Schema { path: path.to_owned(), found }),
    }
}
