//! A folder of broken and odd images: each is named, none crashes, the count is exact.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{cmyk, jpeg, jpeg_with, png, put, recipe};
use lockstep_data::verify::{Kind, verify};
use lockstep_data::{Dataset, ImageFolder, Split};
use lockstep_jpeg::{Encoding, Pixels, Subsampling, encode};
use lockstep_proto::draws::Draws;
use lockstep_proto::ids::Epoch;

/// Where the segment with this marker begins.
fn segment(jpeg: &[u8], marker: u8) -> usize {
    let mut at = 2;
    while jpeg[at + 1] != marker {
        at += 2 + usize::from(u16::from_be_bytes([jpeg[at + 2], jpeg[at + 3]]));
    }
    at
}

/// A good JPEG with some bytes of its frame header changed: precision at 4, height at 5, width at 7.
fn frame(change: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut bytes = jpeg(90, 60);
    let at = segment(&bytes, 0xc0);
    change(&mut bytes[at..]);
    bytes
}

fn with_exif(number: u8) -> Vec<u8> {
    let bytes = jpeg(90, 60);
    let tiff = [b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".as_slice(), &[number, 0, 0]].concat();
    let length = (tiff.len() as u16 + 2).to_be_bytes();
    [&bytes[..2], &[0xff, 0xe1], &length, &tiff, &bytes[2..]].concat()
}

fn broken() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let good = jpeg(90, 60);
    let scan = segment(&good, 0xda);
    let many = jpeg_with(Subsampling::Quarter, true);
    let mut ends = good.clone();
    ends.splice(scan + 60..scan + 60, [0xff, 0xd9]);
    let tables = [&good[..segment(&good, 0xc0)], &[0xff, 0xd9]].concat();
    let whole = png(90, 60, png::ColorType::Rgb);
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x55;
    vec![
        ("empty.JPEG", vec![], "an empty file"),
        ("zeros.JPEG", vec![0; 900], "zeros"),
        ("text.JPEG", b"nothing to see\n".to_vec(), "text"),
        ("page.JPEG", b"<!DOCTYPE html><title>403</title>".to_vec(), "a web page"),
        ("gif.JPEG", b"GIF89a\x01\0\x01\0".to_vec(), "a GIF"),
        ("webp.JPEG", b"RIFF\x20\0\0\0WEBPVP8 ".to_vec(), "a WebP"),
        ("bmp.JPEG", b"BM\x40\0\0\0".to_vec(), "a BMP"),
        ("tiff.JPEG", b"II*\0\x08\0\0\0".to_vec(), "a TIFF"),
        ("heic.JPEG", b"\0\0\0\x18ftypheic\0\0\0\0".to_vec(), "a HEIC"),
        ("avif.JPEG", b"\0\0\0\x1cftypavif\0\0\0\0".to_vec(), "an AVIF"),
        ("pdf.JPEG", b"%PDF-1.4\n".to_vec(), "a PDF"),
        ("zip.JPEG", b"PK\x03\x04\x14\0".to_vec(), "a zip archive"),
        ("pointer.JPEG", b"version https://git-lfs.github.com/spec/v1\n".to_vec(), "a pointer of Git LFS"),
        ("noise.JPEG", vec![3, 1, 4, 1, 5, 9, 2, 6], "bytes of no known kind"),
        ("start.JPEG", good[..2].to_vec(), "truncated"),
        ("header.JPEG", good[..scan].to_vec(), "truncated"),
        ("half.JPEG", good[..scan + (good.len() - scan) / 2].to_vec(), "truncated"),
        ("almost.JPEG", good[..good.len() - 30].to_vec(), "truncated"),
        ("passes.JPEG", many[..many.len() * 2 / 3].to_vec(), "truncated"),
        ("tables.JPEG", tables, "truncated"),
        ("ends.JPEG", ends, "truncated"),
        ("twelve.JPEG", frame(|frame| frame[4] = 12), "unsupported"),
        ("arithmetic.JPEG", frame(|frame| frame[1] = 0xcb), "unsupported"),
        ("differential.JPEG", frame(|frame| frame[1] = 0xc5), "unsupported"),
        ("nothing.JPEG", frame(|frame| frame[5..9].fill(0)), "unsupported"),
        ("huge.JPEG", frame(|frame| frame[5..9].copy_from_slice(&[0xff, 0xdc, 0xff, 0xdc])), "too large"),
        ("cut.png", whole[..whole.len() / 2].to_vec(), "PNG, "),
        ("flipped.png", flipped, "PNG, "),
    ]
}

