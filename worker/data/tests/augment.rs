//! RandAugment, TrivialAugmentWide and random erasing against torchvision (`reference/augment.py`).
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod common;

use common::{jpeg, put, recipe};
use flate2::Crc;
use lockstep_data::image::{AutoOp, Erased, Room};
use lockstep_data::{Dataset, ImageFolder, Split};
use lockstep_proto::draws::Draws;
use lockstep_proto::ids::Epoch;
use lockstep_proto::recipe::{AutoAugment, Image, Interpolation, Recipe};

const SIDE: usize = 37;

fn picture() -> Vec<u8> {
    let pixels = (0..SIDE).flat_map(|y| (0..SIDE).flat_map(move |x| (0..3).map(move |c| (x, y, c))));
    pixels.map(|(x, y, c)| (20 + (x * x * 3 + y * 7 * (c + 1) + x * y * (c + 2)) % 256 * 200 / 255) as u8).collect()
}

#[test]
fn every_operation_gives_the_bytes_of_torchvision() {
    let mut room = Room::default();
    let mut wrong = Vec::new();
    let mut num = 0;
    for line in include_str!("reference/augment.txt").lines() {
        let [policy, name, bin, sign, interpolation, magnitude, crc] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let policy = if policy == "rand_augment" { AutoAugment::RandAugment } else { AutoAugment::TrivialAugmentWide };
        let nearest = interpolation == "nearest";
        let interpolation = if nearest { Interpolation::Nearest } else { Interpolation::Bilinear };
        let op = AutoOp::ALL.into_iter().find(|op| format!("{op:?}") == name).unwrap();
        let found = op.magnitude(policy, (bin.parse().unwrap(), 31), SIDE);
        let expected = f32::from_bits(u32::from_str_radix(magnitude, 16).unwrap());
        // torch computes bins eight at a time where it can, which rounds some of them otherwise
        let expected = f64::from(expected);
        assert!((found - expected).abs() <= 2e-7 * expected.abs(), "{line}: {found}");
        let mut rgb = picture();
        op.apply(expected * sign.parse::<f64>().unwrap(), interpolation, &mut rgb, &mut room);
        let mut sum = Crc::new();
        sum.update(&rgb);
        if format!("{:08x}", sum.sum()) != crc {
            wrong.push(line);
        }
        num += 1;
    }
    assert!(wrong.is_empty(), "{} of {num} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(num > 400);
}

/// Side; share that erases; mean and deviation of area, log(height ÷ width), and the middle's place, of 100,000.
type Moments = (u32, f64, [(f64, f64); 4]);
const RECTANGLES: [Moments; 2] = [
    (32, 1.0, [(0.17434, 0.08917), (-0.00439, 0.68807), (0.50012, 0.18388), (0.50019, 0.18348)]),
    (224, 1.0, [(0.17466, 0.08911), (-0.00111, 0.68986), (0.50008, 0.17636), (0.49977, 0.17631)]),
];

#[test]
fn rectangles_have_the_distribution_of_random_erasing() {
    for (side, share, expected) in RECTANGLES {
        let image = Image { erase: 1.0, ..Image::default() };
        let num = 60_000;
        let mut series = Vec::new();
        for position in 0..num {
            let Some(found) = Erased::draw(&image, side, &mut Draws::new(3, Epoch(1), position)) else { continue };
            let Erased { top, left, height, width } = found;
            let (side, [y, x, h, w]) = (f64::from(side), [top, left, height, width].map(|value| value as f64));
            assert!(y + h <= side && x + w <= side);
            let log = (h.max(1.0) / w.max(1.0)).ln();
            series.push([h * w / (side * side), log, (y + h / 2.0) / side, (x + w / 2.0) / side]);
        }
        assert!((series.len() as f64 / num as f64 - share).abs() < 0.002);
        for (place, (mean, deviation)) in expected.into_iter().enumerate() {
            let found = series.iter().map(|values| values[place]).sum::<f64>() / series.len() as f64;
            let tolerance = 5.0 * deviation * (1.0 / num as f64 + 1.0 / 100_000.0).sqrt();
            assert!((found - mean).abs() < tolerance, "{side}, series {place}: mean {found} for {mean}");
        }
    }
}

/// Image 0 of a folder, as training at a position sees it.
fn seen(recipe: &Recipe, position: u64) -> Vec<f32> {
    let mut out = vec![0.0; 32 * 32 * 3];
    let mut draws = Draws::new(0, Epoch(1), position);
    ImageFolder::open(&recipe.data).unwrap().image(Split::Train, 0, Some(&mut draws), &mut out).unwrap();
    out
}

#[test]
fn a_switch_leaves_the_other_draws_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "train/a/0.JPEG", &jpeg(90, 60));
    put(dir.path(), "val/a/0.JPEG", &jpeg(40, 40));
    let plain = recipe(dir.path());
    let with = |change: &dyn Fn(&mut Image)| {
        let mut recipe = plain.clone();
        change(&mut recipe.data.image);
        recipe.check().unwrap();
        recipe
    };
    let (mut num_erased, mut num_same) = (0, 0);
    for position in 0..60 {
        let before = seen(&plain, position);
        let erased = seen(&with(&|image| image.erase = 0.5), position);
        let changed = before.iter().zip(&erased).filter(|(a, b)| a != b);
        assert!(changed.clone().all(|(_, value)| *value == 0.0), "only what is erased changes");
        num_erased += usize::from(changed.count() > 0);
        let auto = |image: &mut Image| image.auto_augment = AutoAugment::TrivialAugmentWide;
        let augmented = seen(&with(&auto), position);
        num_same += usize::from(augmented == before);
        let both = seen(
            &with(&|image| {
                auto(image);
                image.erase = 0.5;
            }),
            position,
        );
        let places =
            |one: &[f32], other: &[f32]| (0..one.len()).filter(|at| one[*at] != other[*at]).collect::<Vec<_>>();
        assert_eq!(places(&both, &augmented), places(&erased, &before), "the same operation, the same rectangle");
    }
    assert!((15..45).contains(&num_erased), "{num_erased}");
    assert!((1..20).contains(&num_same), "identity, and bins of nothing: {num_same}");
}

#[test]
fn operations_of_no_magnitude_leave_crop_and_flip_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "train/a/0.JPEG", &jpeg(90, 60));
    put(dir.path(), "val/a/0.JPEG", &jpeg(40, 40));
    let mut recipe = recipe(dir.path());
    recipe.data.image.random_crop = false;
    let plain = recipe.clone();
    recipe.data.image.auto_augment = AutoAugment::RandAugment;
    recipe.data.image.auto_ops = 1;
    recipe.data.image.auto_magnitude = 0; // nothing moves: identity, but for autocontrast and equalize
    let same = (0..100).filter(|position| seen(&recipe, *position) == seen(&plain, *position)).count();
    assert!(same > 60, "{same}");
}
