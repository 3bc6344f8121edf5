//! A folder with broken images, end to end: named and refused, or skipped on every world alike.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod common;
#[path = "../worker/data/tests/common/mod.rs"]
mod drawn;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{Course, audited, count, course, end, last_tensors, lockstep};

const CLASSES: [&str; 3] = ["ash", "birch", "cedar"];
const BROKEN: [(&str, &[u8], &str); 5] = [
    ("train/ash/03.png", b"", "not a JPEG or PNG but an empty file"),
    (
        "train/birch/11.png",
        b"<html>403</html>",
        "not a JPEG or PNG but a web page, as a download leaves it that was refused",
    ),
    ("train/cedar/07.png", b"GIF89a\x01\0\x01\0", "not a JPEG or PNG but a GIF"),
    ("train/cedar/08.png", b"\xff\xd8\xff\xe0", "JPEG, "),
    ("val/birch/02.png", b"hello", "not a JPEG or PNG but text"),
];

fn put(root: &Path, path: &str, bytes: &[u8]) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// Waves, of a colour and a direction for each class.
fn picture(class: usize, number: usize) -> Vec<u8> {
    let (side, phase) = (40, number as f64 / 3.0);
    let mut rgb = Vec::new();
    for (y, x) in (0..side).flat_map(|y| (0..side).map(move |x| (f64::from(y), f64::from(x)))) {
        let wave = 90.0 + 80.0 * ((x * (class as f64 + 1.0) + y) / 6.0 + phase).sin();
        rgb.extend((0..3).map(|channel| if channel == class { 200 } else { wave as u8 }));
    }
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, side as u32, side as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header().unwrap().write_image_data(&rgb).unwrap();
    bytes
}

/// 54 training images and 12 test images, some of them broken, and a recipe: batches of 16 in chunks of 4.
fn folder(root: &Path, bad: &str) -> PathBuf {
    for (class, name) in CLASSES.into_iter().enumerate() {
        (0..18).for_each(|number| put(root, &format!("train/{name}/{number:02}.png"), &picture(class, number)));
        (0..4).for_each(|number| put(root, &format!("val/{name}/{number:02}.png"), &picture(class, 40 + number)));
    }
    BROKEN.into_iter().for_each(|(path, bytes, _)| put(root, path, bytes));
    let recipe = format!(
        "[data]\nkind = \"image-folder\"\npath = \"{}\"\nnormalize = \"channel\"\n\
         [data.image]\ncrop = 32\nresize = 36\nbad = \"{bad}\"\n\
         [model]\nn = 1\nwidth = 8\n[schedule]\nlr = 0.05\n\
         [train]\nepochs = 3\nbatch = 16\nchunk = 4\neval_chunk = 5\nseed = 3\n",
        root.display()
    );
    let path = root.join("recipe.toml");
    std::fs::write(&path, recipe).unwrap();
    path
}

/// Trains on so many workers of so many threads.
fn trained(recipe: &Path, run: &Path, (workers, threads): (u32, u32), sets: &[&str]) -> (Course, [Vec<u8>; 2]) {
    let mut command = lockstep(&["train"]);
    command.arg(recipe).arg("--json").arg("--run-dir").arg(run);
    command.args(["--workers", &workers.to_string(), "--threads", &threads.to_string()]);
    for set in sets {
        command.args(["--set", set]);
    }
    end(&mut command).succeeded();
    (course(run), last_tensors(run))
}

/// Events of samples that were left out.
fn skipped(run: &Path) -> Vec<serde_json::Value> {
    let events = end(lockstep(&["events", "--json"]).arg(run)).succeeded().stdout;
    let events = events.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    events.filter(|event| event["kind"] == "sample_skipped").collect()
}

