//! From the bytes of a file to the square that a model sees.
//!
//! ```text
//! bytes ─► sniff ─► jpeg, png ─► size, orientation (exif) ─► cut: which part   ◄── draws
//!                     │                                        │
//!                     └─── decode only that part (render) ◄────┘
//!                      └► resize ─► colour ─► auto: warp, tone ─► normal: floats NHWC ─► erase
//! ```
//! What is inside decides, not the name. May never: know a file's name, keep anything between two images but room.

mod auto;
mod colour;
mod cut;
mod erase;
mod error;
mod exif;
mod normal;
mod png;
mod render;
mod sniff;
mod tone;
mod transform;
mod warp;

pub use auto::Op as AutoOp;
pub use colour::Jitter;
pub use cut::{Cut, centre, random};
pub use erase::Erased;
pub use error::ImageError;
pub use exif::Orientation;
pub use normal::Normal;
pub use render::{MAX_PIXELS, Quality, Rendering, Whole, Workspace};
pub use sniff::Format;
pub use transform::{Left, Transform, mirror};

/// Bytes that an operation reads while it writes over its square.
#[derive(Clone, Debug, Default)]
pub struct Room(Vec<u8>);
