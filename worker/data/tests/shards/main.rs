//! Shards: packed, made by others, in a folder and behind a web server, whole and damaged.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

#[path = "../common/mod.rs"]
mod common;
mod foreign;
mod packing;
mod remote;
mod server;

use std::fs;
use std::path::Path;

use lockstep_data::shards::Shards;
use lockstep_data::shards::pack::{Options, Packed, pack};
use lockstep_data::{Dataset, Split};
use lockstep_proto::draws::Draws;
use lockstep_proto::ids::Epoch;
use lockstep_proto::recipe::{DataKind, Recipe};

/// Nine training and four test images of three classes, of different sizes; one is a PNG that is named JPEG.
pub fn folder(root: &Path) {
    for (number, class) in ["b", "a", "c", "a", "b", "a", "c", "a", "b"].into_iter().enumerate() {
        let bytes = common::jpeg(60 + 7 * number as u32, 50 + 5 * number as u32);
        common::put(root, &format!("train/{class}/{class}.{number}.JPEG"), &bytes);
    }
    common::put(root, "train/c/c.png.JPEG", &common::png(70, 60, png::ColorType::Rgb));
    for (number, class) in ["a", "b", "c", "c"].into_iter().enumerate() {
        common::put(root, &format!("val/{class}/v{number}.JPEG"), &common::jpeg(90, 40 + number as u32));
    }
}

/// Small shards of few threads.
pub fn options() -> Options {
    Options { shard_bytes: 16 << 10, shard_samples: 0, short_side: None, quality: None, threads: 2 }
}

/// Packs without looking at the progress.
pub fn packed(source: &Path, dest: &Path, options: &Options) -> Packed {
    pack(source, dest, options, &|_, _| ()).unwrap()
}

/// A recipe for shards at an address; nothing of it is kept outside `cache`.
pub fn recipe(address: &str, cache: &Path) -> Recipe {
    let mut recipe = common::recipe(Path::new(address));
    recipe.data.kind = DataKind::Webdataset;
    recipe.data.cache_dir = cache.to_string_lossy().into_owned();
    recipe.data.read_timeout_s = 20.0;
    recipe.check().unwrap();
    recipe
}

/// All files below a folder, with their content.
pub fn files(root: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
                files.push((name, fs::read(path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

/// Every sample of a set as a run sees it: label and augmented floats; then those of the test split.
pub fn seen(set: &dyn Dataset) -> Vec<(u32, Vec<u32>)> {
    let [height, width, channels] = set.shape();
    let mut seen = Vec::new();
    for (split, num) in [(Split::Train, set.identity().num_train), (Split::Test, set.identity().num_test)] {
        for sample in 0..num {
            let mut out = vec![f32::NAN; height * width * channels];
            let mut draws = Draws::new(3, Epoch(1), sample);
            let draws = (split == Split::Train).then_some(&mut draws);
            set.image(split, sample, draws, &mut out).unwrap();
            seen.push((set.label(split, sample), out.into_iter().map(f32::to_bits).collect()));
        }
    }
    seen
}

/// Why a set cannot be opened.
pub fn refused(recipe: &Recipe) -> (lockstep_proto::exit::ExitCode, String) {
    let error = Shards::open(&recipe.data).err().unwrap();
    (error.exit_code(), error.to_string())
}
