//! Which sample stands at a position of an epoch: a keyed permutation with random access in O(1) memory.
//!
//! A balanced Feistel network permutes `[0, 2^(2w))`, the least such domain with room for all samples; a result
//! outside `[0, N)` is fed in again (cycle walking) until it falls inside, at most four times on average once N > 64.
//! 10¹² samples cost what 10⁴ do, and whoever asks gets the same answer.
//!
//! `data.order = "blocks"` keeps samples that lie together near each other (see [`SampleOrder::of`]).

mod blocks;

use crate::ids::Epoch;
use crate::mix::{self, Purpose};
use crate::recipe::{Recipe, Sampling};
use blocks::Blocks;

const ROUNDS: u64 = 8;

/// The order of the samples of every epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleOrder {
    seed: u64,
    num_samples: u64,
    sampling: Sampling,
    repeats: u64,
    half_bits: u32,
    blocks: Option<Blocks>,
    /// Epoch 1's first positions, over and over (0: no).
    repeated: u64,
}

impl SampleOrder {
    /// For `num_samples` ≤ 2⁶³ samples, any of which may follow any other.
    pub fn new(seed: u64, num_samples: u64, sampling: Sampling) -> Self {
        let half_bits = half_bits(num_samples);
        Self { seed, num_samples, sampling, repeats: 1, half_bits, blocks: None, repeated: 0 }
    }

    /// That of a recipe over its `num_samples` training samples. With `order = "blocks"` every epoch turns the samples
    /// round by a number that is drawn, so that what is left over of whole blocks is not always the same; draws the order
    /// of the blocks; and shuffles samples over windows of so many blocks, the last of which also has what was left over.
    /// With `repeats` each stands at so many positions in a row.
    pub fn of(recipe: &Recipe, num_samples: u64) -> Self {
        let order = Self::new(recipe.train.seed, num_samples, recipe.data.sampling);
        let repeats = u64::from(recipe.data.repeats.max(1));
        let order = Self { repeats, blocks: Blocks::of(&recipe.data), ..order };
        let repeated = recipe.data.overfit_batches.saturating_mul(recipe.train.batch);
        Self { repeated: repeated.min(order.num_positions()), ..order }
    }

    /// Number of samples.
    pub fn num_samples(&self) -> u64 {
        self.num_samples
    }

    /// Number of positions of an epoch: with repeated augmentation a multiple of the samples.
    pub fn num_positions(&self) -> u64 {
        self.num_samples.saturating_mul(self.repeats)
    }

    /// The place that decides what stands at `position` of `epoch`, sample and draws: itself, unless the recipe repeats its
    /// first batches (`data.overfit_batches`).
    pub fn place(&self, epoch: Epoch, position: u64) -> (Epoch, u64) {
        if self.repeated == 0 { (epoch, position) } else { (Epoch(1), position % self.repeated) }
    }

    /// The sample at `position < num_positions` of `epoch`. Always less than `num_samples` (0 when there are none).
    /// Repeats of a sample are neighbours, so that they are in one batch.
    pub fn sample(&self, epoch: Epoch, position: u64) -> u64 {
        if self.num_samples <= 1 {
            return 0;
        }
        debug_assert!(position < self.num_positions(), "position {position} of {}", self.num_positions());
        let (epoch, position) = self.place(epoch, position);
        let position = position / self.repeats;
        match (self.sampling, self.blocks) {
            (Sampling::Once, None) => self.permuted(epoch, position),
            (Sampling::Once, Some(blocks)) => blocks.sample((self.seed, epoch), self.num_samples, position),
            (Sampling::WithReplacement, _) => self.drawn(epoch, position),
        }
    }

    fn permuted(&self, epoch: Epoch, position: u64) -> u64 {
        let key = mix::key(Purpose::Order, &[self.seed, epoch.0]);
        permuted(key, (self.num_samples, self.half_bits), position)
    }

    fn drawn(&self, epoch: Epoch, position: u64) -> u64 {
        let mut hash = mix::key(Purpose::Replacement, &[self.seed, epoch.0, position]);
        mix::below(self.num_samples, || {
            hash = hash.wrapping_add(mix::GAMMA);
            mix::mix(hash)
        })
    }
}

/// Half of the bits of the domain in which `num` samples are permuted.
fn half_bits(num: u64) -> u32 {
    let bits = 64 - num.saturating_sub(1).leading_zeros();
    // At least 2⁶: on smaller domains a Feistel network reaches too few permutations.
    bits.div_ceil(2).max(3)
}

