//! How a global batch splits: into chunks of a fixed length, and chunks into one contiguous range a rank.
//!
//! ```text
//! batch      │ 0      │ 1      │ 2      │ 3      │ 4    │     chunks; the last may be short
//! shards     │ rank 0                   │ rank 2        │     counts 3, 0, 2: rank 1 has none and still takes part
//! ```

use std::ops::Range;

use crate::ids::SampleRange;

/// Number of chunks of a batch of `len` positions; `chunk` ≥ 1 (0 counts as 1).
pub fn num_chunks(len: u64, chunk: u32) -> u32 {
    u32::try_from(len.div_ceil(u64::from(chunk.max(1)))).unwrap_or(u32::MAX)
}

/// One count a rank, that differ by at most one; lower ranks have the more. More ranks than chunks leave some empty.
pub fn split_even(num_chunks: u32, world: u32) -> Vec<u32> {
    (0..world).map(|rank| num_chunks / world + u32::from(rank < num_chunks % world)).collect()
}

/// One count a rank such that the rank with the longest work is done as soon as can be: every rank first has a chunk, as
/// far as there are chunks, then each goes to the rank that would be done with it first; ties go to the lower rank.
/// `costs` are what a chunk costs each rank, in any unit, 0 counting as 1; nobody has more than `most`, unless all have.
pub fn split_by_cost(num_chunks: u32, costs: &[u64], most: u32) -> Vec<u32> {
    let world = costs.len() as u32;
    if num_chunks < world || u64::from(most) * u64::from(world) < u64::from(num_chunks) {
        return split_even(num_chunks, world);
    }
    let mut counts = vec![1; costs.len()];
    for _ in world..num_chunks {
        let done = |rank: &usize| u128::from(costs[*rank].max(1)) * u128::from(counts[*rank] + 1);
        let first = (0..costs.len()).filter(|rank| counts[*rank] < most.max(1)).min_by_key(done);
        if let Some(rank) = first {
            counts[rank] += 1;
        }
    }
    counts
}

/// The chunks of each rank, one after another.
pub fn ranges(counts: &[u32]) -> Vec<Range<u32>> {
    let mut at = 0;
    counts
        .iter()
        .map(|&count| {
            let start = at;
            at += count;
            start..at
        })
        .collect()
}

/// Positions of one chunk; empty past the end of the batch.
pub fn chunk_positions(batch: SampleRange, chunk: u32, index: u32) -> SampleRange {
    shard_positions(batch, chunk, index..index.saturating_add(1))
}

/// Positions of consecutive chunks; clipped at the end of the batch.
pub fn shard_positions(batch: SampleRange, chunk: u32, chunks: Range<u32>) -> SampleRange {
    let clip = |index: u32| (u64::from(index) * u64::from(chunk.max(1))).min(batch.len);
    let (from, to) = (clip(chunks.start), clip(chunks.end));
    SampleRange { start: batch.start + from, len: to.saturating_sub(from) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Shards tile the batch, in order, whole chunks each but for the last.
    fn tiles(batch: SampleRange, chunk: u32, counts: &[u32]) {
        let chunks = num_chunks(batch.len, chunk);
        let mut next_chunk = 0;
        let mut next = batch.start;
        for range in ranges(counts) {
            assert_eq!(range.start, next_chunk);
            let shard = shard_positions(batch, chunk, range.clone());
            assert_eq!(shard.start, next);
            assert_eq!(shard.is_empty(), range.is_empty());
            let mut within = shard.start;
            for index in range.clone() {
                let positions = chunk_positions(batch, chunk, index);
                assert_eq!(positions.start, within);
                assert!(positions.len == u64::from(chunk) || index + 1 == chunks && positions.len > 0);
                within = positions.end();
            }
            assert_eq!(within, shard.end());
            next_chunk = range.end;
            next = shard.end();
        }
        assert_eq!(next_chunk, chunks);
        assert_eq!(next, batch.end());
    }

    proptest! {
        #[test]
        fn an_even_split_tiles_the_batch(start in 0u64..1 << 40, len in 0u64..5_000, chunk in 1u32..70, world in 1u32..40) {
            let counts = split_even(num_chunks(len, chunk), world);
            prop_assert_eq!(counts.len(), world as usize);
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            prop_assert!(most - least <= 1);
            tiles(SampleRange { start, len }, chunk, &counts);
        }

        #[test]
        fn a_split_by_cost_tiles_the_batch_and_leaves_nobody_idle(
            len in 0u64..5_000,
            chunk in 1u32..70,
            costs in proptest::collection::vec(prop_oneof![Just(0), Just(u64::MAX), 1u64..1_000_000], 1..20),
            most in prop_oneof![Just(u32::MAX), 0u32..50],
        ) {
            let chunks = num_chunks(len, chunk);
            let counts = split_by_cost(chunks, &costs, most);
            prop_assert_eq!(counts.len(), costs.len());
            tiles(SampleRange { start: 0, len }, chunk, &counts);
            prop_assert!(counts.iter().all(|count| *count > 0) || chunks < costs.len() as u32);
            if u64::from(most) * costs.len() as u64 >= u64::from(chunks) && chunks >= costs.len() as u32 {
                prop_assert!(counts.iter().all(|count| *count <= most.max(1)), "{counts:?} of at most {most}");
            }
        }

        #[test]
        fn no_single_chunk_moved_makes_a_split_by_cost_shorter(
            extra in 0u32..200,
            costs in proptest::collection::vec(1u64..1_000, 2..10),
        ) {
            let counts = split_by_cost(costs.len() as u32 + extra, &costs, u32::MAX);
            let longest = |counts: &[u32]| counts.iter().zip(&costs).map(|(n, cost)| u64::from(*n) * cost).max();
            for from in 0..costs.len() {
                for to in 0..costs.len() {
                    let mut moved = counts.clone();
                    if from != to && moved[from] > 1 {
                        moved[from] -= 1;
                        moved[to] += 1;
                        prop_assert!(longest(&moved) >= longest(&counts), "{counts:?} {moved:?} {costs:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn more_ranks_than_chunks_leave_empty_shards() {
        assert_eq!(split_even(3, 5), [1, 1, 1, 0, 0]);
        assert_eq!(split_even(0, 2), [0, 0]);
        assert!(split_even(7, 0).is_empty());
        let batch = SampleRange { start: 100, len: 40 };
        let shard = shard_positions(batch, 16, 3..3);
        assert_eq!(shard, SampleRange { start: 140, len: 0 });
        assert_eq!(chunk_positions(batch, 16, 2), SampleRange { start: 132, len: 8 });
        assert_eq!(chunk_positions(batch, 16, 3), SampleRange { start: 140, len: 0 });
    }

    #[test]
    fn whoever_is_three_times_slower_has_a_third() {
        assert_eq!(split_by_cost(8, &[10, 30], u32::MAX), [6, 2]);
        assert_eq!(split_by_cost(8, &[10, 30], 5), [5, 3], "what the first cannot hold");
        assert_eq!(split_by_cost(8, &[10, 30], 3), [4, 4], "nobody could hold it: even");
        assert_eq!(split_by_cost(2, &[1, 1, 100], u32::MAX), [1, 1, 0], "too few for all: even");
    }

    #[test]
    fn equal_costs_are_an_even_split() {
        for chunks in 0..50 {
            for world in 1..9 {
                assert_eq!(split_by_cost(chunks, &vec![7; world as usize], u32::MAX), split_even(chunks, world));
            }
        }
    }
}
