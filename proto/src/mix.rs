//! Keyed 64-bit hashing, on which order, draws and digest stand. Only wrapping integer arithmetic: the same on every
//! machine, for ever (tests hold golden values).

/// An odd constant near 2⁶⁴ / φ.
pub(crate) const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's finaliser (Steele et al. 2014; constants by Stafford): a bijection in which every input bit changes
/// every output bit with probability near one half.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Takes one more word into a running hash. Not commutative: `absorb(absorb(h, a), b)` differs from the other order.
pub(crate) fn absorb(hash: u64, word: u64) -> u64 {
    mix(mix(hash.wrapping_add(GAMMA)) ^ word.wrapping_mul(GAMMA).rotate_left(32))
}

/// A key from a purpose and words. Different purposes share nothing.
pub(crate) fn key(purpose: Purpose, words: &[u64]) -> u64 {
    words.iter().fold(mix(purpose as u64), |hash, &word| absorb(hash, word))
}

/// What a key is for.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    Order = 1,
    Replacement = 2,
    Draws = 3,
    Digest = 4,
    Mixing = 5,
    Blocks = 16,
    BlockWindow = 17,
    BlockTurn = 18,
}

/// The high word of `random · n`, unbiased by rejection: uniform in `[0, n)` if `random` is uniform in 64 bits.
/// `next` gives further words. `n` must not be zero.
pub(crate) fn below(n: u64, mut next: impl FnMut() -> u64) -> u64 {
    let mut product = u128::from(next()) * u128::from(n);
    if (product as u64) < n {
        let least = n.wrapping_neg() % n;
        while (product as u64) < least {
            product = u128::from(next()) * u128::from(n);
        }
    }
    (product >> 64) as u64
}
