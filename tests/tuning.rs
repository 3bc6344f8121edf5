//! Weights that travel between runs and files, dry runs, overfitting: by the documented commands.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{audited, course, end, lockstep, train, with_sets};
use serde_json::Value;

/// A small run's exported weights after its last step.
fn weights(dir: &Path) -> PathBuf {
    let run = dir.join("first");
    end(&mut train(&run, 1, &["train.epochs=1"])).succeeded();
    let out = dir.join("first.safetensors");
    end(lockstep(&["export"]).arg(run.join("checkpoints/step-4")).arg("--out").arg(&out)).succeeded();
    out
}

fn eval(of: &Path, more: &[&str]) -> Value {
    end(lockstep(&["eval", "--json"]).arg(of).args(more)).succeeded().json()
}

#[test]
fn a_file_evaluates_as_its_checkpoint_and_logits_are_written_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let file = weights(dir.path());
    let checkpoint = eval(&dir.path().join("first/checkpoints/step-4"), &[]);
    let logits = dir.path().join("logits.safetensors");
    // It carries the recipe of its run.
    let bare = eval(&file, &["--logits", logits.to_str().unwrap(), "--pixels"]);
    for key in ["loss", "error", "error_top5", "top1", "top5", "samples"] {
        assert_eq!(bare[key], checkpoint[key], "{key}");
    }
    assert_eq!((checkpoint["step"].as_u64(), bare["step"].as_u64()), (Some(4), None));
    let top1 = checkpoint["top1"].as_f64().unwrap();
    assert!((top1 + checkpoint["error"].as_f64().unwrap() - 1.0).abs() < 1e-12);
    let header = fs::read(&logits).unwrap();
    let size = u64::from_le_bytes(header[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&header[8..8 + size]).unwrap();
    assert_eq!(header["logits"]["shape"], serde_json::json!([40, 10]));
    assert_eq!(header["images"]["shape"], serde_json::json!([40, 3, 32, 32]));
    assert_eq!(header["labels"]["dtype"], "I64");
    let said = end(lockstep(&["eval"]).arg(&file).args(["--set", "data.test_limit=20"])).succeeded().stdout;
    assert!(said.contains("top-1 ") && said.contains(" on 20 test images"), "{said}");
}

#[test]
fn a_run_begins_with_a_file_freezes_parts_of_it_and_goes_on_when_the_file_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let file = weights(dir.path());
    let set = |path: &Path| format!("model.weights='{}'", path.display());
    let first = set(&file);
    let tuned = [&*first, "model.head=replace", "model.freeze=[\"stem\", \"layer1\"]", "optim.lr_scale.head=5.0"];
    let whole: Vec<_> = [1, 2]
        .map(|workers| {
            let run = dir.path().join(format!("tuned-{workers}"));
            end(&mut train(&run, workers, &tuned)).succeeded();
            audited(&run);
            course(&run)
        })
        .into();
    assert_eq!(whole[0], whole[1], "the same bits on two workers");

    let run = dir.path().join("cut");
    end(&mut train(&run, 1, &[&tuned[..], &["train.max_steps=5"]].concat())).succeeded();
    let gone = dir.path().join("moved.safetensors");
    fs::rename(&file, &gone).unwrap();
    fs::remove_file(&gone).unwrap();
    let elsewhere = set(&gone);
    let again = [&*elsewhere, tuned[1], tuned[2], tuned[3]];
    end(train(&run, 2, &again).arg("--resume")).succeeded();
    audited(&run);
    assert_eq!(course(&run), whole[0], "interrupted, the file gone, on another world");
}

