//! PNG to RGB: palettes expanded, 16 bits cut to 8, transparency dropped, gray repeated, as Pillow's `convert("RGB")`.

use png::{ColorType, Decoder, Limits, Transformations};

use super::error::ImageError;
use super::render::MAX_PIXELS;

/// Decodes a whole image into `rgb`; returns width and height.
///
/// # Errors
/// Truncated, corrupt, or larger than [`MAX_PIXELS`].
pub(super) fn decode(bytes: &[u8], rgb: &mut Vec<u8>) -> Result<(u32, u32), ImageError> {
    let wrong = |error: png::DecodingError| ImageError::Png { what: error.to_string() };
    let limits = Limits { bytes: 4 * MAX_PIXELS as usize };
    let mut decoder = Decoder::new_with_limits(std::io::Cursor::new(bytes), limits);
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    let mut reader = decoder.read_info().map_err(wrong)?;
    let (width, height) = (reader.info().width, reader.info().height);
    if u64::from(width) * u64::from(height) > u64::from(MAX_PIXELS) {
        let what = format!("too large: {width} × {height} pixels, at most {MAX_PIXELS} are read");
        return Err(ImageError::Png { what });
    }
    let Some(size) = reader.output_buffer_size() else {
        return Err(ImageError::Png { what: "too large".into() });
    };
    let mut raw = vec![0; size];
    let frame = reader.next_frame(&mut raw).map_err(wrong)?;
    raw.truncate(frame.buffer_size());
    rgb.clear();
    match frame.color_type {
        ColorType::Rgb => rgb.extend_from_slice(&raw),
        ColorType::Rgba => raw.chunks_exact(4).for_each(|pixel| rgb.extend_from_slice(&pixel[..3])),
        ColorType::Grayscale => raw.iter().for_each(|&value| rgb.extend([value; 3])),
        ColorType::GrayscaleAlpha => raw.chunks_exact(2).for_each(|pixel| rgb.extend([pixel[0]; 3])),
        ColorType::Indexed => return Err(ImageError::Png { what: "its palette was not expanded".into() }),
    }
    Ok((width, height))
}
