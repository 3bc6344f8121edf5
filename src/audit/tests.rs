//! Runs made by hand, whole or damaged in one place.

use std::path::Path;

use lockstep_coordinator::engine::{CommittedStep, Record};
use lockstep_coordinator::store::{RunReader, Store};
use lockstep_data::expected_digest;
use lockstep_proto::ids::{Generation, Lineage, Rank, StateId, Step, WorkerId};
use lockstep_proto::message::{Member, StepTimes};
use lockstep_proto::plan::Course;
use lockstep_proto::recipe::Recipe;
use lockstep_proto::split::{num_chunks, ranges, shard_positions, split_even};

use super::audit;

const SETS: [&str; 7] = [
    "data.limit=100",
    "data.test_limit=10",
    "train.batch=32",
    "train.chunk=8",
    "train.epochs=2",
    "train.max_steps=7",
    "train.seed=5",
];

/// A run of seven steps in two epochs (32, 32, 32, 4; 32, 32, 32 positions) on `world` ranks.
fn run(dir: &Path, world: u32) -> Recipe {
    run_with(dir, world, &[])
}

fn run_with(dir: &Path, world: u32, more: &[&str]) -> Recipe {
    let sets: Vec<String> = SETS.iter().chain(more).map(|set| (*set).to_owned()).collect();
    let recipe = Recipe::load("demo", &sets).unwrap();
    let dataset = lockstep_data::open(&recipe.data, recipe.train.seed).unwrap();
    let mut course = Course::new(&recipe, dataset.identity().num_train);
    assert_eq!(course.total_steps(), 7);
    let generation = Generation(1);
    let member = |rank| Member {
        rank: Rank(rank),
        worker: WorkerId(format!("w{rank}")),
        replica: 0,
        address: "127.0.0.1:1".into(),
    };
    let mut records = vec![Record::Opened {
        generation,
        lineage: Lineage(1),
        base: StateId { lineage: Lineage(1), generation: Generation(0), step: Step(0) },
        members: (0..world).map(member).collect(),
    }];
    for step in (1..=course.total_steps()).map(Step) {
        let planned = course.at(step);
        let counts = split_even(num_chunks(planned.batch.len, recipe.train.chunk), world);
        records.push(Record::Committed(Box::new(CommittedStep {
            step,
            epoch: planned.epoch,
            generation,
            lr: planned.lr,
            loss: 1.0 / step.0 as f64,
            wrong: 3,
            samples: planned.batch.len,
            digest: expected_digest(dataset.as_ref(), &recipe, planned.epoch, planned.batch),
            skipped: Vec::new(),
            ready: None,
            shards: ranges(&counts)
                .into_iter()
                .map(|chunks| shard_positions(planned.batch, recipe.train.chunk, chunks))
                .collect(),
            times: StepTimes { wall: 0.5, ..StepTimes::default() },
        })));
        course.observe(step, 3, planned.batch.len);
        if planned.ends_epoch || step.0 == course.total_steps() {
            records.push(Record::EpochEnded { epoch: planned.epoch, step });
        }
    }
    std::fs::write(dir.join("recipe.toml"), recipe.to_toml()).unwrap();
    let mut store = Store::open(dir).unwrap();
    store.write(&records).unwrap();
    store.close().unwrap();
    write_files(dir);
    recipe
}

/// `metrics.jsonl` and `epochs.csv` as the contract has them.
fn write_files(dir: &Path) {
    let reader = RunReader::open(dir).unwrap();
    let mut metrics = String::new();
    reader
        .each_step(|row| {
            let line = serde_json::json!({
                "step": row.step, "epoch": row.epoch, "generation": row.generation, "world_size": row.world_size,
                "lr": row.lr, "loss": row.loss, "error": row.error, "samples": row.samples,
            });
            metrics.push_str(&format!("{line}\n"));
        })
        .unwrap();
    std::fs::write(dir.join("metrics.jsonl"), metrics).unwrap();
    let mut csv = super::files::EPOCH_COLUMNS.join(",") + "\n";
    for row in reader.epochs().unwrap() {
        let field = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
        csv.push_str(&super::files::fields(&row).map(field).join(","));
        csv.push('\n');
    }
    std::fs::write(dir.join("epochs.csv"), csv).unwrap();
}

