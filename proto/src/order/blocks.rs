//! `data.order = "blocks"`: samples that lie together stay near each other.

use super::{half_bits, permuted};
use crate::ids::Epoch;
use crate::mix::{self, Purpose};
use crate::recipe::{Data, Order};

/// Samples a block; blocks that are shuffled together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    size: u64,
    window: u64,
}

impl Blocks {
    /// If a recipe asks for them.
    pub(super) fn of(data: &Data) -> Option<Self> {
        (data.order == Order::Blocks).then_some(Self { size: data.block.max(1), window: data.block_window.max(1) })
    }

    /// The sample at a position of the epoch's order of `num` samples.
    pub(super) fn sample(self, (seed, epoch): (u64, Epoch), num: u64, position: u64) -> u64 {
        let keyed = |purpose, word: u64| mix::key(purpose, &[seed, epoch.0, word]);
        let shuffled = |key, num: u64, at: u64| permuted(key, (num, half_bits(num)), at);
        let num_blocks = num / self.size;
        let window = self.window.min(num_blocks.max(1));
        let num_windows = (num_blocks / window).max(1);
        let at = (position / (window * self.size)).min(num_windows - 1);
        let start = at * window * self.size;
        let end = if at + 1 == num_windows { num } else { start + window * self.size };
        let slot = start + shuffled(keyed(Purpose::BlockWindow, at), end - start, position - start);
        let (block, offset) = (slot / self.size, slot % self.size);
        let sample = match block < num_blocks {
            true => shuffled(keyed(Purpose::Blocks, 0), num_blocks, block) * self.size + offset,
            false => slot,
        };
        let mut turn = keyed(Purpose::BlockTurn, 0);
        let turn = mix::below(num, || {
            turn = turn.wrapping_add(mix::GAMMA);
            mix::mix(turn)
        });
        // both are below `num` ≤ 2⁶³
        (sample + turn) % num
    }
}

#[cfg(test)]
mod tests {
    use super::super::SampleOrder;
    use super::*;
    use crate::recipe::Recipe;
    use proptest::prelude::*;

    fn in_blocks(seed: u64, num: u64, block: u64, block_window: u64, epoch: u64) -> Vec<u64> {
        let mut recipe = Recipe::default();
        (recipe.train.seed, recipe.data.order) = (seed, Order::Blocks);
        (recipe.data.block, recipe.data.block_window) = (block, block_window);
        recipe.check().unwrap();
        let order = SampleOrder::of(&recipe, num);
        (0..num).map(|position| order.sample(Epoch(epoch), position)).collect()
    }

    proptest! {
        #[test]
        fn with_blocks_too_every_sample_stands_at_one_position(
            seed in 0..=i64::MAX as u64, num in 1u64..3_000, block in 1u64..400, window in 1u64..40, epoch in 0u64..1_000,
        ) {
            let mut seen = in_blocks(seed, num, block, window, epoch);
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..num).collect::<Vec<_>>());
        }
    }

    /// If this fails, runs with blocks take another course than before.
    #[test]
    fn the_order_of_blocks_never_changes_by_accident() {
        assert_eq!(in_blocks(7, 10, 3, 2, 1), GOLDEN_BLOCKS);
    }

    const GOLDEN_BLOCKS: [u64; 10] = [5, 8, 6, 1, 3, 9, 7, 4, 0, 2];

    #[test]
    fn a_window_reads_as_many_stretches_as_it_has_blocks() {
        // 100 blocks of 50 and 7 samples more; windows of 4 blocks
        let (num, block, window) = (5_007, 50, 4);
        let order = in_blocks(3, num, block, window, 2);
        for part in order.chunks((block * window) as usize).take(24) {
            let mut samples = part.to_vec();
            samples.sort_unstable();
            let stretches = 1 + samples.windows(2).filter(|pair| pair[1] != pair[0] + 1).count();
            // one more where the end of the set lies in a block
            assert!(stretches <= window as usize + 1, "{stretches}");
            let in_place = part.iter().zip(&samples).filter(|(a, b)| a == b).count();
            assert!(in_place < 20, "{in_place} of 200 are not shuffled");
        }
        // every stretch comes early in some epochs and late in others, what is left over of blocks too
        let firsts = (0..200).map(|epoch| in_blocks(3, num, block, window, epoch)[0]).collect::<Vec<_>>();
        let mut counts = [0_u64; 10];
        firsts.iter().for_each(|first| counts[(first * 10 / num) as usize] += 1);
        // 20 expected in each tenth, with a deviation of 4.2
        assert!(counts.iter().all(|count| (3..=37).contains(count)), "{counts:?}");
        let lasts: std::collections::BTreeSet<_> =
            (0..50).map(|epoch| in_blocks(3, num, block, window, epoch)[num as usize - 1]).collect();
        assert!(lasts.len() > 40);
    }

    #[test]
    fn one_window_over_all_is_a_full_shuffle_and_other_seeds_are_others() {
        let base = in_blocks(1, 1_000, 10, 1_000, 1);
        let distance = |pair: &[u64]| pair[0].abs_diff(pair[1]) as f64;
        let mean = base.windows(2).map(distance).sum::<f64>() / 999.0;
        assert!((mean - 333.0).abs() < 40.0, "{mean}");
        for other in [in_blocks(2, 1_000, 10, 1_000, 1), in_blocks(1, 1_000, 10, 1_000, 2)] {
            assert!(base.iter().zip(&other).filter(|(a, b)| a == b).count() < 10);
        }
    }
}
