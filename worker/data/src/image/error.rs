//! What can be wrong with the bytes of one image.

use lockstep_jpeg::JpegError;

/// Why there is no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// A JPEG that cannot be read.
    #[error("JPEG, {0}")]
    Jpeg(#[from] JpegError),
    /// A PNG that cannot be read.
    #[error("PNG, {what}")]
    Png {
        /// What is wrong with it.
        what: String,
    },
    /// Something else.
    #[error("not a JPEG or PNG but {is}")]
    Kind {
        /// What it is, as far as its first bytes tell.
        is: &'static str,
    },
    /// The resizer refused.
    #[error("cannot be resized: {what}")]
    Resize {
        /// What it said.
        what: String,
    },
}
