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

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, audits of earlier runs fail: do it knowingly.
    #[test]
    fn digests_never_change_by_accident() {
        assert_eq!(SampleDigest::new(0).of(Epoch(1), 0, 0, 0), GOLDEN[0]);
        assert_eq!(SampleDigest::new(9).of(Epoch(3), 49_999, 17, 9), GOLDEN[1]);
    }

    const GOLDEN: [u64; 2] = [5315796659587528939, 17372066236102705749];

    #[test]
    fn a_sum_notices_what_a_broken_loader_does() {
        let digest = SampleDigest::new(5);
        let sum = |delivered: &[(u64, u64, u32)]| {
            delivered.iter().fold(0u64, |sum, &(position, sample, label)| {
                sum.wrapping_add(digest.of(Epoch(2), position, sample, label))
            })
        };
        let right = sum(&[(0, 7, 1), (1, 8, 2), (2, 9, 1)]);
        assert_eq!(right, sum(&[(2, 9, 1), (0, 7, 1), (1, 8, 2)]), "whoever delivers, in whatever order");
        assert_ne!(right, sum(&[(0, 8, 2), (1, 7, 1), (2, 9, 1)]), "two samples exchanged");
        assert_ne!(right, sum(&[(0, 7, 1), (1, 8, 2), (2, 9, 2)]), "a wrong label");
        assert_ne!(right, sum(&[(0, 7, 1), (0, 7, 1), (2, 9, 1)]), "one doubled, one lost");
        assert_ne!(right, sum(&[(0, 7, 1), (1, 8, 2)]), "one lost");
        assert_ne!(right, sum(&[(1, 7, 1), (2, 8, 2), (3, 9, 1)]), "shifted by one");
    }

    #[test]
    fn epoch_and_seed_take_part() {
        let base = SampleDigest::new(0).of(Epoch(1), 2, 3, 4);
        assert_ne!(base, SampleDigest::new(1).of(Epoch(1), 2, 3, 4));
        assert_ne!(base, SampleDigest::new(0).of(Epoch(2), 2, 3, 4));
    }
}