#[test]
fn a_classifier_of_other_classes_is_refused_unless_it_is_to_be_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let file = weights(dir.path());
    let folder = dir.path().join("images");
    for (split, class) in [("train", "a"), ("train", "b"), ("val", "a"), ("val", "b")] {
        let to = folder.join(split).join(class);
        fs::create_dir_all(&to).unwrap();
        let mut encoder = png::Encoder::new(fs::File::create(to.join("1.png")).unwrap(), 32, 32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.write_header().unwrap().write_image_data(&[90; 32 * 32 * 3]).unwrap();
    }
    let (data, begun) = (format!("data.path='{}'", folder.display()), format!("model.weights='{}'", file.display()));
    let two = |head: &str, run: &str| {
        let mut command = lockstep(&["train", "demo", "--json", "--threads", "1", "--run-dir"]);
        command.arg(dir.path().join(run));
        for set in
            ["model.n=1", "model.width=8", "train.batch=2", "train.chunk=2", "train.max_steps=1", "train.epochs=1"]
        {
            command.args(["--set", set]);
        }
        for set in ["data.kind=image-folder", "data.image={ crop = 32, resize = 32 }", "data.normalize=channel"] {
            command.args(["--set", set]);
        }
        for set in ["data.train_size=10000", "data.test_size=2000", &data, &begun, &format!("model.head={head}")] {
            command.args(["--set", set]);
        }
        end(&mut command)
    };
    let refused = two("keep", "kept");
    assert_eq!(refused.code, Some(65), "{}", refused.stderr);
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert!(
        said.contains("`fc.bias` is [10], the model's is [2]: with model.head = \\\"replace\\\"")
            || said.contains("`fc.bias` is [10], the model's is [2]: with model.head = \"replace\""),
        "{said}"
    );
    two("replace", "replaced").succeeded();
    let wrong = end(lockstep(&["eval"]).arg(&file).args(["--recipe"]).arg(dir.path().join("replaced/recipe.toml")));
    assert_eq!(wrong.code, Some(65));
    assert!(wrong.stderr.contains("a classifier of 10 classes, but the data has 2"), "{}", wrong.stderr);
    let shown = end(lockstep(&["eval", "--json"])
        .arg(dir.path().join("replaced/checkpoints/step-1"))
        .arg("--image")
        .arg(folder.join("val/b/1.png")))
    .succeeded()
    .json();
    let names: Vec<&str> =
        shown["best"].as_array().unwrap().iter().map(|best| best["name"].as_str().unwrap()).collect();
    assert!(names.len() == 2 && names.contains(&"a") && names.contains(&"b"), "{shown}");
}

#[test]
fn a_dry_run_tells_shapes_and_memory_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = lockstep(&["train", "demo", "--dry-run", "--threads", "1"]);
    with_sets(command.current_dir(dir.path()), &["model.freeze=[\"stem\"]"]);
    let said = end(&mut command).succeeded().stdout;
    for expected in ["8 × 32 × 32", "32 × 8 × 8", "values kept for backward", "step 1      loss", "Nothing was written"]
    {
        assert!(said.contains(expected), "{expected} is not in:\n{said}");
    }
    let found = end(command.arg("--json")).succeeded().json();
    assert_eq!(
        (found["batch"].as_u64(), found["chunks"].as_u64(), found["frozen"].as_u64()),
        (Some(32), Some(4), Some(232))
    );
    // Six layers of BatchNorm beside the frozen one have messages forward and backward: 16·(2·8 + 2·16 + 2·32) bytes each way.
    let traffic = ["norm_messages", "norm", "buckets"].map(|key| found["traffic"][key].as_u64().unwrap());
    assert_eq!(traffic, [12, 3584, 3]);
    let trained = 4 * (found["parameters"].as_u64().unwrap() - 232);
    let gradient = found["traffic"]["gradient"].as_u64().unwrap();
    assert!((trained..trained + trained / 20).contains(&gradient), "{gradient} bytes, with padding, for {trained}");
    assert!(found["bytes"]["peak"].as_u64().unwrap() > found["bytes"]["values"].as_u64().unwrap());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "something was written");
    let mut wrong = lockstep(&["train", "demo", "--dry-run", "--set", "model.freeze=[\"layer4\"]"]);
    assert_eq!(end(&mut wrong).code, Some(64));
}

#[test]
fn overfitting_learns_its_batches_by_heart_and_the_audit_knows() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let long =
        ["train.epochs=15", "train.evaluate_every_epochs=0", "checkpoint.every_epochs=0", "checkpoint.every_steps=0"];
    end(train(&run, 1, &long).args(["--overfit-batches", "1"])).succeeded();
    audited(&run);
    let lines = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let losses: Vec<f64> =
        lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap()).collect();
    // 60 steps of one batch of 32, the last of an epoch its first 4.
    assert_eq!(losses.len(), 60);
    assert!(losses[58] < 0.2 * losses[0], "{losses:?}");
    let recipe = fs::read_to_string(run.join("recipe.toml")).unwrap();
    assert!(recipe.contains("overfit_batches = 1"), "{recipe}");
}
