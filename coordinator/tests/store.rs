//! What the store keeps, across closes and kills.

#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod common;

use common::records::{committed, epoch_ended, evaluated, opened, saved, settled, state, write_checkpoint};
use lockstep_coordinator::engine::{History, Record};
use lockstep_coordinator::store::{LedgerRow, RunReader, SCHEMA_VERSION, Store, StoreError};
use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Epoch, Generation, Lineage, SampleRange, Step};
use lockstep_proto::message::Skipped;
use tempfile::TempDir;

/// A killed coordinator leaves its lease behind: nothing is closed, nothing is released.
fn kill(store: Store, run: &TempDir) {
    drop(store);
    let db = rusqlite::Connection::open(run.path().join("run.db")).unwrap();
    db.execute("UPDATE lease SET started = 'another process of this pid'", []).unwrap();
}

/// One epoch and a step of the next.
fn four_steps() -> Vec<Record> {
    let mut records = vec![settled(), opened(1, 0), evaluated(0, 0, 0.9)];
    records.extend((1..=3).map(|step| committed(step, 1)));
    records.extend([evaluated(1, 3, 0.25), epoch_ended(1, 3), saved(3, 1), committed(4, 1)]);
    records
}

fn ledger(reader: &RunReader) -> Vec<LedgerRow> {
    let mut rows = Vec::new();
    reader.each_ledger_row(|row| rows.push(row)).unwrap();
    rows
}

fn steps(reader: &RunReader) -> Vec<Step> {
    let mut rows = Vec::new();
    reader.each_step(|row| rows.push(row.step)).unwrap();
    assert_eq!(reader.last_step().unwrap(), rows.last().copied().unwrap_or(Step(0)));
    rows
}

#[test]
fn a_new_store_has_no_history_and_keeps_its_identity() {
    let run = tempfile::tempdir().unwrap();
    let mut store = Store::open(run.path()).unwrap();
    assert_eq!(store.load_history().unwrap(), (History::default(), vec![]));
    let run_id = store.run_id().to_owned();
    store.close().unwrap();
    assert_eq!(Store::open(run.path()).unwrap().run_id(), run_id);
}

#[test]
fn history_is_what_was_recorded() {
    let run = tempfile::tempdir().unwrap();
    write_checkpoint(&run.path().join("checkpoints/step-3"), state(3, 1));
    let mut store = Store::open(run.path()).unwrap();
    store.write(&four_steps()).unwrap();
    store.write(&[opened(2, 4), committed(5, 2)]).unwrap();
    store.close().unwrap();

    let (history, bad) = Store::open(run.path()).unwrap().load_history().unwrap();
    assert!(bad.is_empty(), "{bad:?}");
    assert_eq!((history.generation, history.world_size, history.lineage), (Generation(2), 2, Lineage(1)));
    assert_eq!(history.committed, Step(5));
    assert_eq!(history.spans, [(Step(1), Generation(1)), (Step(5), Generation(2))]);
    assert_eq!(history.evaluated, [Epoch(0), Epoch(1)]);
    assert_eq!(history.best, Some((Step(3), 0.25)));
    assert_eq!(history.checkpoints.len(), 1);
    assert_eq!(history.checkpoints[0].state, state(3, 1));
    let settled = history.settled.unwrap();
    assert_eq!((settled.0.num_train, settled.1.as_str()), (40, "avx2"));
    assert!(!history.finished);
}

#[test]
fn a_kill_between_transactions_loses_nothing_that_was_answered() {
    let run = tempfile::tempdir().unwrap();
    let mut store = Store::open(run.path()).unwrap();
    store.write(&four_steps()).unwrap();
    kill(store, &run);

    let mut store = Store::open(run.path()).unwrap();
    assert_eq!(store.load_history().unwrap().0.committed, Step(4));
    store.write(&[opened(2, 4), committed(5, 2)]).unwrap();
    kill(store, &run);
    assert_eq!(Store::open(run.path()).unwrap().load_history().unwrap().0.committed, Step(5));
}

#[test]
fn a_transaction_is_whole_or_not_there() {
    let run = tempfile::tempdir().unwrap();
    let mut store = Store::open(run.path()).unwrap();
    store.write(&four_steps()).unwrap();
    // Step 4 a second time cannot be written: step 5, in the same transaction, must not be either.
    store.write(&[committed(5, 1), committed(4, 1)]).unwrap_err();
    kill(store, &run);
    assert_eq!(Store::open(run.path()).unwrap().load_history().unwrap().0.committed, Step(4));
}