fn findings(dir: &Path) -> Vec<String> {
    audit(dir, &[]).unwrap().findings
}

/// The ledger as a table, so that single rows can be damaged.
fn damage(dir: &Path, sql: &str) {
    let connection = rusqlite::Connection::open(dir.join("run.db")).unwrap();
    let solid = "CREATE TABLE solid AS SELECT * FROM ledger; DROP VIEW ledger; ALTER TABLE solid RENAME TO ledger;";
    connection.execute_batch(&format!("{solid}{sql}")).unwrap();
}

fn after(sql: &str) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), 3);
    damage(dir.path(), sql);
    findings(dir.path())
}

fn has(findings: &[String], wanted: &str) {
    assert!(findings.iter().any(|finding| finding.contains(wanted)), "{wanted}: {findings:#?}");
}

#[test]
fn a_whole_run_has_no_finding_on_any_world() {
    for world in [1, 2, 3, 5] {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), world);
        let report = audit(dir.path(), &[]).unwrap();
        assert_eq!(report.findings, Vec::<String>::new(), "world {world}");
        assert_eq!((report.steps, report.epochs, report.samples), (7, 2, 196));
    }
}

#[test]
fn a_removed_ledger_row_is_named_with_its_range() {
    let found = after("DELETE FROM ledger WHERE step = 2 AND rank = 1");
    has(&found, "ledger: step 2: positions [48, 56) are in no row");
    has(&found, "ledger: epoch 1: positions [48, 56) are in no committed step");
    assert_eq!(found.len(), 2, "{found:#?}");
}

#[test]
fn a_doubled_ledger_row_is_named_with_its_range() {
    let found = after("INSERT INTO ledger SELECT * FROM ledger WHERE step = 6 AND rank = 0");
    has(&found, "ledger: step 6: positions [32, 48) are in two rows");
    has(&found, "ledger: epoch 2: positions [32, 48) are there twice");
}

#[test]
fn a_shifted_ledger_row_is_named_with_its_range() {
    let found = after("UPDATE ledger SET start = start + 8 WHERE step = 1 AND rank = 0");
    has(&found, "ledger: step 1: positions [0, 8) are in no row");
    has(&found, "ledger: step 1: positions [16, 24) are in two rows");
    let found = after("UPDATE ledger SET start = start + 1 WHERE step = 1 AND rank = 0");
    has(&found, "ledger: step 1: rank 0, positions [1, 17) is not made of whole chunks of 8");
}

#[test]
fn the_short_last_batch_of_an_epoch_counts() {
    let found = after("DELETE FROM ledger WHERE step = 4 AND len > 0");
    has(&found, "ledger: step 4: positions [96, 100) are in no row");
}

#[test]
fn a_wrong_sample_is_found_by_the_digest_of_its_step() {
    let found = after("UPDATE steps SET digest = '00000000000000ff' WHERE step = 3");
    assert_eq!(found.len(), 1, "{found:#?}");
    has(&found, "steps: step 3: digest 00000000000000ff, and recipe and data give ");
    has(&found, "in positions [64, 96) of epoch 1 a loader delivered another sample or label");
}

#[test]
fn a_lost_step_is_found_in_table_and_files() {
    let found = after("DELETE FROM steps WHERE step = 2");
    has(&found, "steps: no step 2: positions from 32 of epoch 1 are not accounted for");
    has(&found, "ledger: rank 0, positions [32, 48) of step 2: `steps` has no such step");
    has(&found, "metrics.jsonl: line 2: step 2 is not in `steps`");
    has(&found, "epochs: epoch 1: 100 images, and steps up to 4 have 68");
}

