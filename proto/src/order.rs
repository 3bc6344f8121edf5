//! Which sample stands at a position of an epoch: a keyed permutation with random access in O(1) memory.
//!
//! A balanced Feistel network permutes `[0, 2^(2w))`, the least such domain with room for all samples; a result
//! outside `[0, N)` is fed in again (cycle walking) until it falls inside, at most four times on average once N > 64.
//! 10¹² samples cost what 10⁴ do, and whoever asks gets the same answer.

use crate::ids::Epoch;
use crate::mix::{self, Purpose};
use crate::recipe::Sampling;

const ROUNDS: u64 = 8;

/// The order of the samples of every epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleOrder {
    seed: u64,
    num_samples: u64,
    sampling: Sampling,
    half_bits: u32,
}

impl SampleOrder {
    /// For `num_samples` ≤ 2⁶³ samples.
    pub fn new(seed: u64, num_samples: u64, sampling: Sampling) -> Self {
        let bits = 64 - num_samples.saturating_sub(1).leading_zeros();
        // At least 2⁶: on smaller domains a Feistel network reaches too few permutations.
        let half_bits = bits.div_ceil(2).max(3);
        Self { seed, num_samples, sampling, half_bits }
    }

    /// Number of samples, and of positions.
    pub fn num_samples(&self) -> u64 {
        self.num_samples
    }

    /// The sample at `position < num_samples` of `epoch`. Always less than `num_samples` (0 when there are none).
    pub fn sample(&self, epoch: Epoch, position: u64) -> u64 {
        if self.num_samples <= 1 {
            return 0;
        }
        debug_assert!(position < self.num_samples, "position {position} of {}", self.num_samples);
        match self.sampling {
            Sampling::Once => self.permuted(epoch, position),
            Sampling::WithReplacement => self.drawn(epoch, position),
        }
    }

    fn permuted(&self, epoch: Epoch, position: u64) -> u64 {
        let key = mix::key(Purpose::Order, &[self.seed, epoch.0]);
        let mask = (1u64 << self.half_bits) - 1;
        let mut at = position;
        loop {
            let (mut left, mut right) = ((at >> self.half_bits) & mask, at & mask);
            for round in 1..=ROUNDS {
                let keyed = mix::mix(key.wrapping_add(round.wrapping_mul(mix::GAMMA)) ^ mix::mix(right));
                (left, right) = (right, left ^ (keyed >> (64 - self.half_bits)));
            }
            at = (left << self.half_bits) | right;
            if at < self.num_samples {
                return at;
            }
        }
    }

    fn drawn(&self, epoch: Epoch, position: u64) -> u64 {
        let mut hash = mix::key(Purpose::Replacement, &[self.seed, epoch.0, position]);
        mix::below(self.num_samples, || {
            hash = hash.wrapping_add(mix::GAMMA);
            mix::mix(hash)
        })
    }
}