#[test]
fn the_ledger_tiles_each_batch_with_its_workers() {
    let run = tempfile::tempdir().unwrap();
    let mut store = Store::open(run.path()).unwrap();
    store.write(&four_steps()).unwrap();
    let rows = ledger(&RunReader::open(run.path()).unwrap());
    assert_eq!(rows.len(), 8);
    for (index, row) in rows.iter().enumerate() {
        let rank = index as u32 % 2;
        assert_eq!((row.rank.0, row.generation), (rank, Generation(1)));
        assert_eq!(row.worker.as_ref().unwrap().0, format!("worker-{rank}"));
    }
    let ranges: Vec<SampleRange> = rows.iter().map(|row| row.range).collect();
    let expected = [(0, 8), (8, 8), (16, 8), (24, 8), (32, 8), (40, 0), (0, 8), (8, 8)];
    assert_eq!(ranges, expected.map(|(start, len)| SampleRange { start, len }));
}

#[test]
fn steps_that_are_cut_alike_share_one_split() {
    let run = tempfile::tempdir().unwrap();
    let mut store = Store::open(run.path()).unwrap();
    store.write(&four_steps()).unwrap();
    store.write(&[committed(5, 1), committed(6, 1)]).unwrap();
    let db = rusqlite::Connection::open(run.path().join("run.db")).unwrap();
    let splits: u32 = db.query_row("SELECT COUNT(*) FROM splits", [], |row| row.get(0)).unwrap();
    assert_eq!(splits, 2, "whole batches, and the short last one");
}

#[test]
fn how_the_steps_of_the_newest_generation_split_is_part_of_the_history() {
    let run = tempfile::tempdir().unwrap();
    let mut store = Store::open(run.path()).unwrap();
    let split = |generation, from, costs: &[u64]| Record::Split {
        generation: Generation(generation),
        from: Step(from),
        costs: costs.to_vec(),
    };
    store.write(&four_steps()).unwrap();
    store.write(&[split(1, 6, &[9, 1]), opened(2, 4), split(2, 8, &[1, 3]), split(2, 30, &[1, u64::MAX])]).unwrap();
    kill(store, &run);
    let (history, _) = Store::open(run.path()).unwrap().load_history().unwrap();
    assert_eq!(history.splits, [(Step(8), vec![1, 3]), (Step(30), vec![1, u64::MAX])]);
}

#[test]
fn an_epochs_row_is_computed_from_its_steps() {
    let run = tempfile::tempdir().unwrap();
    let mut store = Store::open(run.path()).unwrap();
    store.write(&four_steps()).unwrap();
    store.write(&[epoch_ended(2, 4)]).unwrap();
    let epochs = RunReader::open(run.path()).unwrap().epochs().unwrap();
    assert_eq!(epochs.len(), 3);

    let before = &epochs[0];
    assert_eq!((before.epoch, before.step, before.images, before.seconds), (Epoch(0), Step(0), 0, 0.0));
    assert_eq!((before.train_loss, before.train_error, before.lr, before.images_per_s), (None, None, None, None));
    assert_eq!((before.test_error, before.test_loss, before.test_error_top5), (Some(0.9), Some(1.8), Some(0.45)));

    let first = &epochs[1];
    let loss = (16.0 / 3.0 + 16.0 / 6.0 + 8.0 / 9.0) / 40.0;
    assert!((first.train_loss.unwrap() - loss).abs() < 1e-15);
    assert_eq!((first.train_error, first.test_error), (Some(6.0 / 40.0), Some(0.25)));
    assert_eq!((first.images, first.seconds, first.images_per_s), (40, 1.5, Some(40.0 / 1.5)));
    assert_eq!((first.lr, first.world_size), (Some(0.1 / 3.0), 2));

    let incomplete = &epochs[2];
    assert_eq!((incomplete.step, incomplete.images, incomplete.seconds), (Step(4), 56, 2.0));
    assert_eq!((incomplete.train_loss, incomplete.test_error), (Some(1.0 / 3.0 / 4.0), None));
}

