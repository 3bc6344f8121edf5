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

    /// The draws that decide how `position` is mixed: others than those of its augmentation.
    pub fn for_mixing(seed: u64, epoch: Epoch, position: u64) -> Self {
        Self { key: mix::key(Purpose::Mixing, &[seed, epoch.0, position]), count: 0 }
    }

    /// Another sequence of the same position, which shares nothing with this one however much of it is used: so a new
    /// use of draws leaves the others as they are.
    pub fn branch(&self, number: u64) -> Self {
        Self { key: mix::absorb(self.key, number), count: 0 }
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn branches_share_nothing_and_do_not_depend_on_what_was_drawn() {
        let mut used = Draws::new(1, Epoch(2), 3);
        let branch = used.branch(1);
        used.next_u64();
        assert_eq!(used.branch(1), branch);
        let sequences = [Draws::new(1, Epoch(2), 3), branch, used.branch(2), Draws::new(1, Epoch(2), 4).branch(1)];
        let drawn: std::collections::BTreeSet<u64> =
            sequences.into_iter().flat_map(|mut draws| (0..1000).map(move |_| draws.next_u64())).collect();
        assert_eq!(drawn.len(), 4000);
    }

    /// If this fails, every augmented image differs from before: do it knowingly.
    #[test]
    fn draws_never_change_by_accident() {
        let mut draws = Draws::new(0, Epoch(1), 0);
        assert_eq!([draws.next_u64(), draws.next_u64(), draws.next_u64()], GOLDEN_A);
        let mut draws = Draws::new(42, Epoch(200), 49_999);
        assert_eq!([draws.next_u64(), draws.next_u64(), draws.next_u64()], GOLDEN_B);
        let below: Vec<u32> = (0..8).map(|_| draws.below(9)).collect();
        assert_eq!(below, GOLDEN_BELOW);
    }

    const GOLDEN_A: [u64; 3] = [15670669316933601354, 12665284764176381459, 8802338390481438730];
    const GOLDEN_B: [u64; 3] = [5877531329354615245, 10329159472964258678, 4546908680033727164];
    const GOLDEN_BELOW: [u32; 8] = [0, 8, 3, 2, 7, 5, 0, 7];

    proptest! {
        #[test]
        fn draws_stay_in_their_range(seed: u64, epoch: u64, position: u64, n in 1u32..) {
            let mut draws = Draws::new(seed, Epoch(epoch), position);
            prop_assert!(draws.below(n) < n);
            prop_assert!((0.0..1.0).contains(&draws.unit()));
        }

        #[test]
        fn the_same_key_gives_the_same_draws(seed: u64, epoch: u64, position: u64) {
            let four = |mut draws: Draws| [0; 4].map(|_| draws.next_u64());
            let base = four(Draws::new(seed, Epoch(epoch), position));
            prop_assert_eq!(base, four(Draws::new(seed, Epoch(epoch), position)));
            prop_assert_ne!(base, four(Draws::new(seed ^ 1, Epoch(epoch), position)));
            prop_assert_ne!(base, four(Draws::new(seed, Epoch(epoch ^ 1), position)));
            prop_assert_ne!(base, four(Draws::new(seed, Epoch(epoch), position ^ 1)));
        }
    }

    #[test]
    fn nothing_below_zero_is_drawn() {
        assert_eq!(Draws::new(0, Epoch(1), 0).below(0), 0);
    }

    /// First draws over many positions, and many draws at one position, both as an epoch of images uses them.
    #[test]
    fn draws_are_uniform_and_independent() {
        let num = 90_000u64;
        let mut cells = [[0f64; 9]; 9];
        let (mut heads, mut sum) = (0u64, 0.0);
        for position in 0..num {
            let mut draws = Draws::new(1, Epoch(1), position);
            let (x, y) = (draws.below(9), draws.below(9));
            cells[x as usize][y as usize] += 1.0;
            heads += u64::from(draws.coin());
            sum += draws.unit();
        }
        let expected = num as f64 / 81.0;
        let statistic: f64 = cells.iter().flatten().map(|count| (count - expected).powi(2) / expected).sum();
        assert!(statistic < 80.0 + 6.0 * 160f64.sqrt(), "shifts in x and y: {statistic}");
        assert!((heads as f64 - 45_000.0).abs() < 6.0 * 150.0, "{heads} of 90,000 flipped");
        assert!((sum / num as f64 - 0.5).abs() < 6.0 * 0.289 / 300.0, "mean {}", sum / num as f64);

        let mut draws = Draws::new(1, Epoch(1), 0);
        let ones: u32 = (0..10_000).map(|_| draws.next_u64().count_ones()).sum();
        assert!((f64::from(ones) - 320_000.0).abs() < 6.0 * 400.0, "{ones} ones of 640,000 bits");
    }
}
