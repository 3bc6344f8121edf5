//! The decoder against itself and against bytes that are no image.

use lockstep_jpeg::{Decoder, Encoding, JpegError, Limits, Pixels, Region, Scale, Subsampling, encode};
use proptest::prelude::*;

const ALL: [Subsampling; 6] = [
    Subsampling::None,
    Subsampling::Half,
    Subsampling::Quarter,
    Subsampling::Rows,
    Subsampling::Columns,
    Subsampling::Gray,
];

/// Waves of several lengths, so that every block has something in it.
fn picture(width: u32, height: u32, channels: u32) -> Vec<u8> {
    let value = |x: u32, y: u32, c: u32| {
        let wave = (f64::from(x) / (3.0 + f64::from(c))).sin() + (f64::from(y) / (5.0 + f64::from(c))).cos();
        (127.0 + 60.0 * wave + f64::from((x * 7 + y * 13 + c * 5) % 11)).clamp(0.0, 255.0) as u8
    };
    let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    pixels.flat_map(|(x, y)| (0..channels).map(move |c| value(x, y, c))).collect()
}

fn jpeg(width: u32, height: u32, subsampling: Subsampling, progressive: bool) -> Vec<u8> {
    let encoding = Encoding { quality: 85, subsampling, progressive };
    encode(Pixels::Rgb, (width, height), &picture(width, height, 3), encoding).expect("a picture of ours")
}

fn whole(bytes: &[u8], scale: Scale) -> Result<(u32, u32, Vec<u8>), JpegError> {
    let mut decoder = Decoder::new(Limits::default())?;
    let mut image = decoder.open(bytes)?;
    let (width, height) = image.size_at(scale);
    let mut rgb = Vec::new();
    let decoded = image.decode(scale, Region::whole(width, height), &mut rgb)?;
    assert_eq!((decoded.region, decoded.warning), (Region::whole(width, height), None));
    Ok((width, height, rgb))
}

#[test]
fn what_was_written_is_read_nearly() {
    let (width, height, rgb) = whole(&jpeg(67, 45, Subsampling::None, false), Scale::FULL).unwrap();
    assert_eq!((width, height), (67, 45));
    let written = picture(67, 45, 3);
    let off: f64 = rgb.iter().zip(&written).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
    assert!(off / (written.len() as f64) < 4.0, "mean absolute difference {}", off / written.len() as f64);
}

/// So a crop does not depend on how much around it was decoded.
#[test]
fn every_part_at_every_scale_is_as_in_the_whole() {
    let (width, height) = (149, 83);
    let mut decoder = Decoder::new(Limits::default()).unwrap();
    for (subsampling, progressive) in ALL.into_iter().flat_map(|s| [(s, false), (s, true)]) {
        let bytes = jpeg(width, height, subsampling, progressive);
        for scale in (1..=8).filter_map(Scale::eighths) {
            let (w, h, all) = whole(&bytes, scale).unwrap();
            for part in 0..12_u32 {
                let (x, y) = (part * 31 % w, part * 17 % h);
                let wanted = Region { x, y, width: (w - x).min(1 + part * 5), height: (h - y).min(1 + part * 3) };
                let mut rgb = Vec::new();
                let region = decoder.open(&bytes).unwrap().decode(scale, wanted, &mut rgb).unwrap().region;
                assert!(region.contains(&wanted), "{region:?} {wanted:?}");
                for row in wanted.y..wanted.y + wanted.height {
                    let ours = (((row - region.y) * region.width + wanted.x - region.x) * 3) as usize;
                    let theirs = ((row * w + wanted.x) * 3) as usize;
                    let len = (wanted.width * 3) as usize;
                    let (ours, theirs) = (&rgb[ours..ours + len], &all[theirs..theirs + len]);
                    assert_eq!(ours, theirs, "{subsampling:?} {progressive} {scale:?} {wanted:?} row {row}");
                }
            }
        }
    }
}

#[test]
fn four_inks_become_colours() {
    let inks: Vec<u8> = [[255, 255, 255, 255], [0, 255, 255, 255], [255, 255, 255, 0]].concat();
    let row: Vec<u8> = inks.chunks_exact(4).flat_map(|ink| ink.repeat(16)).collect();
    let encoding = Encoding { quality: 100, subsampling: Subsampling::None, progressive: false };
    let bytes = encode(Pixels::Cmyk, (48, 16), &row.repeat(16), encoding).unwrap();
    let mut decoder = Decoder::new(Limits::default()).unwrap();
    assert_eq!(decoder.open(&bytes).unwrap().num_inks, 4);
    let (_, _, rgb) = whole(&bytes, Scale::FULL).unwrap();
    let near = |x: usize, colour: [u8; 3]| rgb[x * 3..][..3].iter().zip(colour).all(|(a, b)| a.abs_diff(b) < 6);
    assert!(near(4, [255; 3]) && near(24, [0, 255, 255]) && near(44, [0; 3]), "{:?}", &rgb[..144]);
}

#[test]
fn headers_tell_gray_and_progressive() {
    let mut decoder = Decoder::new(Limits::default()).unwrap();
    let bytes = jpeg(20, 10, Subsampling::Gray, false);
    let image = decoder.open(&bytes).unwrap();
    assert_eq!((image.width, image.height, image.num_inks, image.progressive), (20, 10, 1, false));
    let bytes = jpeg(20, 10, Subsampling::Quarter, true);
    let image = decoder.open(&bytes).unwrap();
    assert_eq!((image.num_inks, image.progressive), (3, true));
}

