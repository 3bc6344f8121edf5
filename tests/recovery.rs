//! All processes die at once, at a random step; whoever resumes the run, on whatever world, ends with the same bits.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Course, Running, audited, count, course, end, last_tensors, train, worker_pids};

/// Decides steps, worlds and the order in which processes die.
const SEED: u64 = 5;
const TRIALS: u32 = 10;
/// So many of them must die after a checkpoint and inside an epoch.
const INSIDE: u32 = 8;
/// Nothing of a small run takes longer, however slow the machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// 450 samples in batches of 24: the last of an epoch has 18, in chunks of 8, 8 and 2.
const STEPS_PER_EPOCH: u64 = 19;
const STEPS: u64 = 3 * STEPS_PER_EPOCH;
const RECIPE: [&str; 7] = [
    "data.limit=0",
    "data.test_limit=0",
    "data.train_size=450",
    "data.test_size=40",
    "train.batch=24",
    "train.chunk=8",
    "checkpoint.every_steps=4",
];

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % n
    }
}

/// What must be the same, to the bit.
#[derive(Debug, PartialEq)]
struct Outcome {
    course: Course,
    /// Rows of `epochs.csv` without what a clock or the world decides.
    epochs: Vec<String>,
    tensors: [Vec<u8>; 2],
}

/// Reads a finished run, which must hold every step and every position of every epoch once.
#[track_caller]
fn outcome(run: &Path) -> Outcome {
    let course = course(run);
    let steps: Vec<u64> = course.steps.iter().map(|step| step[0]).collect();
    assert_eq!(steps, (1..=STEPS).collect::<Vec<_>>());
    assert_eq!(count(run, "SELECT count(*) FROM steps"), STEPS);
    for epoch in 1..=3 {
        assert_eq!(count(run, &format!("SELECT sum(len) FROM ledger WHERE epoch = {epoch}")), 450);
    }
    let epochs = std::fs::read_to_string(run.join("epochs.csv")).unwrap();
    let epochs: Vec<String> = epochs.lines().map(|row| row.split(',').take(9).collect::<Vec<_>>().join(",")).collect();
    assert!(epochs[0].ends_with(",test_error_top5"), "{}", epochs[0]);
    assert_eq!(epochs.len(), 1 + 4, "a heading, and epochs 0 to 3");
    audited(run);
    Outcome { course, epochs, tensors: last_tensors(run) }
}

/// Waits until `metrics.jsonl` has so many lines; false when the run ended first.
fn has_committed(run: &Path, step: u64) -> bool {
    let path = run.join("metrics.jsonl");
    let begun = Instant::now();
    loop {
        let lines = std::fs::read(&path).unwrap_or_default().iter().filter(|byte| **byte == b'\n').count() as u64;
        if lines >= step {
            return lines < STEPS;
        }
        assert!(begun.elapsed() < DEADLINE, "{lines} of {step} steps after {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(1)); // between two looks at the file
    }
}

/// Kills the command, its coordinator in it, and its workers, in any order and at once.
fn kill_all(mut running: Running, workers: &[u32], random: &mut Random) {
    let mut pids = vec![running.pid()];
    for pid in workers {
        pids.insert(random.below(pids.len() as u64 + 1) as usize, *pid);
    }
    let killed = Command::new("kill").arg("-KILL").args(pids.iter().map(u32::to_string)).status().unwrap();
    assert!(killed.success(), "{pids:?}");
    running.kill();
    assert_eq!(running.end().code, None, "killed by a signal");
}

#[test]
fn killed_at_random_steps_and_resumed_on_any_world_it_is_the_same_run() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    end(&mut train(&whole, 1, &RECIPE)).succeeded();
    let whole = outcome(&whole);

    let mut random = Random(SEED);
    let (mut trials, mut inside, mut moved, mut lost) = (0, 0, 0, 0);
    for attempt in 0.. {
        if trials >= TRIALS && inside >= INSIDE {
            break;
        }
        assert!(attempt < 2 * TRIALS, "{attempt} attempts: {trials} trials, {inside} inside an epoch");
        let before = 1 + random.below(3) as u32;
        let after = if trials % 2 == 0 { before } else { 1 + (before + random.below(2) as u32) % 3 };
        let epoch = random.below(3);
        let target = epoch * STEPS_PER_EPOCH + if epoch == 0 { 6 } else { 1 } + random.below(8);

        let run = dir.path().join(format!("{attempt}"));
        let running = Running::start(&mut train(&run, before, &RECIPE));
        let is_in_time = has_committed(&run, target);
        let workers = worker_pids(&run);
        if !is_in_time || workers.len() < before as usize {
            // The machine slept over it: this one is as whole as the first.
            running.end().succeeded();
            continue;
        }
        kill_all(running, &workers, &mut random);
        let died = count(&run, "SELECT max(step) FROM steps");
        assert!(died >= target, "what metrics.jsonl shows is durable: {died} of {target}");

        end(train(&run, after, &RECIPE).arg("--resume")).succeeded();
        let outcome = outcome(&run);
        assert!(outcome == whole, "{before} → {after} workers, killed after step {died}: {:?}", outcome.course);
        let base = count(&run, "SELECT base_step FROM generations ORDER BY generation DESC LIMIT 1");
        if died < STEPS {
            let world = count(&run, &format!("SELECT world_size FROM steps WHERE step = {STEPS}"));
            assert_eq!(world, u64::from(after), "resumed on another world than asked for");
        }
        trials += 1;
        inside += u32::from(base > 0 && !died.is_multiple_of(STEPS_PER_EPOCH));
        moved += u32::from(before != after);
        lost += died - base;
        eprintln!("trial {trials}: {before} → {after} workers, killed after step {died}, resumed from step {base}");
    }
    eprintln!(
        "seed {SEED}: {trials} trials, {inside} killed after a checkpoint and inside an epoch, {moved} resumed on another \
         number of workers, {lost} steps done twice"
    );
    assert!(moved * 2 >= trials - 1, "{moved} of {trials} on another world");
}
