//! Runs on real photographs, from files to weights: with mixing, repeated augmentation, progressive resizing, smoothing,
//! clipping and an average, two workers do what one does, and whoever resumes goes on with the same bits.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use common::{Course, Running, audited, count, course, end, last_tensors, lockstep, train};

/// 100 photographs, each at three positions: 300 positions, in batches of 40 and chunks of 8. The last of an epoch has 20
/// positions, in chunks of 8, 8 and 4.
const STEPS_PER_EPOCH: u64 = 8;
const RECIPE: [&str; 27] = [
    "data.kind=image-folder",
    "data.normalize=channel",
    "data.repeats=3",
    "data.image.crop=32",
    "data.image.crop_milestones=[1]",
    "data.image.crop_sizes=[40]",
    "data.image.eval_crop=48",
    "data.image.resize=56",
    "data.image.brightness=0.2",
    "model.arch=resnet18",
    "model.shortcut=B",
    "optim.clip_norm=1.5",
    "schedule.lr=0.02",
    "train.batch=40",
    "train.epochs=3",
    "train.label_smoothing=0.1",
    "train.mixup_alpha=0.2",
    "train.cutmix_alpha=1.0",
    "train.mix_probability=0.9",
    "train.ema_decay=0.9",
    "train.ema_every=3",
    "train.ema_after_epochs=1",
    "train.evaluate=ema",
    "train.evaluate_every_epochs=1",
    "train.evaluate_first=false",
    "checkpoint.every_steps=5",
    "checkpoint.keep=0",
];

/// A folder of the photographs as `train/` and `val/`, where there are any.
fn folder(dir: &Path) -> Option<PathBuf> {
    let Some(data) = std::env::var_os("LOCKSTEP_TEST_DATA") else {
        assert!(std::env::var_os("LOCKSTEP_TEST_REQUIRE").is_none(), "nothing may skip: set LOCKSTEP_TEST_DATA");
        println!("skipped: LOCKSTEP_TEST_DATA is not set");
        return None;
    };
    let photographs = PathBuf::from(data).join("imagenet-sample").join("val");
    assert!(photographs.is_dir(), "{}: no such folder", photographs.display());
    let root = dir.join("photographs");
    std::fs::create_dir(&root).unwrap();
    for split in ["train", "val"] {
        symlink(photographs.canonicalize().unwrap(), root.join(split)).unwrap();
    }
    Some(root)
}

/// All that two runs must have in common.
#[derive(PartialEq)]
struct Outcome {
    course: Course,
    epochs: Vec<String>,
    tensors: [Vec<u8>; 2],
}

#[track_caller]
fn outcome(run: &Path, steps: u64) -> Outcome {
    let course = course(run);
    assert_eq!(course.steps.len() as u64, steps);
    for epoch in 1..=steps / STEPS_PER_EPOCH {
        assert_eq!(count(run, &format!("SELECT sum(len) FROM ledger WHERE epoch = {epoch}")), 300);
    }
    let epochs = std::fs::read_to_string(run.join("epochs.csv")).unwrap();
    let epochs = epochs.lines().map(|row| row.split(',').take(9).collect::<Vec<_>>().join(",")).collect();
    audited(run);
    Outcome { course, epochs, tensors: last_tensors(run) }
}

#[track_caller]
fn same(what: &str, have: &Outcome, want: &Outcome) {
    assert_eq!(have.course, want.course, "{what}");
    assert_eq!(have.epochs, want.epochs, "{what}");
    assert!(have.tensors == want.tensors, "{what}: tensors");
}

