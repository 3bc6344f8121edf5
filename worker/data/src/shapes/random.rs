//! The generator of the built-in set: SplitMix64 (Steele, Lea, Flood 2014). Apart from the run's draws, so that the set
//! never changes with them.

/// Any number; another makes another set.
const DATA_SEED: u64 = 0x6c6f_636b_7374_6570;

/// Uniform integers, a stream for each image.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(stream: u64, index: u64) -> Self {
        Self(mix(mix(DATA_SEED ^ stream) ^ index))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// 0 … n − 1.
    pub(super) fn below(&mut self, n: u32) -> u32 {
        (((self.next() >> 32) * u64::from(n)) >> 32) as u32
    }

    /// `low` … `high`, both included.
    pub(super) fn between(&mut self, low: i32, high: i32) -> i32 {
        low + self.below((high - low + 1) as u32) as i32
    }

    /// −2·`strength` … 2·`strength`, the sum of two uniform ones, from one draw.
    pub(super) fn triangular(&mut self, strength: i32) -> i32 {
        let (draw, width) = (self.next(), 2 * strength as u64 + 1);
        let (one, other) = (((draw >> 32) * width) >> 32, ((draw & 0xffff_ffff) * width) >> 32);
        (one + other) as i32 - 2 * strength
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