/// How often each file of a split was left out, with what was said of it.
fn by_file(events: &[serde_json::Value], split: &str) -> BTreeMap<String, (u64, String)> {
    let mut files: BTreeMap<String, (u64, String)> = BTreeMap::new();
    for event in events.iter().map(|event| &event["detail"]).filter(|detail| detail["split"] == split) {
        let text = |key: &str| event[key].as_str().unwrap().to_owned();
        let of = files.entry(text("file")).or_insert((0, text("reason")));
        assert_eq!(of.1, text("reason"), "the same is said of a file each time");
        of.0 += 1;
    }
    files
}

#[test]
fn skipped_images_are_named_and_counted_and_the_bits_are_those_of_every_world() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = folder(&dir.path().join("images"), "skip");
    let run = |name: &str| dir.path().join(name);
    let alone = trained(&recipe, &run("alone"), (1, 1), &[]);
    let two = trained(&recipe, &run("two"), (2, 1), &[]);
    assert_eq!(two.0, alone.0);
    assert!(two.1 == alone.1, "tensors of two workers");
    let inline = trained(&recipe, &run("inline"), (1, 2), &["data.image.prefetch=0"]);
    assert_eq!(inline.0, alone.0);
    let many = trained(&recipe, &run("many"), (3, 1), &["data.image.prefetch=7", "data.image.threads=3"]);
    assert_eq!(many.0, alone.0);

    let reads_ahead = |name: &str| {
        let lines = std::fs::read_to_string(run(name).join("metrics.jsonl")).unwrap();
        lines.lines().filter(|line| line.contains("\"data_ready\":")).count()
    };
    assert_eq!(["alone", "many", "inline"].map(reads_ahead), [12, 12, 0]);
    for name in ["alone", "two", "many"] {
        let run = run(name);
        audited(&run);
        for epoch in 1..=3 {
            let of = |sum: &str, table: &str| count(&run, &format!("SELECT {sum} FROM {table} WHERE epoch = {epoch}"));
            assert_eq!(of("sum(len)", "ledger"), 54, "positions stay in the ledger");
            assert_eq!((of("sum(samples)", "steps"), of("sum(skipped)", "steps")), (50, 4));
            assert_eq!((of("skipped", "epochs"), of("test_skipped", "epochs")), (4, 1));
        }
        let skipped = skipped(&run);
        assert_eq!(skipped.len(), 3 * 4 + 4, "each of three epochs, and the test image at each of four evaluations");
        for (file, _, reason) in BROKEN {
            let named: Vec<_> = skipped.iter().filter(|event| event["detail"]["file"] == file).collect();
            let is_train = file.starts_with("train/");
            assert_eq!(named.len(), if is_train { 3 } else { 4 }, "{file}");
            for event in named {
                assert!(event["detail"]["reason"].as_str().unwrap().starts_with(reason), "{event}");
                let (position, epoch) = (&event["detail"]["position"], event["detail"]["epoch"].as_u64().unwrap());
                let batch = position.as_u64().unwrap() / 16 + (epoch.max(1) - 1) * 4 + 1;
                assert!(!is_train || event["step"].as_u64() == Some(batch), "{event}");
            }
        }
        let csv = std::fs::read_to_string(run.join("epochs.csv")).unwrap();
        let last: Vec<&str> = csv.lines().map(|line| line.rsplit(',').nth(1).unwrap()).collect();
        assert_eq!(last, ["skipped", "0", "4", "4", "4"], "{csv}");
    }
    // An event that is gone is missed, and so is one that was made up.
    let connection = rusqlite::Connection::open(run("two").join("run.db")).unwrap();
    let id: i64 = connection
        .query_row("SELECT min(id) FROM events WHERE kind = 'sample_skipped' AND step > 0", [], |row| row.get(0))
        .unwrap();
    connection.execute("UPDATE events SET kind = 'other' WHERE id = ?1", [id]).unwrap();
    let ended = end(lockstep(&["audit"]).arg(run("two")));
    assert_eq!(ended.code, Some(65));
    assert!(ended.stderr.contains("and events name ") && ended.stderr.contains(": digest "), "{}", ended.stderr);
}