fn odd() -> Vec<(&'static str, Vec<u8>, Option<Kind>)> {
    let mut between = jpeg(90, 60);
    let quantization = segment(&between, 0xdb);
    between.splice(quantization..quantization, [0; 9]);
    vec![
        ("good.JPEG", jpeg(90, 60), None),
        ("gray.JPEG", jpeg_with(Subsampling::Gray, false), None),
        ("progressive.JPEG", jpeg_with(Subsampling::Half, true), None),
        ("upright.JPEG", with_exif(1), None),
        ("transparent.png", png(90, 60, png::ColorType::Rgba), None),
        ("shades.png", png(90, 60, png::ColorType::GrayscaleAlpha), None),
        ("inks.JPEG", cmyk(), Some(Kind::Cmyk)),
        ("really_png.JPEG", png(90, 60, png::ColorType::Rgb), Some(Kind::Misnamed)),
        ("really_jpeg.png", jpeg(90, 60), Some(Kind::Misnamed)),
        ("turned.JPEG", with_exif(6), Some(Kind::Turned)),
        ("between.JPEG", between, Some(Kind::Warning)),
        ("pixel.JPEG", jpeg(1, 1), Some(Kind::Tiny)),
        ("line.JPEG", jpeg(400, 3), Some(Kind::Tiny)),
    ]
}

/// Everything, with what is to be found.
fn fill(root: &Path) -> BTreeSet<(Kind, String)> {
    let mut expected = BTreeSet::new();
    for (name, bytes, _) in broken() {
        put(root, &format!("train/a/{name}"), &bytes);
        expected.insert((Kind::Broken, format!("train/a/{name}")));
    }
    for (name, bytes, kind) in odd() {
        put(root, &format!("train/b/{name}"), &bytes);
        expected.extend(kind.map(|kind| (kind, format!("train/b/{name}"))));
    }
    for path in ["val/a/v.JPEG", "val/b/w.JPEG", "val/only_val/x.JPEG", "train/only_train/y.JPEG", "train/b/v.JPEG"] {
        put(root, path, &jpeg(40, 40));
    }
    for path in ["train/b/.DS_Store", "train/b/notes.txt", "train/b/inner/z.JPEG", "val/list.csv"] {
        put(root, path, b"x");
    }
    std::fs::create_dir(root.join("train/nobody")).unwrap();
    std::os::unix::fs::symlink("nowhere", root.join("train/b/link.JPEG")).unwrap();
    for (kind, path) in [
        (Kind::Unreadable, "train/b/link.JPEG"),
        (Kind::UnknownClass, "val/only_val"),
        (Kind::UntestedClass, "train/only_train"),
        (Kind::EmptyClass, "train/nobody"),
        (Kind::Twice, "val/a/v.JPEG"),
        (Kind::Stray, "train/b/.DS_Store"),
        (Kind::Stray, "train/b/notes.txt"),
        (Kind::Stray, "train/b/inner"),
        (Kind::Stray, "val/list.csv"),
    ] {
        expected.insert((kind, path.to_owned()));
    }
    expected
}

