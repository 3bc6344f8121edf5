//! Smaller images: the short side scaled by Lanczos's filter, once and for all, and written as JPEG (4:2:0).

use std::cell::RefCell;

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use lockstep_jpeg::{Decoder, Encoding, Limits, Pixels, Region, Scale, encode};

use super::super::index::Change;
use crate::image::{Format, ImageError, MAX_PIXELS, Orientation};
use crate::image_folder::with_workspace;

/// A JPEG is decoded at a smaller scale only if it still has so many times the pixels a side that are wanted.
const GAP: f64 = 2.0;

/// Room of one thread.
struct Room {
    decoder: Decoder,
    resizer: Resizer,
    decoded: Vec<u8>,
}

thread_local! {
    static ROOM: RefCell<Option<Room>> = const { RefCell::new(None) };
}

/// The image as a JPEG with the short side and quality that are wanted; `None` if it is not larger, and stays.
///
/// # Errors
/// Not an image that is read, or broken.
pub(super) fn image(bytes: &[u8], change: Change) -> Result<Option<Vec<u8>>, ImageError> {
    ROOM.with_borrow_mut(|room| {
        let room = match room {
            Some(room) => room,
            None => room.insert(Room {
                decoder: Decoder::new(Limits { pixels: MAX_PIXELS, ..Limits::default() })?,
                resizer: Resizer::new(),
                decoded: Vec::new(),
            }),
        };
        room.change(bytes, change)
    })
}

impl Room {
    fn change(&mut self, bytes: &[u8], change: Change) -> Result<Option<Vec<u8>>, ImageError> {
        let format = Format::of(bytes).map_err(|is| ImageError::Kind { is })?;
        let is_wanted = |(width, height): (u32, u32)| change.short_side.is_none_or(|side| width.min(height) > side);
        let (full, decoded, orientation) = match format {
            Format::Jpeg => {
                let mut jpeg = self.decoder.open(bytes)?;
                let full = (jpeg.width, jpeg.height);
                if !is_wanted(full) {
                    return Ok(None);
                }
                let short = f64::from(full.0.min(full.1));
                let enough = |scale: &Scale| {
                    change.short_side.is_some_and(|side| short * scale.factor() >= GAP * f64::from(side))
                };
                let scale = [1, 2, 4].into_iter().filter_map(Scale::eighths).find(enough).unwrap_or(Scale::FULL);
                let (width, height) = jpeg.size_at(scale);
                jpeg.decode(scale, Region::whole(width, height), &mut self.decoded)?;
                (full, (width, height), Orientation::of_jpeg(bytes))
            }
            Format::Png => {
                let size = with_workspace(|workspace| {
                    let whole = workspace.whole(bytes)?;
                    self.decoded.clear();
                    self.decoded.extend_from_slice(whole.rgb);
                    Ok((whole.width, whole.height))
                })?;
                if !is_wanted(size) {
                    return Ok(None);
                }
                (size, size, Orientation::default())
            }
        };
        let encoding = Encoding { quality: change.quality, ..Encoding::default() };
        let written = match change.short_side {
            Some(side) => {
                let size = scaled(full, side);
                encode(Pixels::Rgb, size, &self.resized(decoded, size)?, encoding)?
            }
            None => encode(Pixels::Rgb, decoded, &self.decoded, encoding)?,
        };
        Ok(Some(with_orientation(written, orientation)))
    }

    fn resized(&mut self, (width, height): (u32, u32), size: (u32, u32)) -> Result<Vec<u8>, ImageError> {
        fn wrong(error: impl std::fmt::Display) -> ImageError {
            ImageError::Resize { what: error.to_string() }
        }
        let source = ImageRef::new(width, height, &self.decoded, PixelType::U8x3).map_err(wrong)?;
        let mut target = Image::new(size.0, size.1, PixelType::U8x3);
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3)).use_alpha(false);
        self.resizer.resize(&source, &mut target, &options).map_err(wrong)?;
        Ok(target.into_vec())
    }
}

/// The size with a short side of `side`; the long one is rounded down, as torchvision does.
fn scaled((width, height): (u32, u32), side: u32) -> (u32, u32) {
    let long = |long: u32, short: u32| (u64::from(side) * u64::from(long) / u64::from(short.max(1))) as u32;
    if width <= height { (side, long(height, width)) } else { (long(width, height), side) }
}

/// Says in EXIF what the original said, so that `data.image.exif` has the same meaning.
fn with_orientation(jpeg: Vec<u8>, orientation: Orientation) -> Vec<u8> {
    let Orientation { transposed, reversed_x, reversed_y } = orientation;
    let number: u8 = match (transposed, reversed_x, reversed_y) {
        (false, false, false) => return jpeg,
        (false, true, false) => 2,
        (false, true, true) => 3,
        (false, false, true) => 4,
        (true, false, false) => 5,
        (true, false, true) => 6,
        (true, true, true) => 7,
        (true, true, false) => 8,
    };
    // APP1 of 34 bytes: a little-endian TIFF with one entry, tag 0x0112, one short (EXIF 2.3, 4.6.4)
    let mut app1 = b"\xff\xe1\x00\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    app1.extend([number, 0, 0, 0, 0, 0, 0, 0]);
    [&jpeg[..2], &app1, &jpeg[2..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jpeg(width: u32, height: u32) -> Vec<u8> {
        let value = |x: u32, y: u32, c: u32| (128.0 + 100.0 * (f64::from(x + y * (c + 1)) / 40.0).sin()) as u8;
        let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
        let rgb: Vec<u8> = pixels.flat_map(|(x, y)| (0..3).map(move |c| value(x, y, c))).collect();
        encode(Pixels::Rgb, (width, height), &rgb, Encoding { quality: 95, ..Encoding::default() }).unwrap()
    }

    fn size(bytes: &[u8]) -> (u32, u32) {
        with_workspace(|workspace| workspace.whole(bytes).map(|whole| (whole.width, whole.height))).unwrap()
    }

    #[test]
    fn the_short_side_is_as_wanted_and_small_images_stay() {
        let change = Change { short_side: Some(64), quality: 90 };
        for (given, made) in [((500, 375), (85, 64)), ((90, 300), (64, 213)), ((1_000, 80), (800, 64))] {
            let bytes = jpeg(given.0, given.1);
            let smaller = image(&bytes, change).unwrap().unwrap();
            assert_eq!(size(&smaller), made);
            assert!(smaller.len() < bytes.len());
        }
        assert_eq!(image(&jpeg(64, 90), change).unwrap(), None);
        let other_quality = image(&jpeg(64, 90), Change { short_side: None, quality: 20 }).unwrap().unwrap();
        assert_eq!(size(&other_quality), (64, 90));
    }

    #[test]
    fn every_orientation_is_kept() {
        let plain = jpeg(40, 30);
        for bits in 0..8 {
            let orientation =
                Orientation { transposed: bits & 4 > 0, reversed_x: bits & 2 > 0, reversed_y: bits & 1 > 0 };
            let marked = with_orientation(plain.clone(), orientation);
            assert_eq!(Orientation::of_jpeg(&marked), orientation);
            let again = image(&marked, Change { short_side: Some(20), quality: 90 }).unwrap().unwrap();
            assert_eq!(Orientation::of_jpeg(&again), orientation);
        }
    }

    #[test]
    fn what_is_broken_says_so() {
        let change = Change { short_side: Some(20), quality: 90 };
        let whole = jpeg(90, 60);
        assert!(image(&whole[..whole.len() / 2], change).is_err());
        assert!(image(b"<html>", change).is_err());
    }
}