#[test]
fn a_broken_image_ends_a_run_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().join("images");
    let recipe = folder(&images, "error");
    let command = &mut lockstep(&["train"]);
    command.arg(recipe).args(["--workers", "2", "--threads", "1", "--run-dir"]).arg(dir.path().join("run"));
    let ended = end(command);
    assert_eq!(ended.code, Some(65), "{}", ended.stderr);
    let error = ended.error(&[(&images, "IMAGES")]);
    let named = BROKEN.iter().any(|(file, _, reason)| error.contains(&format!("IMAGES/{file}: {reason}")));
    assert!(
        named && error.contains("replace or remove it; `lockstep data verify IMAGES` finds all such files"),
        "{error}"
    );
}

#[test]
fn with_mixing_repeats_smoothing_clipping_and_accumulation_the_bits_are_those_of_every_world() {
    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().join("images");
    let recipe = folder(&images, "skip");
    let run = |name: &str| dir.path().join(name);
    let sets = [
        "train.mixup_alpha=0.2",
        "train.cutmix_alpha=1.0",
        "train.label_smoothing=0.1",
        "train.batch_norm=chunk",
        "data.repeats=2",
        "data.image.auto_augment=trivial_augment_wide",
        "data.image.erase=0.3",
        "optim.clip_norm=1",
        "train.epochs=2",
    ];
    let alone = trained(&recipe, &run("alone"), (1, 1), &sets);
    for (name, world, more) in [
        ("two", (2, 1), &["train.accumulate=2"][..]),
        ("three", (3, 1), &["data.image.prefetch=0", "train.accumulate=3"]),
        ("threads", (1, 2), &["data.image.prefetch=5", "data.image.threads=1"]),
    ] {
        let other = trained(&recipe, &run(name), world, &[&sets[..], more].concat());
        assert_eq!(other.0, alone.0, "{name}");
        assert!(other.1 == alone.1, "tensors of {name}");
        audited(&run(name));
    }
    audited(&run("alone"));
    for epoch in 1..=2 {
        let of =
            |sum: &str, table: &str| count(&run("alone"), &format!("SELECT {sum} FROM {table} WHERE epoch = {epoch}"));
        assert_eq!((of("sum(len)", "ledger"), of("sum(samples)", "steps"), of("sum(skipped)", "steps")), (108, 100, 8));
    }

    // From shards of that folder: the same samples, broken ones among them, so the same course.
    let shards = dir.path().join("shards");
    end(lockstep(&["data", "pack", "--json", "--shard-samples", "10"]).arg(&images).arg(&shards)).succeeded();
    let place = format!("data.path={}", shards.display());
    let more = ["data.kind=webdataset", &place];
    let packed = trained(&recipe, &run("packed"), (2, 1), &[&sets[..], &more].concat());
    assert_eq!(packed.0.steps, alone.0.steps);
    assert!(packed.1 == alone.1, "tensors from shards");
    audited(&run("packed"));
    let (folder, packed) = (by_file(&skipped(&run("alone")), "train"), by_file(&skipped(&run("packed")), "train"));
    assert_eq!(folder.len(), 4);
    for ((file, said), (in_shard, said_there)) in folder.iter().zip(&packed) {
        let name = file.strip_prefix("train/").unwrap();
        assert!(packed.keys().any(|there| there.ends_with(name.rsplit('/').next().unwrap())), "{file}: {packed:?}");
        assert!(in_shard.starts_with("train/") && in_shard.contains(".tar: "), "{in_shard}");
        assert_eq!(said.0, said_there.0);
    }
}

