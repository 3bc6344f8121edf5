//! What can be wrong with a JPEG.

/// Why there is no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JpegError {
    /// The file ends before its image does.
    #[error("truncated: {what}")]
    Truncated {
        /// What libjpeg-turbo said.
        what: String,
    },
    /// The data contradict themselves.
    #[error("corrupt: {what}")]
    Corrupt {
        /// What libjpeg-turbo said.
        what: String,
    },
    /// A valid kind of JPEG that this does not read: 12 bits a sample, lossless, …
    #[error("unsupported: {what}")]
    Unsupported {
        /// Which.
        what: String,
    },
    /// Larger than the limits.
    #[error("too large: {what}")]
    TooLarge {
        /// What is, and the limit.
        what: String,
    },
    /// libjpeg-turbo refused its arguments or has no memory.
    #[error("libjpeg-turbo: {what}")]
    Library {
        /// What it said.
        what: String,
    },
}

/// Warnings after which the image is whole all the same. libjpeg-turbo repairs what they tell of without inventing a
/// pixel: bytes between two markers, an unknown number in an Adobe marker, sloppy scan parameters, a broken profile.
const HARMLESS: [&str; 6] = [
    "extraneous bytes before marker",
    "Unknown Adobe color transform code",
    "Invalid SOS parameters for sequential JPEG",
    "Inconsistent progression sequence",
    "ICC profile",
    "Unsupported JFIF revision",
];

/// Whether an image with this warning is whole.
pub(crate) fn is_harmless(what: &str) -> bool {
    HARMLESS.iter().any(|part| what.contains(part))
}

/// Sorts what libjpeg-turbo says.
pub(crate) fn classify(what: &str) -> JpegError {
    let what = what.trim().to_owned();
    let says = |parts: &[&str]| parts.iter().any(|part| what.contains(part));
    if says(&["Premature end", "premature end", "Empty input file", "contains no image", "missing SOS marker"]) {
        JpegError::Truncated { what }
    } else if says(&["too large", "more than", "Maximum supported image dimension"]) {
        JpegError::TooLarge { what }
    } else if says(&["Unsupported", "not supported", "colorspace", "color conversion", "not implemented"]) {
        JpegError::Unsupported { what }
    } else if says(&["nvalid argument", "emory allocation", "Insufficient memory", "cropping region"]) {
        JpegError::Library { what }
    } else {
        JpegError::Corrupt { what }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_sorted_by_what_they_mean() {
        let name = |what: &str| classify(what).to_string().split(':').next().unwrap_or_default().to_owned();
        assert_eq!(name("Premature end of JPEG file"), "truncated");
        assert_eq!(name("Corrupt JPEG data: premature end of data segment"), "truncated");
        assert_eq!(name("Corrupt JPEG data: bad Huffman code"), "corrupt");
        assert_eq!(name("Unsupported JPEG process: SOF type 0xc5"), "unsupported");
        assert_eq!(name("Progressive JPEG image has more than 200 scans"), "too large");
        assert!(is_harmless("Corrupt JPEG data: 24 extraneous bytes before marker 0xd9"));
        assert!(!is_harmless("Corrupt JPEG data: bad Huffman code"));
    }
}
