//! One split, raw, in memory: bytes NHWC and labels.

use lockstep_proto::message::Sha256;
use sha2::{Digest, Sha256 as Hasher};

/// Raw images of one split. Pixels lie NHWC, so that loading one is a straight pass over its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Samples {
    shape: [usize; 3],
    pixels: Vec<u8>,
    labels: Vec<u8>,
}

impl Samples {
    /// None yet, with room for `num_samples` images of `shape` (height, width, channels).
    pub fn with_capacity(shape: [usize; 3], num_samples: usize) -> Self {
        let values = shape.iter().product::<usize>();
        Self { shape, pixels: Vec::with_capacity(num_samples * values), labels: Vec::with_capacity(num_samples) }
    }

    /// Appends an image given as height × width × channels bytes.
    pub fn push(&mut self, image: &[u8], label: u8) {
        assert_eq!(image.len(), self.num_values(), "an image of another shape");
        self.pixels.extend_from_slice(image);
        self.labels.push(label);
    }

    /// Appends an image given as channels × height × width bytes.
    pub fn push_planar(&mut self, image: &[u8], label: u8) {
        assert_eq!(image.len(), self.num_values(), "an image of another shape");
        let plane = self.shape[0] * self.shape[1];
        let start = self.pixels.len();
        self.pixels.resize(start + image.len(), 0);
        for (place, pixel) in self.pixels[start..].chunks_exact_mut(self.shape[2]).enumerate() {
            for (channel, value) in pixel.iter_mut().enumerate() {
                *value = image[channel * plane + place];
            }
        }
        self.labels.push(label);
    }

    /// Height, width, channels.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// Values of one image.
    pub fn num_values(&self) -> usize {
        self.shape.iter().product()
    }

    /// Number of images.
    pub fn len(&self) -> u64 {
        self.labels.len() as u64
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The bytes of one image, height × width × channels.
    pub fn image(&self, sample: u64) -> &[u8] {
        let start = sample as usize * self.num_values();
        &self.pixels[start..start + self.num_values()]
    }

    /// All images, one after another.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The class of one image.
    pub fn label(&self, sample: u64) -> u32 {
        u32::from(self.labels[sample as usize])
    }
}

/// sha256 over what a run can see of a set, that is, after `data.limit` and `data.test_limit`: for the training split
/// and then the test split four little-endian u64 (number of samples, height, width, channels), the labels a byte each,
/// and the pixels in NHWC order. Where the data lie and how they are normalised do not matter.
pub fn fingerprint(train: &Samples, test: &Samples) -> Sha256 {
    let mut hasher = Hasher::new();
    for split in [train, test] {
        let [height, width, channels] = split.shape.map(|extent| extent as u64);
        for number in [split.len(), height, width, channels] {
            hasher.update(number.to_le_bytes());
        }
        hasher.update(&split.labels);
        hasher.update(&split.pixels);
    }
    hex(&hasher.finalize())
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planar_images_are_stored_interleaved() {
        let mut samples = Samples::with_capacity([1, 2, 3], 1);
        samples.push_planar(&[1, 2, 10, 20, 100, 200], 7);
        assert_eq!(samples.image(0), [1, 10, 100, 2, 20, 200]);
        assert_eq!(samples.label(0), 7);
    }

    #[test]
    fn the_fingerprint_sees_pixels_labels_and_the_border_between_splits() {
        let set = |images: &[(u8, u8)]| {
            let mut samples = Samples::with_capacity([1, 1, 1], images.len());
            images.iter().for_each(|&(pixel, label)| samples.push(&[pixel], label));
            samples
        };
        let base = fingerprint(&set(&[(1, 0), (2, 1)]), &set(&[(3, 0)]));
        assert_eq!(base, fingerprint(&set(&[(1, 0), (2, 1)]), &set(&[(3, 0)])));
        assert_eq!(base.len(), 64);
        for (train, test) in [
            (set(&[(1, 0), (9, 1)]), set(&[(3, 0)])),
            (set(&[(1, 0), (2, 0)]), set(&[(3, 0)])),
            (set(&[(1, 0)]), set(&[(2, 1), (3, 0)])),
            (set(&[(2, 1), (1, 0)]), set(&[(3, 0)])),
        ] {
            assert_ne!(base, fingerprint(&train, &test));
        }
    }
}
