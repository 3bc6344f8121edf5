//! Shards that others made, without index.

use std::fs;
use std::path::Path;
use std::process::Command;

use lockstep_data::shards::{INDEX, Index, Shards};
use lockstep_data::verify::{Kind, verify};
use lockstep_data::{Dataset, Split};
use lockstep_proto::exit::ExitCode;

use super::{recipe, refused, seen};
use crate::common::{jpeg, png, put};

/// What the Python package `webdataset` wrote (`reference/webdataset_shards.py`).
pub const TRAIN: &[u8] = include_bytes!("webdataset-train-0000.tar");
pub const VAL: &[u8] = include_bytes!("webdataset-val-0000.tar");

/// Packs a folder's content with the system's `tar`.
fn tar(folder: &Path, shard: &Path, args: &[&str]) {
    fs::create_dir_all(shard.parent().unwrap()).unwrap();
    let status = Command::new("tar").arg("cf").arg(shard).arg("-C").arg(folder).args(args).arg(".").status().unwrap();
    assert!(status.success());
}

fn labels(set: &Shards, split: Split) -> Vec<u32> {
    let num = if split == Split::Train { set.identity().num_train } else { set.identity().num_test };
    (0..num).map(|sample| set.label(split, sample)).collect()
}

#[test]
fn shards_of_the_webdataset_package_are_read() {
    for flat in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let place = |split: &str| match flat {
            true => format!("set/webdataset-{split}-0000.tar"),
            false => format!("set/{split}/a-0000.tar"),
        };
        put(dir.path(), &place("train"), TRAIN);
        put(dir.path(), &place("val"), VAL);
        let set_at = dir.path().join("set");
        let mut recipe = recipe(&set_at.to_string_lossy(), &dir.path().join("cache"));
        (recipe.data.image.crop, recipe.data.image.resize) = (16, 16);
        let set = Shards::open(&recipe.data).unwrap();
        assert_eq!(labels(&set, Split::Train), [2, 0, 1, 2]);
        assert_eq!(labels(&set, Split::Test), [1, 2]);
        assert_eq!((set.identity().num_classes, &*set.sample(Split::Train, 1).1.name), (3, "sample000001.png"));
        let first = seen(&set);
        assert_eq!(first.len(), 6);
        // the index was kept, and is used
        let index = Index::parse(&fs::read(set_at.join(INDEX)).unwrap(), "").unwrap();
        assert_eq!(&index, set.index());
        assert_eq!(seen(&Shards::open(&recipe.data).unwrap()), first);
        let report = verify(&set_at, &|_, _| ()).unwrap();
        assert_eq!((report.num_errors(), report.num_train, report.num_test), (0, 4, 2), "{:?}", report.findings);
    }
}

#[test]
fn plain_tar_of_class_folders_and_of_unsorted_pairs_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for (split, classes) in [("train", ["n02", "n01"]), ("val", ["n01", "n02"])] {
        for (number, class) in classes.into_iter().enumerate() {
            let long = "x".repeat(120); // longer than a tar header's field
            put(root, &format!("in/{split}/{class}/{long}{number}.JPEG"), &jpeg(40 + number as u32, 40));
        }
        tar(&root.join("in").join(split), &root.join("folders").join(split).join("0.tar"), &["--sort=name"]);
        put(root, &format!("pairs/{split}/z.jpeg"), &jpeg(40, 40));
        put(root, &format!("pairs/{split}/z.json"), br#"{"label": 1, "text": "of no use"}"#);
        put(root, &format!("pairs/{split}/b.png"), &png(40, 40, png::ColorType::Rgb));
        put(root, &format!("pairs/{split}/b.cls"), b"0\n");
        put(root, &format!("pairs/{split}/._b.png"), b"what a Mac leaves behind");
        put(root, &format!("pairs/{split}/README"), b"nothing");
        let shard = root.join("pairs-tar").join(split).join("0.tar");
        fs::create_dir_all(shard.parent().unwrap()).unwrap();
        let order = ["b.cls", "z.jpeg", "README", "._b.png", "b.png", "z.json"];
        let folder = root.join("pairs").join(split);
        let status = Command::new("tar").arg("cf").arg(&shard).arg("-C").arg(folder).args(order).status().unwrap();
        assert!(status.success());
    }
    let folders = Shards::open(&recipe(&root.join("folders").to_string_lossy(), root).data).unwrap();
    assert_eq!(folders.index().classes, ["n01", "n02"]);
    assert_eq!((labels(&folders, Split::Train), labels(&folders, Split::Test)), (vec![0, 1], vec![0, 1]));
    assert_eq!(seen(&folders).len(), 4);
    let pairs = Shards::open(&recipe(&root.join("pairs-tar").to_string_lossy(), root).data).unwrap();
    assert_eq!((labels(&pairs, Split::Train), labels(&pairs, Split::Test)), (vec![1, 0], vec![1, 0]));
    assert_eq!(seen(&pairs).len(), 4);
}

