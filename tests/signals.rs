//! Signals: whoever ends a run leaves no worker behind, whether or not it had joined.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Running, train};

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
