//! With `LOCKSTEP_TEST_DATA`: real photographs, against pixels of Pillow (`reference/pillow.py`). Without: boxes against
//! moments of torchvision's algorithm (`reference/crop_boxes.py`).
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod common;

use lockstep_data::image::{Cut, Quality, Rendering, Workspace, centre, random};
use lockstep_proto::draws::Draws;
use lockstep_proto::ids::Epoch;

const SIDE: u32 = 224;

fn how(quality: Quality, cut_first: bool) -> Rendering {
    Rendering { side: SIDE, quality, cut_first, exif: false }
}

/// Mean absolute and greatest difference of the reference's pixels, grey levels.
fn difference(square: &[u8], reference: &str) -> (f64, u8) {
    let places =
        (14..SIDE).step_by(28).flat_map(|y| (14..SIDE).step_by(28).map(move |x| ((y * SIDE + x) * 3) as usize));
    let ours: Vec<u8> = places.flat_map(|at| square[at..at + 3].to_vec()).collect();
    let pairs = reference.as_bytes().chunks_exact(2).map(|digits| std::str::from_utf8(digits).unwrap());
    let theirs: Vec<u8> = pairs.map(|digits| u8::from_str_radix(digits, 16).unwrap()).collect();
    assert_eq!(ours.len(), theirs.len());
    let differences = ours.iter().zip(&theirs).map(|(a, b)| a.abs_diff(*b));
    (differences.clone().map(f64::from).sum::<f64>() / ours.len() as f64, differences.max().unwrap())
}

#[test]
fn photographs_become_the_pixels_that_pillow_makes() {
    let Some(folder) = common::photographs() else { return };
    let mut workspace = Workspace::new().unwrap();
    let (mut exact, mut scaled, mut centred) = (Vec::new(), Vec::new(), Vec::new());
    for line in include_str!("reference/pillow.txt").lines() {
        let [name, what, pixels] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let bytes = std::fs::read(folder.join(name)).unwrap();
        if what == "centre" {
            let rendering = how(Quality::Scaled(2.0), false);
            let square = workspace.render(&bytes, rendering, |size| centre(size, 256, SIDE)).unwrap();
            centred.push((difference(square, pixels), name));
            continue;
        }
        let numbers: Vec<f64> = what.split(' ').skip(1).map(|number| number.parse().unwrap()).collect();
        let cut = Cut { x: numbers[0], y: numbers[1], width: numbers[2], height: numbers[3] };
        let square = workspace.render(&bytes, how(Quality::Full, true), |_| cut).unwrap();
        exact.push((difference(square, pixels), name));
        let square = workspace.render(&bytes, how(Quality::Scaled(1.0), true), |_| cut).unwrap();
        scaled.push((difference(square, pixels), name));
    }
    for (kind, found, mean, greatest) in
        [("centre", centred, 0.5, 3), ("exact", exact, 0.5, 3), ("scaled", scaled, 2.0, 80)]
    {
        let all = found.iter().map(|((mean, _), _)| mean).sum::<f64>() / found.len() as f64;
        let worst = found.iter().map(|((_, most), _)| *most).max().unwrap();
        println!("{kind}: mean absolute difference {all:.3} of {} parts, greatest {worst}", found.len());
        assert!(all <= mean && worst <= greatest, "{kind}: mean {all}, greatest {worst}: {found:?}");
    }
}

/// Width, height; mean and deviation of area, log(width ÷ height), and the centre's place, of 400,000 boxes.
type Moments = (u32, u32, [(f64, f64); 4]);
const BOXES: [Moments; 4] = [
    (500, 375, [(0.43289, 0.21647), (0.03052, 0.16417), (0.49977, 0.13601), (0.49993, 0.09801)]),
    (333, 500, [(0.38902, 0.19000), (-0.03087, 0.16426), (0.50003, 0.09582), (0.49921, 0.15009)]),
    (900, 200, [(0.18266, 0.06965), (0.08630, 0.17440), (0.49948, 0.21255), (0.49998, 0.05902)]),
    (256, 256, [(0.47873, 0.23440), (-0.00021, 0.15954), (0.50017, 0.11073), (0.50000, 0.11103)]),
];

#[test]
fn random_parts_have_the_distribution_of_random_resized_crop() {
    let num = 60_000_u64;
    for (width, height, expected) in BOXES {
        let (w, h) = (f64::from(width), f64::from(height));
        let (mut sums, mut squares) = ([0.0; 4], [0.0; 4]);
        for position in 0..num {
            let mut draws = Draws::new(11, Epoch(3), position);
            let cut = random((width, height), [0.08, 1.0], [0.75, 4.0 / 3.0], &mut draws);
            let series = [
                cut.width * cut.height / (w * h),
                (cut.width / cut.height).ln(),
                (cut.x + cut.width / 2.0) / w,
                (cut.y + cut.height / 2.0) / h,
            ];
            for (place, value) in series.into_iter().enumerate() {
                sums[place] += value;
                squares[place] += value * value;
            }
        }
        for (place, (mean, deviation)) in expected.into_iter().enumerate() {
            let found = sums[place] / num as f64;
            let spread = (squares[place] / num as f64 - found * found).sqrt();
            // five standard errors of both samples
            let tolerance = 5.0 * deviation * (1.0 / num as f64 + 1.0 / 400_000.0).sqrt();
            assert!((found - mean).abs() < tolerance, "{width} × {height}, series {place}: mean {found} for {mean}");
            assert!((spread / deviation - 1.0).abs() < 0.02, "{width} × {height}, series {place}: {spread}");
        }
    }
}

#[test]
fn every_photograph_is_read_and_the_folder_verified() {
    let Some(folder) = common::photographs() else { return };
    let dir = tempfile::tempdir().unwrap();
    for split in ["train", "val"] {
        std::os::unix::fs::symlink(&folder, dir.path().join(split)).unwrap();
    }
    let report = lockstep_data::verify::verify(dir.path(), &|_, _| ()).unwrap();
    assert_eq!((report.num_train, report.num_test, report.num_classes), (250, 250, 250));
    assert_eq!(report.num_errors(), 0, "{:?}", report.findings);
    println!("{:?}; mean {:.3?}, deviation {:.3?}", report.counts(), report.mean, report.std);
    // the same light as ImageNet's as a whole, nearly
    for (channel, expected) in [0.485, 0.456, 0.406].into_iter().enumerate() {
        assert!((report.mean[channel] - expected).abs() < 0.03, "{:?}", report.mean);
    }
}

/// A picture of 108 million pixels does not take their memory.
#[test]
fn a_huge_image_is_decoded_small() {
    let (width, height) = (12_000, 9_000);
    let gray = lockstep_jpeg::Encoding { subsampling: lockstep_jpeg::Subsampling::Quarter, ..Default::default() };
    let bytes = {
        let row: Vec<u8> = (0..width).flat_map(|x| [(x / 50) as u8, 90, 200]).collect();
        lockstep_jpeg::encode(lockstep_jpeg::Pixels::Rgb, (width, height), &row.repeat(height as usize), gray).unwrap()
    };
    let mut workspace = Workspace::new().unwrap();
    let square = workspace.render(&bytes, how(Quality::Scaled(2.0), false), |size| centre(size, 256, SIDE)).unwrap();
    assert!(square.chunks_exact(3).all(|pixel| pixel[1].abs_diff(90) < 3));
    assert!(workspace.capacity() < 16 << 20, "{} bytes", workspace.capacity());
}
