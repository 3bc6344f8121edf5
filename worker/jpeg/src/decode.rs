//! The decoder: a handle of libjpeg-turbo, its limits, and the image that is open in it.

use std::ffi::{CStr, c_int};
use std::ptr::NonNull;

use turbojpeg_sys as sys;

use crate::error::{JpegError, classify, is_harmless};
use crate::geometry::{Region, Scale};

/// Chroma is interpolated from neighbours, so columns beside a region's border belong to it.
const MARGIN: u32 = 2;
/// Columns of a minimum coded unit, by the numbers that `TJPARAM_SUBSAMP` has: 4:4:4, 4:2:2, 4:2:0, gray, 4:4:0, 4:1:1,
/// 4:4:1.
const UNIT_WIDTH: [u32; 7] = [8, 16, 16, 8, 8, 32, 8];

/// What an image may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most pixels of the stored image, at full size.
    pub pixels: u32,
    /// Most MiB that libjpeg-turbo keeps: coefficients of a progressive image.
    pub memory_mib: u16,
    /// Most scans of a progressive image; a hostile one can have thousands, each as dear as an image.
    pub scans: u16,
}

impl Default for Limits {
    /// 2²⁸ pixels, 1 GiB, 200 scans.
    fn default() -> Self {
        Self { pixels: 1 << 28, memory_mib: 1024, scans: 200 }
    }
}

/// Decodes one image after another; keeps nothing but room between them.
pub struct Decoder {
    handle: NonNull<std::ffi::c_void>,
    limits: Limits,
    inks: Vec<u8>,
    /// An image was opened: the next one gets a new instance.
    used: bool,
}

// SAFETY: the handle is owned by this value alone, and libjpeg-turbo ties nothing of an instance to a thread; its
// thread-local error text is read by the thread that made the call, before any other.
unsafe impl Send for Decoder {}

impl Decoder {
    /// A decoder within these limits.
    ///
    /// # Errors
    /// No memory.
    pub fn new(limits: Limits) -> Result<Self, JpegError> {
        // SAFETY: takes a constant and returns null or a new instance.
        let handle = unsafe { sys::tj3Init(sys::TJINIT_TJINIT_DECOMPRESS as c_int) };
        let Some(handle) = NonNull::new(handle) else {
            return Err(JpegError::Library { what: "cannot start: no memory".into() });
        };
        let mut decoder = Self { handle, limits, inks: Vec::new(), used: false };
        decoder.set(sys::TJPARAM_TJPARAM_SCANLIMIT, limits.scans.into())?;
        decoder.set(sys::TJPARAM_TJPARAM_MAXMEMORY, limits.memory_mib.into())?;
        decoder.set(sys::TJPARAM_TJPARAM_SAVEMARKERS, 0)?;
        Ok(decoder)
    }

