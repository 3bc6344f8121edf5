//! What every operation on host slices begins with: who does what, and the payload, where it is small.
//!
//! ```text
//! magic │ generation │ number │ part │ index │ step │ hash of the name │ shape │ length │ checksum │ name │ payload
//! ```
//! After an abort elsewhere NCCL may complete with junk. No junk has the checksum and the number that are expected.

use lockstep_collective::Op;
use lockstep_proto::ids::Generation;

use crate::ring::index;

/// Bytes of a frame: its latency is that of an empty one.
pub(crate) const FRAME: usize = 4096;
const HEADER: usize = 128;
/// Bytes that travel in a frame.
pub(crate) const INLINE: usize = FRAME - HEADER;
const NAME: usize = 32;
const MAGIC: u64 = u64::from_le_bytes(*b"LSNCCL1\0");

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    generation: u64,
    /// Of the operation on its lane.
    number: u64,
    /// 0 before an operation, 1 behind it.
    part: u32,
    index: u32,
    step: u64,
    lane: u64,
    hash: u64,
    pub(crate) shape: u64,
    /// Bytes of the whole payload; what fits is in the frame.
    pub(crate) len: u64,
    name: [u8; NAME],
}

impl Frame {
    pub(crate) fn new(generation: Generation, op: &Op, number: u64, shape: u64) -> Self {
        let mut name = [0; NAME];
        let len = op.name.len().min(NAME);
        name[..len].copy_from_slice(&op.name.as_bytes()[..len]);
        Self {
            generation: generation.0,
            number,
            part: 0,
            index: op.index,
            step: op.step.0,
            lane: index(op.lane) as u64,
            hash: checksum(&[], op.name.as_bytes()),
            shape,
            len: 0,
            name,
        }
    }

    /// The one behind the operation.
    pub(crate) fn behind(self) -> Self {
        Self { part: 1, len: 0, ..self }
    }

    /// With a payload of as many bytes.
    pub(crate) fn with_len(self, len: usize) -> Self {
        Self { len: len as u64, ..self }
    }

    /// Whether both mean the same turn of the same world: else the other is junk, or of another time.
    pub(crate) fn is_in_turn(&self, other: &Frame) -> bool {
        (self.generation, self.number, self.part, self.lane) == (other.generation, other.number, other.part, other.lane)
    }

    /// Whether both are the same operation, whatever its shape.
    pub(crate) fn is_same_operation(&self, other: &Frame) -> bool {
        (self.index, self.step, self.hash) == (other.index, other.step, other.hash)
    }

    /// For people.
    pub(crate) fn describe(&self) -> String {
        let len = self.name.iter().position(|&byte| byte == 0).unwrap_or(NAME);
        let name = String::from_utf8_lossy(&self.name[..len]);
        let lane = if self.lane == 0 { "norm" } else { "buckets" };
        format!("{name} {} of step {} ({lane} lane, number {})", self.index, self.step, self.number)
    }

    fn words(&self) -> [u64; 9] {
        let both = u64::from(self.part) << 32 | u64::from(self.index);
        [MAGIC, self.generation, self.number, both, self.step, self.lane, self.hash, self.shape, self.len]
    }

    /// Writes the frame, with `payload` of at most [`INLINE`] bytes.
    pub(crate) fn write(&self, payload: &[u8], bytes: &mut [u8]) {
        let words = self.words();
        for (at, word) in words.iter().chain([&self.checksum(payload)]).enumerate() {
            bytes[at * 8..][..8].copy_from_slice(&word.to_le_bytes());
        }
        bytes[80..80 + NAME].copy_from_slice(&self.name);
        bytes[HEADER..][..payload.len()].copy_from_slice(payload);
    }

    /// Reads one; `None` if it is junk. The payload is what of it fits.
    pub(crate) fn read(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let word =
            |at: usize| bytes[at * 8..at * 8 + 8].iter().rev().fold(0u64, |word, &byte| word << 8 | u64::from(byte));
        let mut name = [0; NAME];
        name.copy_from_slice(&bytes[80..80 + NAME]);
        let frame = Self {
            generation: word(1),
            number: word(2),
            part: (word(3) >> 32) as u32,
            index: word(3) as u32,
            step: word(4),
            lane: word(5),
            hash: word(6),
            shape: word(7),
            len: word(8),
            name,
        };
        let inline = if frame.len <= INLINE as u64 { frame.len as usize } else { 0 };
        let payload = &bytes[HEADER..][..inline];
        (word(0) == MAGIC && word(9) == frame.checksum(payload)).then_some((frame, payload))
    }

    fn checksum(&self, payload: &[u8]) -> u64 {
        checksum(&self.words(), payload)
    }
}

/// Not against forgery: against memory that nobody wrote. One word that differs always shows.
fn checksum(words: &[u64], bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ bytes.len() as u64;
    let mut add = |word: u64| {
        hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 32;
    };
    words.iter().for_each(|&word| add(word));
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        add(u64::from_le_bytes(word));
    }
    hash
}

/// FNV-1a over words.
pub(crate) fn shape(words: &[u64]) -> u64 {
    words
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_collective::Lane;
    use lockstep_proto::ids::Step;

    const OP: Op = Op { lane: Lane::Norm, step: Step(7), name: "layer", index: 3 };

    #[test]
    fn a_frame_comes_back_and_a_flipped_bit_anywhere_is_junk() {
        let frame = Frame::new(Generation(9), &OP, 204, 77).with_len(5);
        let mut bytes = vec![0xa5; FRAME];
        frame.write(b"hello", &mut bytes);
        assert_eq!(Frame::read(&bytes), Some((frame, &b"hello"[..])));
        assert_eq!(frame.describe(), "layer 3 of step 7 (norm lane, number 204)");
        for at in (0..80).chain(HEADER..HEADER + 5) {
            bytes[at] ^= 1;
            assert_eq!(Frame::read(&bytes), None, "byte {at}");
            bytes[at] ^= 1;
        }
        assert!(Frame::read(&[0; FRAME]).is_none() && Frame::read(&[0x3f; FRAME]).is_none());
    }

    #[test]
    fn what_was_valid_before_is_out_of_turn() {
        let frame = Frame::new(Generation(9), &OP, 204, 77);
        for other in [
            Frame::new(Generation(8), &OP, 204, 77),
            Frame::new(Generation(9), &OP, 203, 77),
            Frame::new(Generation(9), &Op { lane: Lane::Buckets, ..OP }, 204, 77),
            frame.behind(),
        ] {
            assert!(!frame.is_in_turn(&other), "{other:?}");
        }
        let renamed = Frame::new(Generation(9), &Op { name: "layers", ..OP }, 204, 77);
        assert!(frame.is_in_turn(&renamed) && !frame.is_same_operation(&renamed));
    }
}
