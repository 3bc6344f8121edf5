//! The instruction set is part of a run: the same sums, but not the same bits, come from different vector widths.

/// From least to most. A run's set is its first worker's; a joiner that has more lowers itself, one that has less is
/// refused.
pub const LADDER: [&str; 5] = ["sse4.1", "avx2", "avx512", "avx512_bf16", "amx"];

/// Place in the ladder; `None` for a name that is not in it.
pub fn rung(name: &str) -> Option<usize> {
    LADDER.iter().position(|known| *known == name)
}
