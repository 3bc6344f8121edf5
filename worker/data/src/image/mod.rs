//! From the bytes of a file to the square that a model sees.
//!
//! ```text
//! bytes ─► sniff ─► jpeg, png ─► size, orientation (exif) ─► cut: which part   ◄── draws
//!                     │                                        │
//!                     └─── decode only that part (render) ◄────┘
//!                                   └► resize ─► colour ─► normal: floats NHWC
//! ```
//! What is inside decides, not the name. May never: know a file's name, keep anything between two images but room.

mod colour;
mod cut;
mod error;
mod exif;
mod normal;
mod png;
mod render;
mod sniff;
mod transform;

pub use colour::Jitter;
pub use cut::{Cut, centre, random};
pub use error::ImageError;
pub use exif::Orientation;
pub use normal::Normal;
pub use render::{MAX_PIXELS, Quality, Rendering, Whole, Workspace};
pub use sniff::Format;
pub use transform::{Left, Transform};