/// A set of two shards, each a folder of files.
fn set(root: &Path, train: &[(&str, &[u8])], val: &[(&str, &[u8])]) -> lockstep_proto::recipe::Recipe {
    for (split, given) in [("train", train), ("val", val)] {
        let folder = root.join("in").join(split);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        given.iter().for_each(|(name, bytes)| drop(put(&folder, name, bytes)));
        tar(&folder, &root.join("set").join(split).join("0.tar"), &["--sort=name"]);
    }
    let _ = fs::remove_file(root.join("set").join(INDEX));
    recipe(&root.join("set").to_string_lossy(), &root.join("cache"))
}

#[test]
fn what_is_odd_is_named_with_its_shard_and_member() {
    let dir = tempfile::tempdir().unwrap();
    let image = jpeg(40, 40);
    let good: &[(&str, &[u8])] = &[("0.jpg", &image), ("0.cls", b"0")];
    let said = |train: &[(&str, &[u8])], val: &[(&str, &[u8])]| {
        let (code, text) = refused(&set(dir.path(), train, val));
        assert_eq!(code, ExitCode::Data, "{text}");
        text.replace(&*dir.path().to_string_lossy(), "DIR")
    };
    let text = said(&[("0.jpg", &image)], good);
    assert!(text.starts_with("DIR/set/train/0.tar: 0.jpg: its class is nowhere: neither a .cls nor"), "{text}");
    let text = said(good, &[("0.jpg", &image), ("0.png", &image), ("0.cls", b"0")]);
    assert!(text.starts_with("DIR/set/val/0.tar: 0.png: a second image of its sample"), "{text}");
    let text = said(&[("0.jpg", &image), ("0.cls", b"4000000000")], good);
    assert!(text.starts_with("DIR/set/train/0.tar: 0.jpg: label 4000000000 is too large"), "{text}");
    let text = said(good, &[("0.jpg", &image), ("0.cls", b"tench")]);
    assert!(text.contains("by number or by name, not both"), "{text}");
    let text = said(good, &[("0.jpg", &image), ("0.cls", b"7")]);
    assert!(text.starts_with("DIR/set/val/0.tar: val has the class 7, which train lacks"), "{text}");
    put(dir.path(), "set/train/0.tar", &image.repeat(3));
    let text = refused(&recipe(&dir.path().join("set").to_string_lossy(), dir.path())).1;
    assert!(text.contains("train/0.tar: at offset 0: ") && text.contains("no tar file"), "{text}");
    let cut = fs::read(dir.path().join("set/val/0.tar")).unwrap();
    put(dir.path(), "set/train/0.tar", &cut[..1_600]);
    let text = refused(&recipe(&dir.path().join("set").to_string_lossy(), dir.path())).1;
    assert!(text.contains("train/0.tar: at offset ") && text.contains("truncated"), "{text}");
}

#[test]
fn tar_files_beside_class_folders_are_strays_of_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    super::folder(dir.path());
    put(dir.path(), "train/n01.tar", TRAIN);
    let report = verify(dir.path(), &|_, _| ()).unwrap();
    assert_eq!((report.num_train, report.counts().get("stray")), (10, Some(&1)));
}

#[test]
fn no_shards_and_compressed_ones_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(&dir.path().to_string_lossy(), dir.path());
    let (code, text) = refused(&recipe);
    assert_eq!(code, ExitCode::NoInput);
    assert!(text.contains("no shards: there must be lockstep-index.json, or train/*.tar and val/*.tar"), "{text}");
    put(dir.path(), "train/0.tar.gz", b"");
    assert!(refused(&recipe).1.ends_with("compressed: unpack them, nothing can be read from their middle"));
}

#[test]
fn an_index_that_was_made_from_headers_follows_the_shards() {
    let dir = tempfile::tempdir().unwrap();
    let image = jpeg(40, 40);
    let recipe = set(dir.path(), &[("0.jpg", &image), ("0.cls", b"0")], &[("0.jpg", &image), ("0.cls", b"0")]);
    let before = Shards::open(&recipe.data).unwrap().identity().clone();
    fs::copy(dir.path().join("set/val/0.tar"), dir.path().join("set/train/1.tar")).unwrap();
    let after = Shards::open(&recipe.data).unwrap().identity().clone();
    assert_eq!((before.num_train, after.num_train), (1, 2));
    assert_ne!(before.fingerprint, after.fingerprint);
    // the same size, other members: only reading can tell
    let shard = dir.path().join("set/train/1.tar");
    let set = Shards::open(&recipe.data).unwrap();
    let bytes = fs::read(&shard).unwrap();
    let mut moved = bytes.clone();
    moved[..bytes.len() - 512].copy_from_slice(&bytes[512..]);
    fs::write(&shard, moved).unwrap();
    let error = set.image(Split::Train, 1, None, &mut vec![0.0; 32 * 32 * 3]).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Data);
    let text = error.to_string();
    assert!(
        text.contains("train/1.tar: no file of ") && text.contains("it changed since its index was made"),
        "{text}"
    );
    let report = verify(&dir.path().join("set"), &|_, _| ()).unwrap();
    assert_eq!(
        report.findings.iter().filter(|finding| finding.kind == Kind::Shard).count(),
        1,
        "{:?}",
        report.findings
    );
}
