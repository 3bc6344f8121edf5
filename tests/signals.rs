//! Signals: whoever ends a run leaves no worker behind, whether or not it had joined.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Running, audited, end, train, worker_pids};

/// A program in the worker's place that never joins; says in a file of its own that it was started.
fn deaf(dir: &Path, first: &str) -> std::path::PathBuf {
    let program = dir.join("deaf-worker");
    let marks = dir.join("started");
    std::fs::create_dir(&marks).unwrap();
    std::fs::write(&program, format!("#!/bin/sh\n{first}\n: > '{}'/$$\nexec sleep 600\n", marks.display())).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    program
}

fn started(dir: &Path, count: usize) -> Vec<u32> {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let names = std::fs::read_dir(dir.join("started")).unwrap().map(|entry| entry.unwrap().file_name());
        let pids: Vec<u32> = names.map(|name| name.to_string_lossy().parse().unwrap()).collect();
        if pids.len() == count {
            return pids;
        }
        assert!(Instant::now() < until, "workers were not started");
        std::thread::yield_now();
    }
}

/// Starts a run whose two workers never join; gives it and their processes.
fn waiting(dir: &Path, first: &str) -> (Running, Vec<u32>) {
    let program = deaf(dir, first);
    let running = Running::start(train(&dir.join("run"), 2, &[]).env("LOCKSTEP_WORKER", program));
    (running, started(dir, 2))
}

/// Gone, or dead and not waited for by its parent.
fn is_dead(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}

/// Dead soon: a signal takes its time.
fn is_gone(pid: u32) -> bool {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        if is_dead(pid) {
            return true;
        }
        if Instant::now() > until {
            return false;
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_signal_before_anyone_joined_ends_the_run_soon() {
    let dir = tempfile::tempdir().unwrap();
    let (running, workers) = waiting(dir.path(), "");
    let since = Instant::now();
    running.signal("INT");
    let ended = running.end();
    assert_eq!(ended.code, Some(75), "{}", ended.stderr);
    assert!(since.elapsed() < Duration::from_secs(15), "{:?}: {}", since.elapsed(), ended.stderr);
    assert!(workers.into_iter().all(is_gone));
}

#[test]
fn a_second_signal_ends_it_at_once_and_leaves_no_worker_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (running, workers) = waiting(dir.path(), "trap '' TERM");
    let since = Instant::now();
    let pid = running.pid();
    while !is_dead(pid) {
        assert!(since.elapsed() < Duration::from_secs(15), "it does not heed signals");
        running.signal("TERM");
    }
    let ended = running.end();
    assert_eq!(ended.code, Some(75), "{}", ended.stderr);
    assert!(workers.into_iter().all(is_gone), "{}", ended.stderr);
}

#[test]
fn workers_end_with_the_command_that_started_them_even_when_it_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let mut running = Running::start(&mut train(&run, 2, &["train.epochs=100"]));
    running.wait_for_step(2);
    let workers = worker_pids(&run);
    assert_eq!(workers.len(), 2);
    running.kill();
    assert_eq!(running.end().code, None);
    assert!(workers.into_iter().all(is_gone));
    let log = std::fs::read_to_string(run.join("logs/worker-0.log")).unwrap();
    assert!(log.contains("error: standard input closed: whoever started this worker is gone"), "{log}");
}

#[test]
fn the_end_of_standard_input_ends_a_run_resumably_where_that_was_asked_for() {
    let long = ["train.epochs=100", "train.window=4", "train.evaluate_every_epochs=50"];
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let mut running = Running::start(train(&run, 1, &long).arg("--until-stdin-closes").stdin(Stdio::piped()));
    running.wait_for_step(2);
    running.close_stdin();
    let ended = running.end();
    assert_eq!(ended.code, Some(75), "{}", ended.stderr);
    assert_eq!(ended.error(&[]), "error: end of standard input; go on with --resume");
    end(train(&run, 1, &long).arg("--resume")).succeeded();
    audited(&run);
}
