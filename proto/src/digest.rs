//! What loaders delivered, as a sum that does not depend on who delivered it: the audit recomputes it.

use crate::ids::Epoch;
use crate::mix::{self, Purpose};

/// A keyed hash of (epoch, position, sample, label). Digests are summed with wrapping addition, modulo 2⁶⁴.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleDigest {
    key: u64,
}

impl SampleDigest {
    /// Keyed by the run's seed.
    pub fn new(seed: u64) -> Self {
        Self { key: mix::key(Purpose::Digest, &[seed]) }
    }

    /// The digest of one delivered sample.
    pub fn of(&self, epoch: Epoch, position: u64, sample: u64, label: u32) -> u64 {
        [epoch.0, position, sample, u64::from(label)].into_iter().fold(self.key, mix::absorb)
    }
}
