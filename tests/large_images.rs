//! What the size of images costs a whole worker: nothing, where a smaller scale has enough pixels.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use common::{end, lockstep};
use lockstep_jpeg::{Encoding, Pixels, Subsampling, encode};

/// Two classes of eight and four images, all of them links to one JPEG of this size.
fn folder(root: &Path, (width, height): (u32, u32)) {
    let row: Vec<u8> = (0..width).flat_map(|x| [(x * 255 / width) as u8, 90, (x % 251) as u8]).collect();
    let how = Encoding { subsampling: Subsampling::Quarter, ..Encoding::default() };
    fs::create_dir_all(root).unwrap();
    let file = root.join("image");
    fs::write(&file, encode(Pixels::Rgb, (width, height), &row.repeat(height as usize), how).unwrap()).unwrap();
    for (split, num) in [("train", 8), ("val", 4)] {
        for class in ["a", "b"] {
            let folder = root.join(split).join(class);
            fs::create_dir_all(&folder).unwrap();
            (0..num).for_each(|number| symlink(&file, folder.join(format!("{number}.JPEG"))).unwrap());
        }
    }
}

/// Bytes that a worker had at most in a step of 16 images and an evaluation of 8.
#[track_caller]
fn peak(root: &Path) -> u64 {
    let path = format!("data.path={}", root.display());
    let sets = [
        path.as_str(),
        "data.kind=image-folder",
        "data.normalize=channel",
        "data.image.crop=64",
        "data.image.resize=72",
        "model.n=1",
        "model.width=8",
        "train.batch=16",
        "train.chunk=4",
        "train.eval_chunk=4",
    ];
    let mut command = lockstep(&["train", "demo", "--dry-run", "--json", "--threads", "2"]);
    for set in sets {
        command.args(["--set", set]);
    }
    let peak = end(&mut command).succeeded().json()["bytes"]["peak"].as_u64().unwrap();
    assert!(peak > 0, "the system does not tell");
    peak
}

/// 108 million pixels would be 324 MB in each of two threads.
#[test]
fn photographs_of_12000_by_9000_pixels_take_the_memory_of_small_ones() {
    let dir = tempfile::tempdir().unwrap();
    let [small, huge] = [("small", (500, 375)), ("huge", (12_000, 9_000))].map(|(name, size)| {
        let root = dir.path().join(name);
        folder(&root, size);
        peak(&root)
    });
    println!("peak of the worker: {} MB with small images, {} MB with huge ones", small / 1_000_000, huge / 1_000_000);
    assert!(huge < small + (48 << 20), "{huge} bytes against {small}");
}
