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

/// One count a rank, proportional to its weight by largest remainders; ties go to the lower rank.
/// A weight that is zero, negative or not finite gives none; without any usable weight the split is even.
pub fn split_weighted(num_chunks: u32, weights: &[f64]) -> Vec<u32> {
    let usable = |weight: f64| if weight.is_finite() && weight > 0.0 { weight } else { 0.0 };
    let largest = weights.iter().copied().map(usable).fold(0.0, f64::max);
    if largest == 0.0 {
        return split_even(num_chunks, weights.len() as u32);
    }
    // Scaled by the largest first, so that no sum overflows.
    let scaled: Vec<f64> = weights.iter().map(|&weight| usable(weight) / largest).collect();
    let total: f64 = scaled.iter().sum();
    let quotas: Vec<f64> = scaled.iter().map(|weight| f64::from(num_chunks) * (weight / total)).collect();

    let mut left = num_chunks;
    let mut counts = Vec::with_capacity(quotas.len());
    for quota in &quotas {
        let count = (quota.floor() as u32).min(left);
        left -= count;
        counts.push(count);
    }
    let mut ranks: Vec<usize> = (0..quotas.len()).filter(|&rank| scaled[rank] > 0.0).collect();
    let remainder = |rank: usize| quotas[rank] - quotas[rank].floor();
    ranks.sort_by(|&a, &b| remainder(b).total_cmp(&remainder(a)).then(a.cmp(&b)));
    for &rank in ranks.iter().cycle().take(left as usize) {
        counts[rank] += 1;
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
        fn a_weighted_split_tiles_the_batch(
            len in 0u64..5_000,
            chunk in 1u32..70,
            weights in proptest::collection::vec(
                prop_oneof![Just(0.0), 0.0..10.0, Just(1e300), Just(1e-300), Just(f64::NAN), Just(-1.0), Just(f64::INFINITY)],
                1..20,
            ),
        ) {
            let chunks = num_chunks(len, chunk);
            let counts = split_weighted(chunks, &weights);
            prop_assert_eq!(counts.len(), weights.len());
            tiles(SampleRange { start: 0, len }, chunk, &counts);
            if weights.iter().any(|&weight| weight > 0.0 && weight.is_finite()) {
                for (count, weight) in counts.iter().zip(&weights) {
                    prop_assert!(*weight > 0.0 && weight.is_finite() || *count == 0, "{:?} {:?}", counts, weights);
                }
            }
        }

        #[test]
        fn a_weighted_split_is_within_one_of_its_quota(
            chunks in 0u32..10_000,
            weights in proptest::collection::vec(0.1f64..10.0, 1..20),
        ) {
            let total: f64 = weights.iter().sum();
            for (count, weight) in split_weighted(chunks, &weights).into_iter().zip(&weights) {
                let quota = f64::from(chunks) * weight / total;
                prop_assert!((f64::from(count) - quota).abs() < 1.0 + 1e-6, "{} for a quota of {}", count, quota);
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
    fn weights_are_shares() {
        assert_eq!(split_weighted(8, &[1.0, 3.0]), [2, 6]);
        assert_eq!(split_weighted(8, &[1.0, 0.0, 1.0]), [4, 0, 4]);
        assert_eq!(split_weighted(8, &[1.0, 1.0, 1.0]), [3, 3, 2], "ties go to the lower rank");
        assert_eq!(split_weighted(8, &[0.0, f64::NAN]), [4, 4], "no usable weight: even");
        assert!(split_weighted(8, &[]).is_empty());
    }

    #[test]
    fn equal_weights_are_an_even_split() {
        for chunks in 0..50 {
            for world in 1..9 {
                assert_eq!(split_weighted(chunks, &vec![2.5; world as usize]), split_even(chunks, world));
            }
        }
    }
}