/// What was evaluated while training is what `eval` finds, and `export --ema` writes other numbers under the same names.
#[track_caller]
fn evaluated_and_exported(run: &Path, steps: u64) {
    let checkpoint = common::checkpoint(run, steps);
    let found = end(lockstep(&["eval", "--json", "--threads", "1"]).arg(&checkpoint)).succeeded().json();
    let epochs = std::fs::read_to_string(run.join("epochs.csv")).unwrap();
    let columns: Vec<&str> = epochs.lines().next().unwrap().split(',').collect();
    let last: Vec<&str> = epochs.lines().last().unwrap().split(',').collect();
    let of = |name: &str| last[columns.iter().position(|column| *column == name).unwrap()].parse::<f64>().unwrap();
    assert_eq!((found["loss"].as_f64(), found["error"].as_f64()), (Some(of("test_loss")), Some(of("test_error"))));

    let export = |name: &str, more: &[&str]| {
        let file = run.join(name);
        end(lockstep(&["export"]).arg(&checkpoint).arg("--out").arg(&file).args(more)).succeeded();
        let bytes = std::fs::read(file).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
        header.as_object_mut().unwrap().remove("__metadata__");
        (header, bytes)
    };
    let (model, average) = (export("model.safetensors", &[]), export("average.safetensors", &["--ema"]));
    assert_eq!(model.0, average.0, "names, shapes and places");
    assert_ne!(model.1, average.1);
}

fn sets(root: &Path, more: &[&str]) -> Vec<String> {
    let path = format!("data.path={}", root.display());
    RECIPE.iter().map(|set| (*set).to_owned()).chain([path]).chain(more.iter().map(|set| (*set).to_owned())).collect()
}

fn command(run: &Path, workers: u32, sets: &[String]) -> std::process::Command {
    train(run, workers, &sets.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn workers_and_resumes_change_no_bit_with_every_training_feature_on() {
    let dir = tempfile::tempdir().unwrap();
    let Some(root) = folder(dir.path()) else { return };
    let all = sets(&root, &[]);
    let steps = 3 * STEPS_PER_EPOCH;
    let path = |name: &str| dir.path().join(name);

    end(&mut command(&path("one"), 1, &all)).succeeded();
    let one = outcome(&path("one"), steps);
    assert!(one.tensors[1].windows(14).any(|bytes| bytes == b"ema.bn1.weight"), "the average is saved");
    eprintln!("state {}, last loss {}", one.course.state.last().unwrap().1, f64::from_bits(one.course.steps[23][4]));

    evaluated_and_exported(&path("one"), steps);

    for workers in [2, 3] {
        let run = path(&format!("{workers} workers"));
        end(&mut command(&run, workers, &all)).succeeded();
        assert_eq!(count(&run, &format!("SELECT count(*) FROM steps WHERE world_size = {workers}")), steps);
        same(&format!("{workers} workers"), &outcome(&run, steps), &one);
    }

    // In the middle of epoch 2, between two updates of the average; then with another number of workers.
    let run = path("stopped");
    end(&mut command(&run, 2, &sets(&root, &["train.max_steps=11"]))).succeeded();
    end(command(&run, 1, &all).arg("--resume")).succeeded();
    same("stopped after step 11", &outcome(&run, steps), &one);

    let run = path("killed");
    let mut running = Running::start(&mut command(&run, 1, &all));
    running.wait_for_step(12);
    running.kill();
    drop(running.end());
    end(command(&run, 2, &all).arg("--resume")).succeeded();
    assert!(count(&run, "SELECT max(base_step) FROM generations") >= 10, "it went on from a checkpoint");
    same("killed after step 12", &outcome(&run, steps), &one);
}

#[test]
fn accumulating_on_some_workers_changes_no_bit() {
    let dir = tempfile::tempdir().unwrap();
    let Some(root) = folder(dir.path()) else { return };
    let chunk = ["train.batch_norm=chunk", "train.epochs=1"];
    let run = |name: &str, workers: u32, more: &[&str]| {
        let run = dir.path().join(name);
        end(&mut command(&run, workers, &sets(&root, &[&chunk, more].concat()))).succeeded();
        outcome(&run, STEPS_PER_EPOCH)
    };
    let whole = run("whole", 1, &[]);
    same("one worker in three parts", &run("parts", 1, &["train.accumulate=3"]), &whole);
    same("two workers in two parts", &run("two", 2, &["train.accumulate=2"]), &whole);

    // It may differ on resume.
    let stopped = dir.path().join("stopped");
    end(&mut command(&stopped, 1, &sets(&root, &[&chunk[..], &["train.max_steps=3"]].concat()))).succeeded();
    let rest = sets(&root, &[&chunk[..], &["train.accumulate=5"]].concat());
    end(command(&stopped, 1, &rest).arg("--resume")).succeeded();
    same("resumed in five parts", &outcome(&stopped, STEPS_PER_EPOCH), &whole);
}
