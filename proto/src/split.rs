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
