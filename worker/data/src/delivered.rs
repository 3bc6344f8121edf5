//! What is asked of a loader, and what it gives.

use lockstep_proto::ids::{Epoch, SampleRange};
use lockstep_proto::message::Skipped;

/// Some positions of a global batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Part {
    /// Of which epoch.
    pub epoch: Epoch,
    /// The global batch.
    pub batch: SampleRange,
    /// Those to load.
    pub positions: SampleRange,
}

/// Some samples, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Wanted {
    /// Training samples, augmented and mixed.
    Train(Part),
    /// Test samples, as they are.
    Test(SampleRange),
}

/// The other class of a mixed position's target.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Partner {
    /// Its class.
    pub label: i64,
    /// What is left for the position's own class, in `[0, 1]`.
    pub keep: f64,
}

/// Samples: a row each. Buffers keep their room.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delivered {
    /// Rows × height × width × channels floats.
    pub images: Vec<f32>,
    /// A class a row.
    pub labels: Vec<i64>,
    /// The other class of each row; empty where the recipe mixes nothing.
    pub partners: Vec<Partner>,
    /// The position of each row; of test samples their number.
    pub positions: Vec<u64>,
    /// The wrapping sum of the hashes of (position, sample, label), of rows only; partners count at their own positions. 0
    /// of test samples.
    pub digest: u64,
    /// Those that have no row because their images are broken; ascending. Only with `data.image.bad = "skip"`.
    pub skipped: Vec<Skipped>,
}