#[test]
fn a_file_that_ends_early_is_truncated_wherever_it_ends() {
    for progressive in [false, true] {
        let bytes = jpeg(96, 64, Subsampling::Quarter, progressive);
        for end in [0, 1, 2, 30, bytes.len() / 2, bytes.len() * 3 / 4, bytes.len() - 40] {
            let found = whole(&bytes[..end], Scale::FULL).map(|(w, h, _)| (w, h));
            assert!(matches!(found, Err(JpegError::Truncated { .. } | JpegError::Corrupt { .. })), "{end}: {found:?}");
        }
    }
}

#[test]
fn bytes_between_markers_are_a_warning_and_hide_no_truncation() {
    let good = jpeg(32, 32, Subsampling::Quarter, false);
    let mut odd = good[..good.len() - 2].to_vec();
    odd.extend([0; 24]);
    let cut = odd.clone();
    odd.extend([0xff, 0xd9]);
    let mut decoder = Decoder::new(Limits::default()).unwrap();
    let mut rgb = Vec::new();
    let decoded = decoder.open(&odd).unwrap().decode(Scale::FULL, Region::whole(32, 32), &mut rgb).unwrap();
    assert_eq!(rgb, whole(&good, Scale::FULL).unwrap().2);
    assert!(decoded.warning.is_none_or(|what| what.contains("extraneous")));
    let found = decoder.open(&cut).unwrap().decode(Scale::FULL, Region::whole(32, 32), &mut rgb);
    assert!(matches!(found, Err(JpegError::Truncated { .. })), "{found:?}");
}

#[test]
fn limits_are_kept() {
    let bytes = jpeg(100, 100, Subsampling::Quarter, true);
    let mut small = Decoder::new(Limits { pixels: 9_999, ..Limits::default() }).unwrap();
    assert!(matches!(small.open(&bytes), Err(JpegError::TooLarge { .. })));
    let mut patient = Decoder::new(Limits { scans: 2, ..Limits::default() }).unwrap();
    let found = patient.open(&bytes).unwrap().decode(Scale::FULL, Region::whole(100, 100), &mut Vec::new());
    assert!(matches!(found, Err(JpegError::TooLarge { .. })), "{found:?}");
}

#[test]
fn a_region_outside_is_refused() {
    let bytes = jpeg(40, 30, Subsampling::Quarter, false);
    let mut decoder = Decoder::new(Limits::default()).unwrap();
    for wanted in [Region::default(), Region::whole(41, 30), Region { x: u32::MAX, y: 0, width: 2, height: 1 }] {
        let found = decoder.open(&bytes).unwrap().decode(Scale::FULL, wanted, &mut Vec::new());
        assert!(matches!(found, Err(JpegError::Library { .. })), "{found:?}");
    }
}

#[test]
fn a_decoder_that_met_a_broken_image_reads_the_next_one() {
    let good = jpeg(64, 48, Subsampling::Half, false);
    let expected = whole(&good, Scale::FULL).unwrap().2;
    let mut decoder = Decoder::new(Limits::default()).unwrap();
    let mut rgb = Vec::new();
    for end in (2..good.len()).step_by(3) {
        let _ = decoder.open(&good[..end]).map(|mut image| image.decode(Scale::FULL, Region::whole(64, 48), &mut rgb));
        decoder.open(&good).unwrap().decode(Scale::FULL, Region::whole(64, 48), &mut rgb).unwrap();
        assert_eq!(rgb, expected, "after {end} bytes");
    }
    let mut half = decoder.open(&good).unwrap();
    half.decode(Scale::eighths(4).unwrap(), Region { x: 20, y: 4, width: 5, height: 5 }, &mut rgb).unwrap();
    decoder.open(&good).unwrap().decode(Scale::FULL, Region::whole(64, 48), &mut rgb).unwrap();
    assert_eq!(rgb, expected);
}

fn try_all(decoder: &mut Decoder, bytes: &[u8], scale: Scale) {
    if let Ok(mut image) = decoder.open(bytes) {
        let (width, height) = image.size_at(scale);
        let part = Region { x: width / 3, y: height / 3, width: width - width / 3, height: height - height / 3 };
        let _ = image.decode(scale, part, &mut Vec::new());
        let _ = image.decode(scale, Region::whole(width, height), &mut Vec::new());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_bytes_are_an_image_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let mut decoder = Decoder::new(Limits { pixels: 1 << 20, ..Limits::default() }).unwrap();
        try_all(&mut decoder, &bytes, Scale::FULL);
        try_all(&mut decoder, &[&[0xff, 0xd8, 0xff][..], &bytes].concat(), Scale::FULL);
    }

    #[test]
    fn a_jpeg_with_wrong_bytes_is_an_image_or_an_error(
        kind in 0_usize..6, progressive: bool, eighths in 1_u32..=8,
        wrong in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
    ) {
        let mut bytes = jpeg(70, 50, ALL[kind], progressive);
        for (place, value) in wrong {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        let mut decoder = Decoder::new(Limits { pixels: 1 << 20, ..Limits::default() }).unwrap();
        try_all(&mut decoder, &bytes, Scale::eighths(eighths).unwrap());
    }
}
