//! Whole runs over NCCL in place of TCP, on a test double of it: the same bits, through a kill, and through a stop.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::process::Command;

use common::{Running, audited, count, course, end, last_tensors, train, worker_pids};

/// 154 samples in batches of 24: 6 chunks of 4, the last batch of an epoch has 10 samples.
const RECIPE: [&str; 7] = [
    "data.limit=0",
    "data.test_limit=0",
    "data.train_size=154",
    "data.test_size=40",
    "train.batch=24",
    "train.chunk=4",
    "elastic.collective_timeout_s=20",
];

/// A small run whose sums go over NCCL.
fn over_nccl(run: &Path, workers: u32, sets: &[&str]) -> Command {
    let mut command = train(run, workers, &[&RECIPE[..], sets].concat());
    command
        .env("LOCKSTEP_TRANSPORT", "nccl")
        .env("LOCKSTEP_NCCL", lockstep_nccl_double::nccl())
        .env("LOCKSTEP_CUDA_DRIVER", lockstep_nccl_double::driver());
    command
}

#[test]
fn over_nccl_a_run_has_the_bits_that_one_process_alone_finds() {
    let dir = tempfile::tempdir().unwrap();
    let alone = dir.path().join("alone");
    end(&mut train(&alone, 1, &RECIPE)).succeeded();
    for (workers, batch_norm) in [(2, "global"), (3, "global")] {
        let run = dir.path().join(workers.to_string());
        let set = format!("train.batch_norm={batch_norm}");
        end(&mut over_nccl(&run, workers, &[&set])).succeeded();
        let log = std::fs::read_to_string(run.join("logs/worker-1.log")).unwrap();
        assert!(log.contains("NCCL 2.18.99"), "not over NCCL: {log}");
        assert_eq!(course(&run), course(&alone), "{workers} workers");
        assert!(last_tensors(&run) == last_tensors(&alone), "{workers} workers");
        audited(&run);
    }
}

#[test]
fn over_nccl_a_worker_that_is_killed_costs_no_bit() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, run) = (dir.path().join("whole"), dir.path().join("run"));
    let long = ["train.epochs=8"];
    end(&mut train(&whole, 1, &[&RECIPE[..], &long[..]].concat())).succeeded();
    let mut running = Running::start(&mut over_nccl(&run, 2, &long));
    running.wait_for_step(4);
    common::signal(*worker_pids(&run).last().unwrap(), "KILL");
    running.end().succeeded();
    assert_eq!(course(&run), course(&whole));
    assert!(last_tensors(&run) == last_tensors(&whole));
    assert!(count(&run, "SELECT count(*) FROM events WHERE kind = 'generation_opened'") >= 2);
    audited(&run);
}

#[test]
fn over_nccl_a_run_that_is_stopped_goes_on_with_the_same_bits_on_another_world() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, run) = (dir.path().join("whole"), dir.path().join("run"));
    let long = ["train.epochs=8"];
    end(&mut train(&whole, 1, &[&RECIPE[..], &long[..]].concat())).succeeded();
    let mut running = Running::start(&mut over_nccl(&run, 2, &long));
    running.wait_for_step(4);
    running.signal("INT");
    assert_eq!(running.end().code, Some(75));
    end(over_nccl(&run, 3, &long).arg("--resume")).succeeded();
    assert_eq!(course(&run), course(&whole));
    assert!(last_tensors(&run) == last_tensors(&whole));
    audited(&run);
}

#[test]
fn without_nccl_or_without_a_driver_workers_end_with_78_and_say_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    for (number, (name, value, what)) in [
        ("LOCKSTEP_NCCL", "/no/such/libnccl.so.2", "no libnccl.so.2: tried /no/such/libnccl.so.2"),
        ("LOCKSTEP_CUDA_DRIVER", "/no/such/libcuda.so.1", "no CUDA device can be used: /no/such/libcuda.so.1"),
    ]
    .into_iter()
    .enumerate()
    {
        let run = dir.path().join(number.to_string());
        let ended = end(over_nccl(&run, 1, &[]).env(name, value));
        assert_eq!(ended.code, Some(78), "{}", ended.stderr);
        assert!(ended.stderr.contains(what), "{}", ended.stderr);
    }
}