#[test]
fn a_rollback_removes_later_steps_and_lets_them_be_taken_again() {
    let run = tempfile::tempdir().unwrap();
    write_checkpoint(&run.path().join("checkpoints/step-3"), state(3, 1));
    let mut store = Store::open(run.path()).unwrap();
    store.write(&four_steps()).unwrap();
    store.write(&[committed(5, 1), committed(6, 1), evaluated(2, 6, 0.1), epoch_ended(2, 6), saved(6, 1)]).unwrap();
    store.write(&[Record::RolledBack { from: Step(6), to: Step(3), lineage: Lineage(2) }]).unwrap();
    let reader = RunReader::open(run.path()).unwrap();
    assert_eq!(steps(&reader), [1, 2, 3].map(Step));
    assert_eq!(ledger(&reader).len(), 6);
    assert_eq!(reader.epochs().unwrap().iter().map(|row| row.epoch.0).collect::<Vec<_>>(), [0, 1]);
    let event = reader.events(0).unwrap().pop().unwrap();
    assert_eq!(
        (event.kind.as_str(), &event.detail["from"], &event.detail["to"]),
        ("rolled_back", &6.into(), &3.into())
    );

    store.write(&[opened(2, 3), committed(4, 2)]).unwrap();
    store.close().unwrap();
    let (history, bad) = Store::open(run.path()).unwrap().load_history().unwrap();
    assert!(bad.is_empty(), "{bad:?}");
    assert_eq!((history.committed, history.generation), (Step(4), Generation(2)));
    assert_eq!(history.best, Some((Step(3), 0.25)));
    assert_eq!(history.checkpoints.iter().map(|stored| stored.state.step.0).collect::<Vec<_>>(), [3]);
}

#[test]
fn checkpoints_that_do_not_load_are_left_out_and_told() {
    let run = tempfile::tempdir().unwrap();
    let folder = |step: u64| run.path().join(format!("checkpoints/step-{step}"));
    write_checkpoint(&folder(1), state(1, 1));
    write_checkpoint(&folder(2), state(2, 1));
    write_checkpoint(&folder(3), state(3, 7));
    let mut store = Store::open(run.path()).unwrap();
    store.write(&[settled(), opened(1, 0)]).unwrap();
    for step in 1..=4 {
        store.write(&[committed(step, 1), saved(step, 1)]).unwrap();
    }
    let file = folder(2).join("optimizer.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&file, bytes).unwrap();

    let (history, bad) = store.load_history().unwrap();
    assert_eq!(history.checkpoints.iter().map(|stored| stored.dir.as_str()).collect::<Vec<_>>(), ["step-1"]);
    let reasons: Vec<&str> = bad.iter().map(|bad| bad.reason.as_str()).collect();
    assert!(reasons[0].contains("optimizer.safetensors has sha256"), "{reasons:?}");
    assert!(reasons[1].contains("generation 7"), "a state of another history: {reasons:?}");
    assert!(reasons[2].contains("step-4"), "not there at all: {reasons:?}");
    let events = RunReader::open(run.path()).unwrap().events(0).unwrap();
    assert_eq!(events.iter().filter(|event| event.kind == "checkpoint_bad").count(), 3);
}

#[test]
fn a_second_coordinator_is_refused_and_told_who_holds_the_run() {
    let run = tempfile::tempdir().unwrap();
    let store = Store::open(run.path()).unwrap();
    let error = Store::open(run.path()).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::CantCreate);
    assert!(matches!(&error, StoreError::Held { pid, .. } if *pid == std::process::id()), "{error}");
    store.close().unwrap();
    Store::open(run.path()).unwrap();
}

#[test]
fn a_lease_of_another_host_holds_until_it_expires_and_then_the_old_holder_cannot_write() {
    let run = tempfile::tempdir().unwrap();
    let mut old = Store::open(run.path()).unwrap();
    let db = rusqlite::Connection::open(run.path().join("run.db")).unwrap();
    db.execute("UPDATE lease SET host = 'elsewhere', namespace = 'another'", []).unwrap();
    let error = Store::open(run.path()).unwrap_err();
    assert!(error.to_string().contains("on host elsewhere"), "{error}");
    db.execute("UPDATE lease SET expires_ms = 0", []).unwrap();
    let mut new = Store::open(run.path()).unwrap();
    assert!(matches!(old.write(&[settled()]), Err(StoreError::Replaced { .. })));
    new.write(&[settled()]).unwrap();
}

