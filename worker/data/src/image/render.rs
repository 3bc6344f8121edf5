//! Decodes the part of an image that is needed, at a scale that still has enough pixels, and resizes it to a square.
//!
//! The filter is the triangle of Pillow's `BILINEAR`: its support grows with the reduction, so nothing is left out.

use fast_image_resize::images::{CroppedImage, Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use lockstep_jpeg::{Decoder, Limits, Region, Scale};

use super::Room;
use super::cut::Cut;
use super::error::ImageError;
use super::exif::Orientation;
use super::png;
use super::sniff::Format;

/// No larger image is read.
pub const MAX_PIXELS: u32 = 1 << 28;

/// How much is decoded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Quality {
    /// All pixels of the part.
    Full,
    /// At the smallest of 8/8, 4/8, 2/8, 1/8 at which the part still has so many times the square's pixels a side.
    /// libjpeg-turbo has fast transforms for these four; other eighths cost more than they save.
    Scaled(f64),
}

/// How an image becomes a square.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rendering {
    /// Side of the square, pixels.
    pub side: u32,
    /// How much is decoded.
    pub quality: Quality,
    /// Whether the part is cut out before it is resized; else pixels around it have their share in its border, as when
    /// the whole image is resized and cut afterwards.
    pub cut_first: bool,
    /// Whether EXIF counts.
    pub exif: bool,
}

/// Room for one thread: buffers that grow to what the largest part needed.
pub struct Workspace {
    decoder: Decoder,
    resizer: Resizer,
    decoded: Vec<u8>,
    square: Vec<u8>,
    turned: Vec<u8>,
    /// For whoever changes a square.
    pub pixels: Vec<u8>,
    /// For operations that read while they write.
    pub room: Room,
    /// For whoever reads files into it.
    pub file: Vec<u8>,
}

/// A whole image, as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whole<'a> {
    /// What it is.
    pub format: Format,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Of a JPEG: 1 gray, 3 colour, 4 CMYK or YCCK. Of a PNG always 3.
    pub num_inks: u8,
    /// Something odd that did no harm.
    pub warning: Option<String>,
    /// Rows of three bytes a pixel.
    pub rgb: &'a [u8],
}

/// What was decoded: `region` of an image that was scaled by `factor`.
struct Raster {
    region: Region,
    factor: f64,
}

impl Workspace {
    /// An empty one.
    ///
    /// # Errors
    /// No memory.
    pub fn new() -> Result<Self, ImageError> {
        let decoder = Decoder::new(Limits { pixels: MAX_PIXELS, ..Limits::default() })?;
        let resizer = Resizer::new();
        let [decoded, square, turned, pixels, file] = [const { Vec::new() }; 5];
        let room = Room::default();
        Ok(Self { decoder, resizer, decoded, square, turned, pixels, room, file })
    }

    /// Bytes that its buffers hold.
    pub fn capacity(&self) -> usize {
        let own = [&self.decoded, &self.square, &self.turned, &self.pixels, &self.room.0, &self.file];
        own.iter().map(|buffer| buffer.capacity()).sum::<usize>() + self.resizer.size_of_internal_buffers()
    }

