//! JPEG decoding by libjpeg-turbo, whose TurboJPEG interface (version 3) returns errors and never jumps through Rust.
//!
//! ```text
//! bytes ─► Decoder::open ─► Jpeg: size, colours ─► decode(scale n/8, region) ─► RGB bytes of a region that covers it
//!                                                       └ CMYK and YCCK by the formula of Pillow      (cmyk)
//! pixels ─► encode                                                                                   tests, packing
//! ```
//! Whatever the bytes are, the result is an image or a [`JpegError`]. May never: guess the rest of a file that is cut,
//! use more memory than its limits say, keep anything of one image for the next but room.

mod cmyk;
mod decode;
mod encode;
mod error;
mod geometry;

pub use decode::{Decoded, Decoder, Jpeg, Limits};
pub use encode::{Encoding, Pixels, Subsampling, encode};
pub use error::JpegError;
pub use geometry::{Region, Scale};
