//! Names of run directories, and what makes one.

#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod common;

use common::recipe;
use lockstep_coordinator::run_dir::{RunDir, fresh, gone_on_with, latest, link_latest, recipe_of};
use lockstep_proto::exit::ExitCode;

#[test]
fn latest_follows_the_newest_run() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(latest(root.path(), "small").unwrap_err().exit_code(), ExitCode::Usage);
    let mut paths = Vec::new();
    for _ in 0..3 {
        let path = fresh(root.path(), "small");
        let directory = RunDir::prepare(&path, &recipe(), false).unwrap();
        link_latest(directory.path()).unwrap();
        assert_eq!(latest(root.path(), "small").unwrap(), directory.path());
        paths.push(path);
    }
    paths.dedup();
    assert_eq!(paths.len(), 3, "runs of one second have names of their own");
}

#[test]
fn a_run_directory_repeats_its_run() {
    let root = tempfile::tempdir().unwrap();
    let first = RunDir::prepare(root.path(), &recipe(), false).unwrap();
    assert_eq!(recipe_of(root.path()).unwrap(), recipe());
    let again = RunDir::prepare(root.path(), &recipe(), true).unwrap();
    assert_eq!((first.nonce(), again.resumed()), (again.nonce(), true));
    let provenance = std::fs::read_to_string(root.path().join("provenance.json")).unwrap();
    let provenance: serde_json::Value = serde_json::from_str(&provenance).unwrap();
    assert_eq!(provenance["recipe_sha256"], recipe().sha256());
    for key in ["commit", "diff", "build", "host", "devices", "instruction_set", "versions", "data"] {
        assert!(provenance.get(key).is_some(), "{key}");
    }
}

#[test]
fn checkpoints_without_a_database_are_not_buried_under_a_new_run() {
    let root = tempfile::tempdir().unwrap();
    RunDir::prepare(root.path(), &recipe(), false).unwrap();
    std::fs::create_dir(root.path().join("checkpoints/step-7")).unwrap();
    for resume in [false, true] {
        let error = RunDir::prepare(root.path(), &recipe(), resume).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::NoInput);
        assert!(error.to_string().contains("lost its run.db"), "{error}");
    }
}

#[test]
fn weights_may_lie_elsewhere_once_a_checkpoint_has_them() {
    let root = tempfile::tempdir().unwrap();
    let with = |weights: &str| {
        let mut recipe = recipe();
        recipe.model.weights = weights.to_owned();
        recipe
    };
    RunDir::prepare(root.path(), &with("a.safetensors"), false).unwrap();
    // Nothing is saved yet, so the new file would be another beginning.
    let early = gone_on_with(root.path(), with("b.safetensors"));
    let error = RunDir::prepare(root.path(), &early, true).unwrap_err().to_string();
    assert!(error.contains("model.weights: \"a.safetensors\" → \"b.safetensors\""), "{error}");

    std::fs::create_dir(root.path().join("checkpoints/step-0")).unwrap();
    std::fs::write(root.path().join("run.db"), "").unwrap();
    let later = gone_on_with(root.path(), with("b.safetensors"));
    assert_eq!(later.model.weights, "a.safetensors", "the run keeps the path that it began with, and its hash");
    RunDir::prepare(root.path(), &later, true).unwrap();
    // With weights is another run than without.
    assert!(RunDir::prepare(root.path(), &gone_on_with(root.path(), with("")), true).is_err());
}

#[test]
fn only_some_keys_may_differ_on_resume() {
    let root = tempfile::tempdir().unwrap();
    RunDir::prepare(root.path(), &recipe(), false).unwrap();
    let mut more = recipe();
    more.train.epochs = 5;
    more.elastic.min_workers = 2;
    more.checkpoint.keep = 9;
    more.data.path = "elsewhere".into();
    RunDir::prepare(root.path(), &more, true).unwrap();
    let mut other = recipe();
    other.optim.momentum = 0.5;
    let error = RunDir::prepare(root.path(), &other, true).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Usage);
    assert!(error.to_string().contains("optim.momentum"), "{error}");
}

#[test]
fn a_recipe_that_was_edited_in_place_is_not_resumed() {
    let root = tempfile::tempdir().unwrap();
    RunDir::prepare(root.path(), &recipe(), false).unwrap();
    let mut longer = recipe();
    longer.train.epochs += 1;
    longer.checkpoint.keep = 9;
    std::fs::write(root.path().join("recipe.toml"), longer.to_toml()).unwrap();
    RunDir::prepare(root.path(), &longer, true).unwrap();
    let mut other = recipe();
    other.optim.momentum = 0.5;
    std::fs::write(root.path().join("recipe.toml"), other.to_toml()).unwrap();
    let error = RunDir::prepare(root.path(), &other, true).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Usage);
    assert!(error.to_string().contains("is not the recipe that this run began with"), "{error}");
}

#[test]
fn a_run_without_its_recipe_says_so() {
    let root = tempfile::tempdir().unwrap();
    RunDir::prepare(root.path(), &recipe(), false).unwrap();
    std::fs::write(root.path().join("run.db"), "").unwrap();
    std::fs::remove_file(root.path().join("recipe.toml")).unwrap();
    let error = RunDir::prepare(root.path(), &recipe(), true).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::NoInput);
    assert!(error.to_string().contains("has lost its recipe.toml"), "{error}");
}

#[tokio::test]
async fn what_killed_writers_left_behind_goes_and_what_may_be_in_hand_stays() {
    let root = tempfile::tempdir().unwrap();
    RunDir::prepare(root.path(), &recipe(), false).unwrap();
    lockstep_coordinator::store::Store::open(root.path()).unwrap().close().unwrap();
    let checkpoints = root.path().join("checkpoints");
    let folder = |name: &str| {
        let folder = checkpoints.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    };
    let (young, old) = (folder(".step-3.tmp-7"), folder(".step-3.tmp-8"));
    let (upload, checkpoint) = (folder(".upload-9"), folder("step-3"));
    for folder in [&old, &checkpoint] {
        let hours_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(2 * 3600);
        std::fs::File::open(folder).unwrap().set_modified(hours_ago).unwrap();
    }
    lockstep_coordinator::Coordinator::bind(common::config(root.path(), true)).await.unwrap();
    assert_eq!([young, old, upload, checkpoint].map(|folder| folder.exists()), [true, false, false, true]);
}