    /// Reads the header of `bytes`.
    ///
    /// # Errors
    /// No JPEG, one whose header is damaged, one of a kind that is not read, or one above the limits.
    pub fn open<'a>(&'a mut self, bytes: &'a [u8]) -> Result<Jpeg<'a>, JpegError> {
        if bytes.is_empty() {
            return Err(JpegError::Truncated { what: "empty".into() });
        }
        if self.used {
            // An instance keeps the tables and the size of the image before: a file that lacks some would be decoded with
            // another's, and what is wrong with it would depend on which came before it.
            let inks = std::mem::take(&mut self.inks);
            *self = Self::new(self.limits)?;
            self.inks = inks;
        }
        self.used = true;
        // SAFETY: the handle is alive and `bytes` is readable for its length; errors come back as −1.
        let rc = unsafe { sys::tj3DecompressHeader(self.handle.as_ptr(), bytes.as_ptr(), bytes.len() as sys::size_t) };
        if rc != 0 {
            let what = self.message();
            if !is_harmless(&what) {
                return Err(classify(&what));
            }
        }
        let (width, height) = (self.get(sys::TJPARAM_TJPARAM_JPEGWIDTH), self.get(sys::TJPARAM_TJPARAM_JPEGHEIGHT));
        let (Ok(width @ 1..), Ok(height @ 1..)) = (u32::try_from(width), u32::try_from(height)) else {
            return Err(JpegError::Truncated { what: "tables without an image".into() });
        };
        let pixels = u64::from(width) * u64::from(height);
        if pixels > u64::from(self.limits.pixels) {
            let what = format!("{width} × {height} pixels, at most {} are read", self.limits.pixels);
            return Err(JpegError::TooLarge { what });
        }
        let bits = self.get(sys::TJPARAM_TJPARAM_PRECISION);
        if bits != 8 {
            return Err(JpegError::Unsupported { what: format!("{bits} bits a sample, only 8 are read") });
        }
        if self.get(sys::TJPARAM_TJPARAM_LOSSLESS) != 0 {
            return Err(JpegError::Unsupported { what: "lossless JPEG".into() });
        }
        let colours = self.get(sys::TJPARAM_TJPARAM_COLORSPACE);
        let unit = usize::try_from(self.get(sys::TJPARAM_TJPARAM_SUBSAMP)).ok();
        Ok(Jpeg {
            width,
            height,
            num_inks: match colours {
                c if c == sys::TJCS_TJCS_GRAY as c_int => 1,
                c if c == sys::TJCS_TJCS_CMYK as c_int || c == sys::TJCS_TJCS_YCCK as c_int => 4,
                _ => 3,
            },
            progressive: self.get(sys::TJPARAM_TJPARAM_PROGRESSIVE) != 0,
            unit_width: unit.and_then(|unit| UNIT_WIDTH.get(unit)).copied(),
            bytes,
            decoder: self,
        })
    }

    fn set(&mut self, parameter: sys::TJPARAM, value: c_int) -> Result<(), JpegError> {
        // SAFETY: the handle is alive; an unknown parameter or value comes back as −1.
        let rc = unsafe { sys::tj3Set(self.handle.as_ptr(), parameter as c_int, value) };
        if rc == 0 { Ok(()) } else { Err(JpegError::Library { what: self.message() }) }
    }

    fn get(&self, parameter: sys::TJPARAM) -> c_int {
        // SAFETY: the handle is alive; reading a parameter changes nothing.
        unsafe { sys::tj3Get(self.handle.as_ptr(), parameter as c_int) }
    }

    /// What the last call that failed said: its error, else its first warning.
    fn message(&self) -> String {
        // SAFETY: the handle is alive; the text is a C string inside it or of this thread, copied before another call.
        let text = unsafe {
            let text = sys::tj3GetErrorStr(self.handle.as_ptr());
            if text.is_null() { c"no reason given" } else { CStr::from_ptr(text) }
        };
        text.to_string_lossy().into_owned()
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        // SAFETY: made by tj3Init, owned by this value, not used again.
        unsafe { sys::tj3Destroy(self.handle.as_ptr()) }
    }
}

/// An image whose header was read.
pub struct Jpeg<'a> {
    /// Columns, as stored.
    pub width: u32,
    /// Rows, as stored.
    pub height: u32,
    /// 1: gray; 3: colour; 4: CMYK or YCCK.
    pub num_inks: u8,
    /// Stored in several passes.
    pub progressive: bool,
    /// Columns that are coded together; `None` for a layout that only whole images are decoded of.
    unit_width: Option<u32>,
    bytes: &'a [u8],
    decoder: &'a mut Decoder,
}

/// What was decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Which pixels of the scaled image.
    pub region: Region,
    /// Something odd that did no harm.
    pub warning: Option<String>,
}