#[test]
fn another_rate_or_error_than_the_recipe_gives_is_named() {
    let found = after("UPDATE steps SET lr = 0.5, error = 0.5 WHERE step = 5");
    has(&found, "steps: step 5: lr is 0.5, and the recipe says ");
    has(&found, "steps: step 5: error is 0.5, and 3 of 32 were wrong");
    has(&found, "metrics.jsonl: line 5: step 5: lr is ");
}

#[test]
fn a_rank_with_two_rows_is_named() {
    let found = after("UPDATE ledger SET rank = 0 WHERE step = 7 AND rank = 2");
    has(&found, "ledger: step 7: rank 0, positions [88, 96) is a second one, or past the world of 3");
}

#[test]
fn a_row_that_no_worker_answers_for_is_named() {
    let found = after("UPDATE ledger SET worker = NULL WHERE step = 1 AND rank = 0");
    has(&found, "ledger: step 1: rank 0, positions [0, 16) is of a rank that generation 1 did not have");
    assert_eq!(found.len(), 1, "{found:#?}");
}

#[test]
fn doubled_lost_and_changed_lines_of_the_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), 2);
    let path = dir.path().join("metrics.jsonl");
    let whole = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    std::fs::write(&path, [lines[0], lines[0], lines[2], "{}", lines[3]].join("\n")).unwrap();
    let csv = dir.path().join("epochs.csv");
    let rows = std::fs::read_to_string(&csv).unwrap();
    std::fs::write(&csv, rows.replace(",100,", ",101,")).unwrap();
    let found = findings(dir.path());
    has(&found, "metrics.jsonl: line 2: step 1 comes after step 1: doubled or out of order");
    has(&found, "metrics.jsonl: step 2 is missing");
    has(&found, "metrics.jsonl: line 4: no step");
    has(&found, "metrics.jsonl: step 7 is missing");
    has(&found, "epochs.csv: line 2: images is `101`, and `epochs` has 100");
}

#[test]
fn no_run_is_no_input_and_another_recipe_is_wrong_usage() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(audit(dir.path(), &[]).unwrap_err().code.code(), 66);
    run(dir.path(), 1);
    assert!(audit(dir.path(), &["data.path=elsewhere".into()]).unwrap().findings.is_empty());
    let failure = audit(dir.path(), &["train.batch=64".into()]).unwrap_err();
    assert_eq!(failure.code.code(), 64);
    assert!(failure.reason.starts_with("--set train.batch: 32 → 64: an audit keeps"), "{failure}");
}

#[test]
fn a_rate_that_depends_on_results_is_checked_against_the_results() {
    let waits = [
        "schedule.kind=constant",
        "schedule.warmup=until_error",
        "schedule.warmup_lr=0.01",
        "schedule.warmup_error=0.5",
        "schedule.warmup_over=2",
        "train.window=3",
    ];
    let dir = tempfile::tempdir().unwrap();
    run_with(dir.path(), 2, &waits);
    assert_eq!(findings(dir.path()), [""; 0]);
    let rates: Vec<f64> = {
        let mut rates = Vec::new();
        RunReader::open(dir.path()).unwrap().each_step(|row| rates.push(row.lr)).unwrap();
        rates
    };
    assert_eq!(rates, [0.01, 0.01, 0.01, 0.01, 0.1, 0.1, 0.1], "step 2 decides, a window of 3 before step 5");
    // Everything was wrong in step 1: then step 3 is the first to decide.
    rusqlite::Connection::open(dir.path().join("run.db"))
        .unwrap()
        .execute("UPDATE steps SET wrong = 32, error = 32.0 / samples WHERE step = 1", [])
        .unwrap();
    write_files(dir.path());
    let found = findings(dir.path());
    assert!(found.iter().any(|line| line.contains("step 5: lr is 0.1, and the recipe says 0.01")), "{found:?}");
}