/// Where a keyed permutation of `[0, num)` puts `position`.
fn permuted(key: u64, (num, half_bits): (u64, u32), position: u64) -> u64 {
    let mask = (1u64 << half_bits) - 1;
    let mut at = position;
    loop {
        let (mut left, mut right) = ((at >> half_bits) & mask, at & mask);
        for round in 1..=ROUNDS {
            let keyed = mix::mix(key.wrapping_add(round.wrapping_mul(mix::GAMMA)) ^ mix::mix(right));
            (left, right) = (right, left ^ (keyed >> (64 - half_bits)));
        }
        at = (left << half_bits) | right;
        if at < num {
            return at;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn epoch_of(seed: u64, num: u64, epoch: u64) -> Vec<u64> {
        let order = SampleOrder::new(seed, num, Sampling::Once);
        (0..num).map(|position| order.sample(Epoch(epoch), position)).collect()
    }

    /// If this fails, every run takes another course than before: do it knowingly, and raise the manifest's format.
    #[test]
    fn the_order_never_changes_by_accident() {
        assert_eq!(epoch_of(0, 10, 1), GOLDEN_SMALL);
        let order = SampleOrder::new(7, 50_000, Sampling::Once);
        let some: Vec<u64> = [0, 1, 2, 49_999].map(|at| order.sample(Epoch(3), at)).into();
        assert_eq!(some, GOLDEN_CIFAR);
        let order = SampleOrder::new(7, 1 << 63, Sampling::Once);
        let some: Vec<u64> = [0, 1, (1 << 63) - 1].map(|at| order.sample(Epoch(3), at)).into();
        assert_eq!(some, GOLDEN_HUGE);
        let order = SampleOrder::new(7, 50_000, Sampling::WithReplacement);
        let some: Vec<u64> = [0, 1, 2, 49_999].map(|at| order.sample(Epoch(3), at)).into();
        assert_eq!(some, GOLDEN_DRAWN);
    }

    const GOLDEN_SMALL: [u64; 10] = [3, 6, 0, 1, 5, 2, 9, 8, 7, 4];
    const GOLDEN_CIFAR: [u64; 4] = [13827, 21490, 35473, 6674];
    const GOLDEN_HUGE: [u64; 3] = [3080534923810600172, 8620369941448410879, 5177993470974701476];
    const GOLDEN_DRAWN: [u64; 4] = [2653, 21921, 18404, 41204];

    #[test]
    fn overfitting_repeats_the_first_batches_in_every_epoch() {
        let order = |batches: &str| {
            let sets = [batches, "train.batch=16"].map(str::to_owned);
            SampleOrder::of(&Recipe::load("demo", &sets).unwrap(), 100)
        };
        let plain = SampleOrder::new(0, 100, Sampling::Once);
        let first: Vec<u64> = (0..32).map(|position| plain.sample(Epoch(1), position)).collect();
        let two = order("data.overfit_batches=2");
        for (epoch, start) in [(1, 0), (1, 32), (1, 64), (2, 0), (9, 64)] {
            let seen: Vec<u64> = (start..start + 32).map(|position| two.sample(Epoch(epoch), position)).collect();
            assert_eq!(seen, first, "epoch {epoch}, from {start}");
        }
        assert_eq!(two.place(Epoch(3), 33), (Epoch(1), 1));
        // More than there are: the whole epoch 1, each sample once.
        let all = order("data.overfit_batches=50");
        assert!((0..100).all(|position| all.sample(Epoch(4), position) == plain.sample(Epoch(1), position)));
        assert_eq!(order("data.overfit_batches=0"), plain);
    }

    #[test]
    fn every_small_number_of_samples_is_permuted() {
        for num in 0..300 {
            let mut seen = epoch_of(num, num, 1);
            seen.sort_unstable();
            assert_eq!(seen, (0..num).collect::<Vec<_>>(), "{num} samples");
        }
    }

    proptest! {
        #[test]
        fn every_sample_stands_at_one_position(seed: u64, num in 1u64..5_000, epoch in 0u64..1_000) {
            let mut seen = epoch_of(seed, num, epoch);
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..num).collect::<Vec<_>>());
        }

        /// A permutation is injective: with up to 2⁶³ samples only pairs can be looked at.
        #[test]
        fn no_two_positions_hold_one_sample(seed: u64, num in 2u64..=1 << 63, epoch: u64, a: u64, b: u64) {
            let order = SampleOrder::new(seed, num, Sampling::Once);
            let (a, b) = (a % num, b % num);
            let (x, y) = (order.sample(Epoch(epoch), a), order.sample(Epoch(epoch), b));
            prop_assert!(x < num && y < num);
            prop_assert_eq!(a == b, x == y);
        }

        #[test]
        fn draws_with_replacement_stay_inside(seed: u64, num in 1u64..=1 << 63, epoch: u64, at: u64) {
            let order = SampleOrder::new(seed, num, Sampling::WithReplacement);
            prop_assert!(order.sample(Epoch(epoch), at % num) < num);
        }
    }

    #[test]
    fn a_repeated_sample_stands_at_positions_in_a_row_and_the_order_is_the_same() {
        let mut recipe = Recipe::default();
        (recipe.train.seed, recipe.data.repeats) = (4, 3);
        let order = SampleOrder::of(&recipe, 50);
        assert_eq!((order.num_samples(), order.num_positions()), (50, 150));
        let repeated: Vec<u64> = (0..150).map(|position| order.sample(Epoch(2), position)).collect();
        let plain = epoch_of(4, 50, 2);
        for (position, sample) in repeated.into_iter().enumerate() {
            assert_eq!(sample, plain[position / 3]);
        }
    }

    #[test]
    fn another_seed_or_epoch_is_another_order() {
        let base = epoch_of(1, 1_000, 1);
        for other in [epoch_of(2, 1_000, 1), epoch_of(1, 1_000, 2)] {
            let same = base.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert!(same < 10, "{same} of 1,000 stand where they stood");
        }
    }

    /// Pearson's statistic of counts that should be equal.
    fn chi_squared(counts: &[u64]) -> f64 {
        let expected = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
        counts.iter().map(|&count| (count as f64 - expected).powi(2) / expected).sum()
    }

    /// Each statistic has k − 1 degrees of freedom; the bound is its mean plus six deviations.
    fn bound(counts: &[u64]) -> f64 {
        let freedom = counts.len() as f64 - 1.0;
        freedom + 6.0 * (2.0 * freedom).sqrt()
    }

    #[test]
    fn every_sample_comes_to_every_place_equally_often() {
        for num in [5u64, 7, 10, 33] {
            let mut counts = vec![0; (num * num) as usize];
            for epoch in 0..20_000 {
                for (position, sample) in epoch_of(3, num, epoch).into_iter().enumerate() {
                    counts[position * num as usize + sample as usize] += 1;
                }
            }
            assert!(chi_squared(&counts) < bound(&counts), "{num} samples: {}", chi_squared(&counts));
        }
    }

    #[test]
    fn all_orders_of_five_are_equally_likely() {
        let mut counts = std::collections::BTreeMap::new();
        for epoch in 0..60_000 {
            *counts.entry(epoch_of(11, 5, epoch)).or_insert(0u64) += 1;
        }
        let counts: Vec<u64> = counts.into_values().collect();
        assert_eq!(counts.len(), 120, "5! orders");
        assert!(chi_squared(&counts) < bound(&counts), "{}", chi_squared(&counts));
    }

    #[test]
    fn neighbours_do_not_stay_together() {
        let order = epoch_of(5, 50_000, 1);
        let distance = |pair: &[u64]| pair[0].abs_diff(pair[1]);
        let near = order.windows(2).filter(|pair| distance(pair) <= 10).count();
        // Expected: 49,999 pairs · 20 / 50,000, so about 20.
        assert!(near < 60, "{near} neighbours are within ten of one another");
        let mean = order.windows(2).map(|pair| distance(pair) as f64).sum::<f64>() / 49_999.0;
        assert!((mean - 50_000.0 / 3.0).abs() < 300.0, "mean distance {mean}");
    }

    #[test]
    fn draws_with_replacement_are_uniform() {
        let order = SampleOrder::new(0, 100, Sampling::WithReplacement);
        let mut counts = vec![0; 100];
        for epoch in 0..2_000 {
            for position in 0..100 {
                counts[order.sample(Epoch(epoch), position) as usize] += 1;
            }
        }
        assert!(chi_squared(&counts) < bound(&counts), "{}", chi_squared(&counts));
    }
}