#[test]
fn each_broken_or_odd_image_is_named_none_crashes_and_the_count_is_exact() {
    let dir = tempfile::tempdir().unwrap();
    let expected = fill(dir.path());
    assert!(broken().len() + odd().iter().filter(|(.., kind)| kind.is_some()).count() >= 30);
    let heard = AtomicU64::new(0);
    let hear = |_: u64, _: u64| {
        heard.fetch_add(1, Ordering::Relaxed);
    };
    let report = verify(dir.path(), &hear).unwrap();
    let relative = |path: &Path| path.strip_prefix(dir.path()).unwrap().to_string_lossy().into_owned();
    let found: BTreeSet<_> = report.findings.iter().map(|f| (f.kind, relative(&f.path))).collect();
    assert_eq!(found, expected, "{:#?}", report.findings);
    assert_eq!(found.len(), report.findings.len());
    let num_images = (broken().len() + odd().len() + 3) as u64;
    assert_eq!((report.num_train, report.num_test, report.num_classes), (num_images, 3, 5));
    assert_eq!(heard.into_inner(), num_images + 3);
    assert_eq!(report.num_errors(), broken().len() + 2);
    for (name, _, what) in broken() {
        let finding = report.findings.iter().find(|finding| finding.path.ends_with(name)).unwrap();
        assert!(finding.what.contains(what), "{finding}");
    }
}

#[test]
fn training_reads_what_is_odd_and_names_what_is_broken() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes, _) in broken().into_iter().chain(odd().into_iter().map(|(name, bytes, _)| (name, bytes, ""))) {
        put(dir.path(), &format!("train/a/{name}"), &bytes);
    }
    put(dir.path(), "val/a/v.JPEG", &jpeg(40, 40));
    let recipe = recipe(dir.path());
    let set = ImageFolder::open(&recipe.data).unwrap();
    let broken: BTreeSet<_> = broken().into_iter().map(|(name, ..)| name.to_owned()).collect();
    let mut out = vec![0.0; 32 * 32 * 3];
    for sample in 0..set.identity().num_train {
        let path = set.path(Split::Train, sample);
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        for mut draws in [None].into_iter().chain((0..20).map(|position| Some(Draws::new(0, Epoch(1), position)))) {
            out.fill(f32::NAN);
            match set.image(Split::Train, sample, draws.as_mut(), &mut out) {
                Ok(()) => assert!(out.iter().all(|value| value.is_finite()), "{name}"),
                Err(error) => {
                    assert!(broken.contains(&name), "{error}");
                    assert!(error.to_string().contains(&name), "{error}");
                }
            }
        }
        // a crop may lie above the place where a file breaks off; nothing else of it is read
        let fails = set.image(Split::Train, sample, None, &mut out).is_err();
        let partly = ["half.JPEG", "almost.JPEG", "ends.JPEG", "passes.JPEG"].contains(&&*name);
        assert!(fails == broken.contains(&name) || partly, "{name} fails: {fails}");
    }
}

#[test]
fn exif_turns_an_image_only_where_the_recipe_says_so() {
    let dir = tempfile::tempdir().unwrap();
    // red at the left, so that a clockwise turn brings it to the top
    let row: Vec<u8> = (0..64).flat_map(|x| if x < 32 { [200, 0, 0] } else { [0, 0, 200] }).collect();
    let plain = encode(Pixels::Rgb, (64, 64), &row.repeat(64), Encoding::default()).unwrap();
    let exif = with_exif(6);
    let bytes = [&plain[..2], &exif[2..segment(&exif, 0xe0).max(2)], &plain[2..]].concat();
    put(dir.path(), "train/a/t.JPEG", &bytes);
    put(dir.path(), "val/a/v.JPEG", &bytes);
    let mut recipe = recipe(dir.path());
    let mut look = |exif| {
        recipe.data.image.exif = exif;
        let mut out = vec![0.0; 32 * 32 * 3];
        ImageFolder::open(&recipe.data).unwrap().image(Split::Test, 0, None, &mut out).unwrap();
        let red = |y: usize, x: usize| out[(y * 32 + x) * 3] > out[(y * 32 + x) * 3 + 2];
        (red(16, 2), red(16, 29), red(2, 16), red(29, 16))
    };
    let (left, right, ..) = look(false);
    assert!(left && !right);
    let (.., top, bottom) = look(true);
    assert!(top && !bottom);
}