impl Jpeg<'_> {
    /// Width and height at a scale.
    pub fn size_at(&self, scale: Scale) -> (u32, u32) {
        (scale.of(self.width), scale.of(self.height))
    }

    /// Decodes at least the pixels `wanted` of the image at `scale` into `rgb`, which becomes rows of three bytes a pixel
    /// of the region that is returned: a little more than was wanted. Every wanted pixel is as in the whole image.
    ///
    /// # Errors
    /// `wanted` is empty or not inside the image; the data are truncated or corrupt where they are needed.
    pub fn decode(&mut self, scale: Scale, wanted: Region, rgb: &mut Vec<u8>) -> Result<Decoded, JpegError> {
        let (width, height) = self.size_at(scale);
        let whole = Region::whole(width, height);
        if wanted.area() == 0 || !whole.contains(&wanted) {
            let what = format!("{wanted:?} is not inside {width} × {height} pixels");
            return Err(JpegError::Library { what });
        }
        let region = self.covering(scale, wanted, whole);
        // invariant: both numbers have 16 bits, four bytes a pixel fit in 64
        let pixels = region.area() as usize;
        rgb.resize(pixels * 3, 0);
        let warning = if self.num_inks == 4 {
            let mut inks = std::mem::take(&mut self.decoder.inks);
            inks.resize(pixels * 4, 0);
            let warning = self.fill(scale, (region, whole), &mut inks);
            crate::cmyk::to_rgb(&inks, rgb);
            self.decoder.inks = inks;
            warning?
        } else {
            self.fill(scale, (region, whole), rgb)?
        };
        Ok(Decoded { region, warning })
    }

    /// A region that libjpeg-turbo can decode: its left border lies between coded units.
    fn covering(&self, scale: Scale, wanted: Region, whole: Region) -> Region {
        let Some(unit) = self.unit_width else { return whole };
        let unit = unit * scale.numerator() / 8;
        let left = wanted.x.saturating_sub(MARGIN) / unit * unit;
        let right = (wanted.x + wanted.width + MARGIN).min(whole.width);
        let top = wanted.y.saturating_sub(MARGIN);
        let bottom = (wanted.y + wanted.height + MARGIN).min(whole.height);
        Region { x: left, y: top, width: right - left, height: bottom - top }
    }

    /// Decodes exactly a region that [`Self::covering`] gave, three bytes a pixel or four. Returns a harmless warning.
    fn fill(
        &mut self,
        scale: Scale,
        (region, whole): (Region, Region),
        out: &mut [u8],
    ) -> Result<Option<String>, JpegError> {
        let channels = if self.num_inks == 4 { 4 } else { 3 };
        let format = if self.num_inks == 4 { sys::TJPF_TJPF_CMYK } else { sys::TJPF_TJPF_RGB };
        let part = if region == whole { Region::default() } else { region };
        // invariant: lengths have 16 bits
        let crop =
            sys::tjregion { x: part.x as c_int, y: part.y as c_int, w: part.width as c_int, h: part.height as c_int };
        // in lowest terms, as libjpeg-turbo has it in its table
        let divisor = 1 << scale.numerator().trailing_zeros().min(3);
        let factor = sys::tjscalingfactor { num: scale.numerator() as c_int / divisor, denom: 8 / divisor };
        let handle = self.decoder.handle.as_ptr();
        assert_eq!(out.len() as u64, region.area() * channels, "room for the region");
        // SAFETY: the handle is alive and read the header of these very bytes, which stay borrowed and unchanged, so the
        // size is the one that `out` was made for: with the region set (or the whole image at this scale) libjpeg-turbo
        // writes region.height rows of region.width pixels, packed (pitch 0). A region of zeros lifts an earlier one, and
        // nothing is decoded unless scale and region were both accepted.
        let rc = unsafe {
            let mut rc = sys::tj3SetCroppingRegion(handle, sys::tjregion { x: 0, y: 0, w: 0, h: 0 });
            if rc == 0 {
                rc = sys::tj3SetScalingFactor(handle, factor);
            }
            if rc == 0 {
                rc = sys::tj3SetCroppingRegion(handle, crop);
            }
            if rc != 0 {
                return Err(JpegError::Library { what: self.decoder.message() });
            }
            sys::tj3Decompress8(
                handle,
                self.bytes.as_ptr(),
                self.bytes.len() as sys::size_t,
                out.as_mut_ptr(),
                0,
                format,
            )
        };
        if rc == 0 {
            return Ok(None);
        }
        // The text is that of the error, if there was one, else of the first warning.
        let what = self.decoder.message();
        if !is_harmless(&what) {
            return Err(classify(&what));
        }
        // A later warning has no text, so ask by another way for the one that matters.
        if !self.bytes.windows(2).rev().any(|pair| pair == [0xff, 0xd9]) {
            return Err(JpegError::Truncated { what: format!("no end-of-image marker, and {what}") });
        }
        Ok(Some(what))
    }
}
