//! Whole runs on this machine: a coordinator, its workers, a run directory that can be audited and resumed.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Running, audited, course, end, lockstep, signal, train, worker_pids};

#[test]
fn two_workers_train_evaluate_and_leave_a_run_that_audits() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let ended = end(&mut train(&run, 2, &[])).succeeded();
    let result = ended.json();
    assert_eq!(result["kind"], "finished");
    assert_eq!(result["step"], 12);
    assert!(result["test_error"].as_f64().is_some_and(|error| (0.0..=1.0).contains(&error)), "{result}");
    assert_eq!(result["state_sha256"].as_str().map(str::len), Some(64), "{result}");
    for file in ["recipe.toml", "provenance.json", "run.db", "metrics.jsonl", "epochs.csv", "logs/worker-1.log"] {
        assert!(run.join(file).exists(), "{file}");
    }
    audited(&run);
    let status = end(lockstep(&["status", "--json"]).arg(&run)).succeeded().json();
    assert_eq!((&status["step"], &status["total_steps"], &status["phase"]), (&12.into(), &12.into(), &"done".into()));
    let events = end(lockstep(&["events", "--json"]).arg(&run)).succeeded().stdout;
    assert!(events.contains("\"generation_opened\"") && events.contains("\"joined\""), "{events}");
}

#[test]
fn the_course_of_a_run_does_not_depend_on_the_number_of_workers() {
    let dir = tempfile::tempdir().unwrap();
    let courses: Vec<_> = [1, 2, 3]
        .map(|workers| {
            let run = dir.path().join(format!("{workers}"));
            end(&mut train(&run, workers, &[])).succeeded();
            audited(&run);
            course(&run)
        })
        .into();
    assert_eq!(courses[0].steps.len(), 12);
    assert_eq!(courses[0], courses[1]);
    assert_eq!(courses[0], courses[2]);
}

#[test]
fn killed_in_the_middle_and_resumed_on_another_world_it_is_the_same_run() {
    let long = ["train.epochs=100", "train.evaluate_every_epochs=50", "checkpoint.every_epochs=0"];
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    end(&mut train(&whole, 1, &long)).succeeded();

    let broken = dir.path().join("broken");
    let mut running = Running::start(&mut train(&broken, 2, &long));
    running.wait_for_step(6);
    let workers = worker_pids(&broken);
    running.kill();
    workers.iter().for_each(|pid| signal(*pid, "KILL"));
    running.end();
    end(train(&broken, 1, &long).arg("--resume")).succeeded();
    audited(&broken);
    assert_eq!(course(&broken), course(&whole));
}

#[test]
fn a_signal_ends_a_run_resumably() {
    // Long enough that the signal comes before its end, on any machine.
    let long = ["train.epochs=100", "train.window=4", "train.evaluate_every_epochs=50"];
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    end(&mut train(&whole, 1, &long)).succeeded();

    let run = dir.path().join("run");
    let mut running = Running::start(&mut train(&run, 2, &long));
    running.wait_for_step(2);
    running.signal("TERM");
    let ended = running.end();
    assert_eq!(ended.code, Some(75), "{}", ended.stderr);
    assert_eq!(ended.error(&[]), "error: SIGTERM; go on with --resume");
    end(train(&run, 3, &long).arg("--resume")).succeeded();
    audited(&run);
    assert_eq!(course(&run), course(&whole));
}

#[test]
fn a_wrong_sample_from_a_loader_is_found_by_the_audit_in_its_step() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    end(train(&run, 2, &[]).env("LOCKSTEP_FAULT_LOADER", "2:40")).succeeded();
    let ended = end(lockstep(&["audit"]).arg(&run));
    assert_eq!(ended.code, Some(65), "{}", ended.stderr);
    // Epoch 2 begins with step 5; position 40 is in its second batch.
    assert!(ended.stderr.contains("steps: step 6: digest "), "{}", ended.stderr);
    assert!(!ended.stderr.contains("step 5:") && !ended.stderr.contains("step 7:"), "{}", ended.stderr);
}
