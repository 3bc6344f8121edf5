//! More than thirty kinds of broken and odd images.

use lockstep_data::verify::Kind;
use lockstep_jpeg::Subsampling;

use super::{cmyk, jpeg, jpeg_with, png};

/// Where the segment with this marker begins.
pub fn segment(jpeg: &[u8], marker: u8) -> usize {
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

/// A JPEG that an orientation was written into.
pub fn with_exif(number: u8) -> Vec<u8> {
    let bytes = jpeg(90, 60);
    let tiff = [b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".as_slice(), &[number, 0, 0]].concat();
    let length = (tiff.len() as u16 + 2).to_be_bytes();
    [&bytes[..2], &[0xff, 0xe1], &length, &tiff, &bytes[2..]].concat()
}

/// Name, bytes, and what is said of it.
pub fn broken() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let good = jpeg(90, 60);
    let scan = segment(&good, 0xda);
    let many = jpeg_with(Subsampling::Quarter, true);
    let mut ends = good.clone();
    ends.splice(scan + 60..scan + 60, [0xff, 0xd9]);
    let tables = [&good[..segment(&good, 0xc0)], &[0xff, 0xd9]].concat();
    // what the decoder needs lies in another file, as in streams of video
    let (quantization, frame_at) = (segment(&good, 0xdb), segment(&good, 0xc0));
    let untabled = [&good[..quantization], &good[frame_at..]].concat();
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
        ("untabled.JPEG", untabled, "corrupt: Quantization table 0x00 was not defined"),
        ("twelve.JPEG", frame(|frame| frame[4] = 12), "unsupported"),
        ("arithmetic.JPEG", frame(|frame| frame[1] = 0xcb), "unsupported"),
        ("differential.JPEG", frame(|frame| frame[1] = 0xc5), "unsupported"),
        ("nothing.JPEG", frame(|frame| frame[5..9].fill(0)), "unsupported"),
        ("huge.JPEG", frame(|frame| frame[5..9].copy_from_slice(&[0xff, 0xdc, 0xff, 0xdc])), "too large"),
        ("cut.png", whole[..whole.len() / 2].to_vec(), "PNG, "),
        ("flipped.png", flipped, "PNG, "),
    ]
}

/// Name, bytes, and what `data verify` calls it.
pub fn odd() -> Vec<(&'static str, Vec<u8>, Option<Kind>)> {
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