#[test]
fn of_thirty_kinds_of_broken_or_odd_images_each_broken_one_is_named_and_the_count_is_exact() {
    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().join("images");
    let (broken, odd) = (drawn::odd::broken(), drawn::odd::odd());
    assert!(broken.len() + odd.len() >= 30);
    let all =
        broken.iter().map(|(name, bytes, _)| (name, bytes)).chain(odd.iter().map(|(name, bytes, _)| (name, bytes)));
    for (name, bytes) in all {
        put(&images, &format!("train/a/{name}"), bytes);
        put(&images, &format!("val/a/{name}"), bytes);
    }
    (0..6).for_each(|number| put(&images, &format!("train/b/{number}.png"), &picture(1, number)));
    (0..3).for_each(|number| put(&images, &format!("val/b/{number}.png"), &picture(1, 20 + number)));
    let recipe = dir.path().join("recipe.toml");
    // without random parts every row of every image is needed
    let text = format!(
        "[data]\nkind = \"image-folder\"\npath = \"{}\"\nnormalize = \"channel\"\n\
         [data.image]\ncrop = 32\nresize = 32\nrandom_crop = false\nbad = \"skip\"\n\
         [model]\nn = 1\nwidth = 8\n[schedule]\nlr = 0.01\n\
         [train]\nepochs = 2\nbatch = 16\nchunk = 4\neval_chunk = 5\n",
        images.display()
    );
    std::fs::write(&recipe, text).unwrap();
    let run = dir.path().join("run");
    trained(&recipe, &run, (2, 1), &[]);
    audited(&run);
    let num = broken.len() as u64;
    for epoch in 1..=2 {
        let of = |what: &str| count(&run, &format!("SELECT {what} FROM epochs WHERE epoch = {epoch}"));
        assert_eq!((of("skipped"), of("test_skipped")), (num, num));
    }
    let events = skipped(&run);
    for (split, folder, times) in [("train", "train", 2), ("test", "val", 3)] {
        let files = by_file(&events, split);
        assert_eq!(files.len(), broken.len(), "{files:#?}");
        for (name, _, reason) in &broken {
            let found = files.get(&format!("{folder}/a/{name}"));
            assert!(found.is_some_and(|(num, said)| *num == times && said.contains(reason)), "{name}: {found:?}");
        }
    }

    // What looks at the same images outside of a run names them too.
    let steps = course(&run).steps.len();
    let checkpoint = run.join(format!("checkpoints/step-{steps}"));
    let found = end(lockstep(&["eval", "--json", "--threads", "1"]).arg(&checkpoint)).succeeded().json();
    assert_eq!(found["samples"].as_u64(), Some(odd.len() as u64 + 3));
    let named: Vec<&str> = found["skipped"].as_array().unwrap().iter().map(|of| of["file"].as_str().unwrap()).collect();
    assert_eq!(named.len(), broken.len());
    let said = end(lockstep(&["eval", "--threads", "1"]).arg(&checkpoint)).succeeded().stdout;
    for (name, _, reason) in &broken {
        assert!(named.contains(&&*format!("val/a/{name}")), "{name}");
        let line = said.lines().find(|line| line.starts_with(&format!("skipped val/a/{name}: ")));
        assert!(line.is_some_and(|line| line.contains(reason)), "{name}: {said}");
    }
    assert!(said.contains(&format!("on {} test images, {num} skipped", odd.len() + 3)), "{said}");
    let dry = end(lockstep(&["train"]).arg(&recipe).args(["--dry-run", "--json", "--threads", "1"])).succeeded().json();
    let (counted, skipped) = (dry["step"]["samples"].as_u64().unwrap(), dry["step"]["skipped"].as_u64().unwrap());
    assert_eq!((counted + skipped, skipped > 0), (16, true), "{dry}");
    let learnt = dir.path().join("learnt");
    let mut command = lockstep(&["train"]);
    command.arg(&recipe).args(["--overfit-batches", "1", "--workers", "2", "--threads", "1", "--run-dir"]).arg(&learnt);
    end(&mut command).succeeded();
    audited(&learnt);
    let per_step = count(&learnt, "SELECT count(DISTINCT skipped) FROM steps WHERE samples + skipped = 16");
    assert_eq!((per_step, count(&learnt, "SELECT max(skipped) FROM steps")), (1, skipped));
}