#[test]
fn what_a_step_and_an_evaluation_left_out_is_named_in_events_and_counted_in_the_epochs_row() {
    let run = tempfile::tempdir().unwrap();
    let mut store = Store::open(run.path()).unwrap();
    let skipped = |position: u64| Skipped { position, file: format!("train/a/{position}.JPEG"), reason: "text".into() };
    let mut records = four_steps();
    for record in &mut records {
        match record {
            Record::Committed(row) if row.step == Step(2) => {
                row.skipped = vec![skipped(17), skipped(20)];
                row.samples -= 2;
                row.ready = Some(0.5);
            }
            Record::Evaluated { epoch: Epoch(1), skipped: left_out, .. } => *left_out = vec![skipped(3)],
            _ => {}
        }
    }
    store.write(&records).unwrap();
    let reader = RunReader::open(run.path()).unwrap();
    let epochs = reader.epochs().unwrap();
    assert_eq!((epochs[1].images, epochs[1].skipped, epochs[1].test_skipped), (38, 2, 1));
    assert_eq!((epochs[0].skipped, epochs[0].test_skipped), (0, 0));
    let mut steps = Vec::new();
    reader.each_step(|row| steps.push((row.samples, row.skipped, row.ready))).unwrap();
    assert_eq!(steps[..2], [(16, 0, None), (14, 2, Some(0.5))]);
    let events = reader.events(0).unwrap();
    let named: Vec<_> = events.iter().filter(|event| event.kind == "sample_skipped").collect();
    assert_eq!(named.len(), 3);
    assert_eq!(named[1].step, Step(2));
    let detail = serde_json::json!({
        "split": "train", "epoch": 1, "position": 20, "file": "train/a/20.JPEG", "reason": "text"
    });
    assert_eq!(named[1].detail, detail);
    assert_eq!(named[1].to_string(), "sample_skipped at step 2: train/a/20.JPEG: text");
    assert_eq!((&named[2].detail["split"], named[2].step), (&"test".into(), Step(3)));
}

/// What version 2 added, taken away again.
const BACK_TO_1: &str = "
ALTER TABLE steps DROP COLUMN skipped;
ALTER TABLE steps DROP COLUMN data_ready;
ALTER TABLE evaluations DROP COLUMN skipped;
ALTER TABLE epochs DROP COLUMN skipped;
ALTER TABLE epochs DROP COLUMN test_skipped;
PRAGMA user_version = 1;
";

#[test]
fn a_store_of_the_first_version_is_read_as_it_is_and_brought_up_to_date_when_it_is_written() {
    let run = tempfile::tempdir().unwrap();
    let mut store = Store::open(run.path()).unwrap();
    store.write(&four_steps()).unwrap();
    store.close().unwrap();
    let db = rusqlite::Connection::open(run.path().join("run.db")).unwrap();
    let schema = |db: &rusqlite::Connection| -> String {
        db.query_row("SELECT group_concat(sql) FROM sqlite_schema", [], |row| row.get(0)).unwrap()
    };
    db.execute_batch(BACK_TO_1).unwrap();
    assert!(!schema(&db).contains("skipped"));
    let read = || {
        let reader = RunReader::open(run.path()).unwrap();
        let (mut steps, mut ledger) = (Vec::new(), Vec::new());
        reader.each_step(|row| steps.push(row)).unwrap();
        reader.each_ledger_row(|row| ledger.push(row)).unwrap();
        (steps, ledger, reader.epochs().unwrap())
    };
    let before = read();
    assert_eq!((before.0.len(), before.1.len(), before.2[1].skipped), (4, 8, 0));
    assert!(!schema(&db).contains("skipped"), "reading changes nothing");
    let mut store = Store::open(run.path()).unwrap();
    assert_eq!(read(), before);
    store.write(&[committed(5, 1), epoch_ended(2, 5)]).unwrap();
    assert_eq!(read().0.len(), 5);
}

#[test]
fn a_store_of_a_newer_version_is_refused_by_name() {
    let run = tempfile::tempdir().unwrap();
    Store::open(run.path()).unwrap().close().unwrap();
    let db = rusqlite::Connection::open(run.path().join("run.db")).unwrap();
    db.pragma_update(None, "user_version", SCHEMA_VERSION + 1).unwrap();
    let error = Store::open(run.path()).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Protocol);
    assert!(error.to_string().contains("run.db has schema 3, this version knows up to 2"), "{error}");
    assert!(RunReader::open(run.path()).is_err());
}

#[test]
fn a_file_that_is_no_store_is_wrong_data() {
    let run = tempfile::tempdir().unwrap();
    std::fs::write(run.path().join("run.db"), vec![42; 8192]).unwrap();
    let error = Store::open(run.path()).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Data, "{error}");
}
