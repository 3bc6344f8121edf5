//! Folders of images that tests draw.
#![allow(dead_code, clippy::unwrap_used)] // each test file uses its part; a panic is how a test fails

pub mod odd;

use std::fs;
use std::path::{Path, PathBuf};

use lockstep_jpeg::{Encoding, Pixels, Subsampling, encode};
use lockstep_proto::recipe::{DataKind, Normalize, Recipe};

/// RGB, or with four channels inks, of soft waves.
pub fn picture(width: u32, height: u32, channels: u32) -> Vec<u8> {
    let value = |x: u32, y: u32, c: u32| (128.0 + 100.0 * (f64::from(x + y * (c + 1)) / 9.0).sin()) as u8;
    let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    pixels.flat_map(|(x, y)| (0..channels).map(move |c| value(x, y, c))).collect()
}

/// A JPEG of such a picture.
pub fn jpeg(width: u32, height: u32) -> Vec<u8> {
    encode(Pixels::Rgb, (width, height), &picture(width, height, 3), Encoding::default()).unwrap()
}

/// A gray one, or a progressive one.
pub fn jpeg_with(subsampling: Subsampling, progressive: bool) -> Vec<u8> {
    let encoding = Encoding { quality: 90, subsampling, progressive };
    encode(Pixels::Rgb, (90, 60), &picture(90, 60, 3), encoding).unwrap()
}

/// One of four inks.
pub fn cmyk() -> Vec<u8> {
    encode(Pixels::Cmyk, (90, 60), &picture(90, 60, 4), Encoding::default()).unwrap()
}

/// A PNG of a picture, with `colour` one of RGB, RGBA, gray.
pub fn png(width: u32, height: u32, colour: png::ColorType) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(colour);
    encoder.set_depth(png::BitDepth::Eight);
    let channels = colour.samples() as u32;
    encoder.write_header().unwrap().write_image_data(&picture(width, height, channels)).unwrap();
    bytes
}

/// Writes a file and the folders above it.
pub fn put(root: &Path, path: &str, bytes: &[u8]) -> PathBuf {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

/// A recipe for images below `root`, 32 pixels a side.
pub fn recipe(root: &Path) -> Recipe {
    let mut recipe = Recipe::default();
    recipe.data.kind = DataKind::ImageFolder;
    recipe.data.path = root.to_string_lossy().into_owned();
    recipe.data.normalize = Normalize::Channel;
    recipe.data.image.crop = 32;
    recipe.data.image.resize = 40;
    recipe.check().unwrap();
    recipe
}

/// The real photographs, where there are any: a folder of class folders.
pub fn photographs() -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("LOCKSTEP_TEST_DATA") else {
        assert!(std::env::var_os("LOCKSTEP_TEST_REQUIRE").is_none(), "nothing may skip: set LOCKSTEP_TEST_DATA");
        println!("skipped: LOCKSTEP_TEST_DATA is not set");
        return None;
    };
    let folder = PathBuf::from(folder).join("imagenet-sample").join("val");
    assert!(folder.is_dir(), "{}: no such folder", folder.display());
    Some(folder)
}
