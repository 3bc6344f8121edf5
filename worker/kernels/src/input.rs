//! Batches out of a data set in device memory: shift with zero fill, flip, normalise.

use crate::launch::{Cell, Sizes, THREADS, variant};
use crate::{Element, KernelError, Launch, Memory};

/// What the host draws for one image, as the device reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Draw {
    /// Row `y` shows what row `y + down` shows, or zeros.
    pub down: i16,
    /// Column `x` shows what column `x + right` shows, or zeros.
    pub right: i16,
    /// Afterwards left and right change places.
    pub flip: bool,
}

impl Draw {
    /// Bytes in device memory.
    pub const BYTES: u64 = 8;

    /// As the device reads it.
    pub fn to_bytes(self) -> [u8; Self::BYTES as usize] {
        let mut out = [0; Self::BYTES as usize];
        out[..2].copy_from_slice(&self.down.to_ne_bytes());
        out[2..4].copy_from_slice(&self.right.to_ne_bytes());
        out[4..6].copy_from_slice(&i16::from(self.flip).to_ne_bytes());
        out
    }
}

/// A data set in device memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DataSet {
    /// u8: N × height × width × channels.
    pub images: Memory,
    /// i32 × N.
    pub labels: Memory,
    /// N
    pub num: u64,
    /// Height, width, channels.
    pub shape: [u32; 3],
    /// f32: one offset a value of an image.
    pub offset: Memory,
    /// f32: one scale a value of an image.
    pub scale: Memory,
}

/// One batch of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Augment {
    /// Where from.
    pub data: DataSet,
    /// Images of the batch; may be 0.
    pub num: u32,
    /// i64 × num: which images. The host answers for their being less than N.
    pub samples: Memory,
    /// [`Draw`] × num.
    pub draws: Memory,
    /// Number type of the batch.
    pub element: Element,
    /// Out: num × height × width × channels.
    pub images: Memory,
    /// Out: i32 × num.
    pub labels: Memory,
}

impl Augment {
    /// `None` for a batch of no images.
    ///
    /// # Errors
    /// Memory that is too small.
    pub fn launch(&self) -> Result<Option<Launch>, KernelError> {
        let (sizes, data, num) = (Sizes("augment"), self.data, u64::from(self.num));
        let [height, width, channels] = data.shape;
        let size = data.shape.iter().map(|side| u64::from(*side)).product::<u64>();
        if size == 0 || size > 1 << 24 {
            return sizes.refuse(format!("images of shape {:?}", data.shape));
        }
        sizes.need("data set", data.images, data.num * size)?;
        sizes.need("labels of the data set", data.labels, data.num * 4)?;
        sizes.need("offsets", data.offset, size * 4)?;
        sizes.need("scales", data.scale, size * 4)?;
        sizes.need("samples", self.samples, num * 8)?;
        sizes.need("draws", self.draws, num * Draw::BYTES)?;
        sizes.need("batch", self.images, num * size * self.element.bytes())?;
        sizes.need("labels", self.labels, num * 4)?;
        if num == 0 {
            return Ok(None);
        }
        let pack = self.element.pack();
        let wide = size.is_multiple_of(u64::from(pack)) && self.images.is_aligned(16);
        let parts = size.div_ceil(u64::from(THREADS * if wide { pack } else { 1 })) as u32;
        let structure = [
            data.images.into(),
            data.labels.into(),
            self.samples.into(),
            self.draws.into(),
            data.offset.into(),
            data.scale.into(),
            Cell::pair(height, width),
            Cell::pair(channels, 0),
        ];
        let launch = Launch::new(variant!("augment", self.element, wide), [self.num, parts], 0);
        Ok(Some(launch.structure(structure).arg(self.images).arg(self.labels)))
    }
}