    /// Decodes all of an image at full size.
    ///
    /// # Errors
    /// Not an image that is read, truncated, corrupt, too large.
    pub fn whole(&mut self, bytes: &[u8]) -> Result<Whole<'_>, ImageError> {
        let format = Format::of(bytes).map_err(|is| ImageError::Kind { is })?;
        let (width, height, num_inks, warning) = match format {
            Format::Png => {
                let (width, height) = png::decode(bytes, &mut self.decoded)?;
                (width, height, 3, None)
            }
            Format::Jpeg => {
                let mut jpeg = self.decoder.open(bytes)?;
                let (width, height, num_inks) = (jpeg.width, jpeg.height, jpeg.num_inks);
                let decoded = jpeg.decode(Scale::FULL, Region::whole(width, height), &mut self.decoded)?;
                (width, height, num_inks, decoded.warning)
            }
        };
        Ok(Whole { format, width, height, num_inks, warning, rgb: &self.decoded })
    }

    /// Renders the part that `choose` names, given width and height, as `side` × `side` RGB bytes.
    ///
    /// # Errors
    /// Not an image that is read; truncated or corrupt where it is needed; too large.
    pub fn render(
        &mut self,
        bytes: &[u8],
        how: Rendering,
        choose: impl FnOnce((u32, u32)) -> Cut,
    ) -> Result<&[u8], ImageError> {
        let format = Format::of(bytes).map_err(|is| ImageError::Kind { is })?;
        let (raster, cut, orientation) = match format {
            Format::Png => {
                let size = png::decode(bytes, &mut self.decoded)?;
                let raster = Raster { region: Region::whole(size.0, size.1), factor: 1.0 };
                (raster, choose(size), Orientation::default())
            }
            Format::Jpeg => {
                let mut jpeg = self.decoder.open(bytes)?;
                let size = (jpeg.width, jpeg.height);
                let orientation = if how.exif { Orientation::of_jpeg(bytes) } else { Orientation::default() };
                let cut = orientation.stored(choose(orientation.shown(size)), size);
                let scale = scale(how, cut);
                let wanted = part(how, scale.factor(), cut, jpeg.size_at(scale));
                let region = jpeg.decode(scale, wanted, &mut self.decoded)?.region;
                (Raster { region, factor: scale.factor() }, cut, orientation)
            }
        };
        self.resize(how, &raster, cut)?;
        if orientation == Orientation::default() {
            return Ok(&self.square);
        }
        orientation.turn(how.side as usize, &self.square, &mut self.turned);
        Ok(&self.turned)
    }

    fn resize(&mut self, how: Rendering, raster: &Raster, cut: Cut) -> Result<(), ImageError> {
        fn wrong(error: impl std::fmt::Display) -> ImageError {
            ImageError::Resize { what: error.to_string() }
        }
        let Region { x, y, width, height } = raster.region;
        let source = ImageRef::new(width, height, &self.decoded, PixelType::U8x3).map_err(wrong)?;
        // what may have a share in the result, inside the region
        let limits = if how.cut_first {
            let outer = outer(raster.factor, cut, 0.0, (x + width, y + height));
            Region { x: outer.x - x, y: outer.y - y, ..outer }
        } else {
            Region::whole(width, height)
        };
        let view = CroppedImage::new(&source, limits.x, limits.y, limits.width, limits.height).map_err(wrong)?;
        let left = (cut.x * raster.factor - f64::from(x + limits.x)).max(0.0);
        let top = (cut.y * raster.factor - f64::from(y + limits.y)).max(0.0);
        // rounding must not put the part's end a hair beyond the last pixel
        let columns = (cut.width * raster.factor).min(f64::from(limits.width) - left);
        let rows = (cut.height * raster.factor).min(f64::from(limits.height) - top);
        let options = ResizeOptions::new()
            .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear))
            .crop(left, top, columns, rows)
            .use_alpha(false);
        self.square.resize(how.side as usize * how.side as usize * 3, 0);
        let mut square = Image::from_slice_u8(how.side, how.side, &mut self.square, PixelType::U8x3).map_err(wrong)?;
        self.resizer.resize(&view, &mut square, &options).map_err(wrong)
    }
}

/// The scale at which a part is decoded.
fn scale(how: Rendering, cut: Cut) -> Scale {
    let Quality::Scaled(gap) = how.quality else { return Scale::FULL };
    let enough = |scale: &Scale| cut.width.min(cut.height) * scale.factor() >= f64::from(how.side) * gap;
    [1, 2, 4].into_iter().filter_map(Scale::eighths).find(enough).unwrap_or(Scale::FULL)
}

/// The pixels of the scaled image that have a share in the result.
fn part(how: Rendering, factor: f64, cut: Cut, scaled: (u32, u32)) -> Region {
    let reach = |length: f64| (length * factor / f64::from(how.side)).max(1.0).ceil() + 1.0;
    let margin = if how.cut_first { 0.0 } else { reach(cut.width.max(cut.height)) };
    outer(factor, cut, margin, scaled)
}

/// The smallest region of whole pixels with the part and a margin in it, inside `end`.
fn outer(factor: f64, cut: Cut, margin: f64, end: (u32, u32)) -> Region {
    let span = |start: f64, length: f64, end: u32| {
        // invariant: an image has at least a pixel a side
        let last = f64::from(end.max(1));
        let low = (start * factor - margin).floor().clamp(0.0, last - 1.0);
        let high = ((start + length) * factor + margin).ceil().clamp(low + 1.0, last);
        (low as u32, (high - low) as u32)
    };
    let ((x, width), (y, height)) = (span(cut.x, cut.width, end.0), span(cut.y, cut.height, end.1));
    Region { x, y, width, height }
}
