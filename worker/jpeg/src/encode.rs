//! Writing JPEGs: for tests and for packing.

use std::ffi::{CStr, c_int};

use turbojpeg_sys as sys;

use crate::error::JpegError;

/// How much of the colour is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subsampling {
    /// 4:4:4, all of it.
    None,
    /// 4:2:2, half the columns.
    Half,
    /// 4:2:0, half the columns and half the rows.
    Quarter,
    /// 4:4:0, half the rows.
    Rows,
    /// 4:1:1, a quarter of the columns.
    Columns,
    /// No colour.
    Gray,
}

/// What the pixels are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pixels {
    /// Red, green, blue.
    Rgb,
    /// Four inks, inverted as Adobe writes them; stored as YCCK.
    Cmyk,
}

/// How an image is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// 1 … 100.
    pub quality: u8,
    /// How much of the colour is kept.
    pub subsampling: Subsampling,
    /// In several passes.
    pub progressive: bool,
}

impl Default for Encoding {
    /// Quality 90, 4:2:0, in one pass.
    fn default() -> Self {
        Self { quality: 90, subsampling: Subsampling::Quarter, progressive: false }
    }
}

/// Writes `pixels` of width × height as a JPEG.
///
/// # Errors
/// A number of bytes that is not width × height × channels, a quality out of range, no memory.
pub fn encode(
    kind: Pixels,
    (width, height): (u32, u32),
    pixels: &[u8],
    encoding: Encoding,
) -> Result<Vec<u8>, JpegError> {
    let (channels, format) = match kind {
        Pixels::Rgb => (3, sys::TJPF_TJPF_RGB),
        Pixels::Cmyk => (4, sys::TJPF_TJPF_CMYK),
    };
    let fits = |length: u32| (1..=65_500).contains(&length);
    let bytes = u64::from(width) * u64::from(height) * channels;
    if !fits(width) || !fits(height) || pixels.len() as u64 != bytes {
        let what = format!("{} bytes are no {width} × {height} pixels of {channels} bytes", pixels.len());
        return Err(JpegError::Library { what });
    }
    let subsampling = match encoding.subsampling {
        Subsampling::None => sys::TJSAMP_TJSAMP_444,
        Subsampling::Half => sys::TJSAMP_TJSAMP_422,
        Subsampling::Quarter => sys::TJSAMP_TJSAMP_420,
        Subsampling::Gray => sys::TJSAMP_TJSAMP_GRAY,
        Subsampling::Rows => sys::TJSAMP_TJSAMP_440,
        Subsampling::Columns => sys::TJSAMP_TJSAMP_411,
    };
    let parameters = [
        (sys::TJPARAM_TJPARAM_QUALITY, c_int::from(encoding.quality)),
        (sys::TJPARAM_TJPARAM_SUBSAMP, subsampling as c_int),
        (sys::TJPARAM_TJPARAM_PROGRESSIVE, c_int::from(encoding.progressive)),
    ];
    let mut written = std::ptr::null_mut();
    let mut size = 0;
    // SAFETY: the instance lives until tj3Destroy below; `pixels` has width × height × channels bytes (checked), packed
    // (pitch 0); the library allocates the result, which is copied before it is freed, once.
    unsafe {
        let handle = sys::tj3Init(sys::TJINIT_TJINIT_COMPRESS as c_int);
        if handle.is_null() {
            return Err(JpegError::Library { what: "cannot start: no memory".into() });
        }
        let mut rc = 0;
        for (parameter, value) in parameters {
            if rc == 0 {
                rc = sys::tj3Set(handle, parameter as c_int, value);
            }
        }
        if rc == 0 {
            let (width, height) = (width as c_int, height as c_int);
            rc = sys::tj3Compress8(handle, pixels.as_ptr(), width, 0, height, format, &mut written, &mut size);
        }
        let result = if rc == 0 {
            Ok(std::slice::from_raw_parts(written, size as usize).to_vec())
        } else {
            Err(JpegError::Library { what: CStr::from_ptr(sys::tj3GetErrorStr(handle)).to_string_lossy().into_owned() })
        };
        sys::tj3Free(written.cast());
        sys::tj3Destroy(handle);
        result
    }
}
