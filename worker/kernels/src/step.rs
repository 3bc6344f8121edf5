//! What a step is told from outside, as `prelude.cuh` has it.

/// The words of `struct Step`. The host writes them into device memory before each step, so that a captured graph reads
/// another learning rate at every replay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepWords {
    /// This rank's word of the vote, never 0: of generation, step and rank, so that no old sum fits.
    pub nonce: u64,
    /// The sum of all ranks' words, modulo 2⁶⁴.
    pub expected: u64,
    /// The step.
    pub number: u64,
    /// Samples of the global batch.
    pub samples: u64,
    /// Momentum of the running statistics.
    pub bn_momentum: f64,
    /// Learning rate, rounded once as libtorch does.
    pub lr: f64,
    /// Of the momentum; the first step has none.
    pub dampening: f64,
}

impl StepWords {
    /// Bytes in device memory.
    pub const BYTES: u64 = 48;
    /// Where the samples of the global batch stand, a double: the count that BatchNorm over the whole batch takes.
    pub const SAMPLES_AT: u64 = 24;

    /// As the device reads them.
    pub fn to_bytes(&self) -> [u8; Self::BYTES as usize] {
        let mut out = [0; Self::BYTES as usize];
        let doubles = [self.samples as f64, self.bn_momentum].map(f64::to_bits);
        let words = [self.nonce, self.expected, self.number, doubles[0], doubles[1]];
        for (place, word) in out.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        out[40..44].copy_from_slice(&(self.lr as f32).to_ne_bytes());
        out[44..].copy_from_slice(&((1.0 - self.dampening) as f32).to_ne_bytes());
        out
    }
}
