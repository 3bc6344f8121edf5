//! Random draws for augmentation, keyed by (seed, epoch, position): it does not matter who loads a sample, or when.

use crate::ids::Epoch;
use crate::mix::{self, GAMMA, Purpose};

/// The draws of one position, in the order in which they are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draws {
    key: u64,
    count: u64,
}

impl Draws {
    /// The draws of `position` in `epoch`.
    pub fn new(seed: u64, epoch: Epoch, position: u64) -> Self {
        Self { key: mix::key(Purpose::Draws, &[seed, epoch.0, position]), count: 0 }
    }

    /// 64 random bits: a hash of the key and the number of the draw.
    pub fn next_u64(&mut self) -> u64 {
        self.count += 1;
        mix::mix(self.key ^ mix::mix(self.count.wrapping_mul(GAMMA)))
    }

    /// Uniform in `[0, n)`, unbiased; 0 for `n = 0`.
    pub fn below(&mut self, n: u32) -> u32 {
        if n == 0 {
            return 0;
        }
        // invariant: the result is less than n, which is 32 bits wide
        mix::below(u64::from(n), || self.next_u64()) as u32
    }

    /// True with probability one half.
    pub fn coin(&mut self) -> bool {
        self.next_u64() >> 63 == 1
    }

    /// Uniform in `[0, 1)`, a multiple of 2⁻⁵³.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}
