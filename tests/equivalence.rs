//! The same bits on every world, after 50 steps of the real executables and in every loss on the way.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::{Course, count, course, end, last_tensors, lockstep, with_sets};

const STEPS: u64 = 50;

/// 154 samples in batches of 24: 6 chunks, on four workers 2, 2, 1 and 1; the last batch has 10 samples: 3 chunks.
const RECIPE: [&str; 9] = [
    "data.limit=0",
    "data.test_limit=0",
    "data.train_size=154",
    "data.test_size=40",
    "train.batch=24",
    "train.chunk=4",
    "train.epochs=0",
    "train.max_steps=50",
    "train.evaluate_every_epochs=4",
];

/// Processes, threads of each replica, devices of each process.
type World = (u32, u32, &'static str);

const WORLDS: [World; 5] = [(1, 1, "cpu"), (1, 2, "cpu"), (2, 1, "cpu"), (3, 1, "cpu"), (4, 1, "cpu")];

/// Trains and reads how it went.
#[track_caller]
fn trained(run: &Path, world: World, precision: &str, batch_norm: &str) -> (Course, [Vec<u8>; 2]) {
    let (workers, threads, devices) = world;
    let mut command = lockstep(&["train", "demo", "--json", "--devices", devices]);
    command.arg("--run-dir").arg(run);
    command.args(["--workers", &workers.to_string(), "--threads", &threads.to_string()]);
    with_sets(&mut command, &RECIPE);
    for set in [format!("train.precision={precision}"), format!("train.batch_norm={batch_norm}")] {
        command.args(["--set", &set]);
    }
    end(&mut command).succeeded();

    let ranks = workers * devices.split(',').count() as u32;
    let course = course(run);
    assert_eq!(course.steps.len() as u64, STEPS);
    assert_eq!(count(run, &format!("SELECT count(*) FROM steps WHERE world_size = {ranks}")), STEPS);
    // Seven short batches, each with a rank that has nothing to do when there are four.
    let empty = count(run, "SELECT count(*) FROM steps JOIN split_shards USING (split) WHERE len = 0");
    assert_eq!(empty, if ranks == 4 { STEPS / 7 } else { 0 });
    (course, last_tensors(run))
}

#[track_caller]
fn all_the_same(worlds: &[World], precision: &str, batch_norm: &str) {
    let dir = tempfile::tempdir().unwrap();
    let runs: Vec<_> = worlds
        .iter()
        .enumerate()
        .map(|(number, world)| trained(&dir.path().join(number.to_string()), *world, precision, batch_norm))
        .collect();
    for (world, run) in worlds.iter().zip(&runs).skip(1) {
        assert_eq!(run.0, runs[0].0, "{world:?} and {:?}", worlds[0]);
        assert!(run.1 == runs[0].1, "tensors of {world:?} and {:?}", worlds[0]);
    }
    let last = runs[0].0.state.last().unwrap();
    eprintln!("{precision}, batch norm {batch_norm}: {} worlds, state {}", worlds.len(), last.1);
}

/// All numbers of a file of 32-bit tensors.
fn numbers(safetensors: &[u8]) -> Vec<f32> {
    let header = u64::from_le_bytes(safetensors[..8].try_into().unwrap()) as usize;
    let (values, _) = safetensors[8 + header..].as_chunks();
    values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn fp32_with_global_statistics_on_five_worlds() {
    all_the_same(&WORLDS, "fp32", "global");
}

#[test]
fn fp32_with_chunk_statistics_on_five_worlds() {
    all_the_same(&WORLDS, "fp32", "chunk");
}

#[test]
fn bf16_with_global_statistics_on_five_worlds() {
    all_the_same(&WORLDS, "bf16", "global");
}

#[test]
fn bf16_with_chunk_statistics_on_five_worlds() {
    all_the_same(&WORLDS, "bf16", "chunk");
}

#[test]
fn replicas_of_one_process_are_as_good_as_processes() {
    all_the_same(&[(1, 1, "cpu"), (1, 1, "cpu,cpu")], "fp32", "global");
}

#[test]
fn local_statistics_depend_on_the_world_so_the_tests_of_worlds_can_tell() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two] =
        [1, 2].map(|workers| trained(&dir.path().join(workers.to_string()), (workers, 1, "cpu"), "fp32", "local"));
    let loss = |step: &[u64; 6]| f64::from_bits(step[4]);
    let losses = one.0.steps.iter().zip(&two.0.steps).map(|(one, two)| (loss(one) - loss(two)).abs());
    let largest = losses.fold(0.0, f64::max);
    assert!(largest > 1e-3, "losses differ by {largest} at most");

    let [one, two] = [one, two].map(|(_, [model, _])| numbers(&model));
    assert_eq!(one.len(), two.len());
    let parameters = one.iter().zip(&two).map(|(one, two)| (one - two).abs()).fold(0.0, f32::max);
    assert!(parameters > 1e-3, "parameters and statistics differ by {parameters} at most");
    eprintln!("local batch norm: losses differ by up to {largest:.4}, parameters and statistics by {parameters:.4}");
}

/// The course that a replica takes on a device: steps enqueued, outcomes known late, everything behind a gate.
#[test]
fn the_course_of_a_device_does_not_depend_on_the_number_of_workers() {
    all_the_same(&[(1, 1, "host"), (1, 2, "host"), (3, 1, "host")], "fp32", "global");
}
