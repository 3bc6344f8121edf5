//! What goes before every payload on a data connection: enough to tell that both sides mean the same.

use lockstep_proto::ids::Step;

use crate::collective::Op;

/// Bytes of a header.
pub(crate) const HEADER: usize = 96;
const MAGIC: [u8; 4] = *b"LSC1";
const NAME: usize = 32;

/// What a payload is, within one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// First hand: a partial sum, a gathered message, bytes from the root.
    Part = 1,
    /// Second hand: a finished sum, forwarded bytes.
    Result = 2,
}

/// One payload of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    /// Number among those of its kind between two ranks, from 0.
    pub(crate) part: u32,
    /// Bytes.
    pub(crate) len: usize,
}

/// An operation as it goes over the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) lane: u8,
    pub(crate) generation: u64,
    /// Number of the operation on its lane, from 1.
    pub(crate) seq: u64,
    pub(crate) step: u64,
    pub(crate) index: u32,
    /// Hash of the whole name; `name` may be cut.
    hash: u64,
    /// Digest of kind, length, layout and root.
    pub(crate) shape: u64,
    name: [u8; NAME],
}

impl Call {
    pub(crate) fn new(op: &Op, generation: u64, seq: u64, shape: u64) -> Self {
        let mut name = [0; NAME];
        let len = op.name.len().min(NAME);
        name[..len].copy_from_slice(&op.name.as_bytes()[..len]);
        let hash = digest(&[op.name.len() as u64], op.name.as_bytes());
        let (lane, Step(step)) = (op.lane.index() as u8, op.step);
        Self { lane, generation, seq, step, index: op.index, hash, shape, name }
    }

    /// Whether both are the same operation, whatever its shape.
    pub(crate) fn same_operation(&self, other: &Call) -> bool {
        (self.seq, self.step, self.index, self.hash) == (other.seq, other.step, other.index, other.hash)
    }

    /// For people.
    pub(crate) fn describe(&self) -> String {
        let len = self.name.iter().position(|&byte| byte == 0).unwrap_or(NAME);
        let name = String::from_utf8_lossy(&self.name[..len]);
        let lane = if self.lane == 0 { "norm" } else { "buckets" };
        format!("{name} {} of step {} ({lane} lane, number {})", self.index, self.step, self.seq)
    }

    /// The header of one of its payloads.
    pub(crate) fn header(&self, frame: &Frame) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = self.lane;
        bytes[5] = frame.kind as u8;
        bytes[8..16].copy_from_slice(&self.generation.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.seq.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.step.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.hash.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.index.to_le_bytes());
        bytes[44..48].copy_from_slice(&frame.part.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.shape.to_le_bytes());
        bytes[56..64].copy_from_slice(&(frame.len as u64).to_le_bytes());
        bytes[64..].copy_from_slice(&self.name);
        bytes
    }

    /// `None` if these are no header's bytes.
    pub(crate) fn parse(bytes: &[u8; HEADER]) -> Option<(Call, Frame)> {
        let word = |at: usize| bytes[at..at + 8].iter().rev().fold(0u64, |word, &byte| word << 8 | u64::from(byte));
        let half = |at: usize| bytes[at..at + 4].iter().rev().fold(0u32, |word, &byte| word << 8 | u32::from(byte));
        let kind = match bytes[5] {
            1 => Kind::Part,
            2 => Kind::Result,
            _ => return None,
        };
        let mut name = [0; NAME];
        name.copy_from_slice(&bytes[64..]);
        let call = Call {
            lane: bytes[4],
            generation: word(8),
            seq: word(16),
            step: word(24),
            index: half(40),
            hash: word(32),
            shape: word(48),
            name,
        };
        let frame = Frame { kind, part: half(44), len: usize::try_from(word(56)).ok()? };
        (bytes[..4] == MAGIC).then_some((call, frame))
    }
}

/// FNV-1a over words, then bytes.
pub(crate) fn digest(words: &[u64], bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let hash =
        words.iter().flat_map(|word| word.to_le_bytes()).fold(0xcbf2_9ce4_8422_2325, |hash, byte| step(hash, &byte));
    bytes.iter().fold(hash, step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::Lane;

    #[test]
    fn a_header_comes_back_as_it_went() {
        let op =
            Op { lane: Lane::Buckets, step: Step(1 << 40), name: "a name longer than the room in a header", index: 7 };
        let call = Call::new(&op, 1 << 50, 1 << 33, u64::MAX - 2);
        let frame = Frame { kind: Kind::Result, part: 77, len: 1 << 35 };
        let mut bytes = call.header(&frame);
        assert_eq!(Call::parse(&bytes), Some((call, frame)));
        assert!(call.describe().starts_with("a name longer than the room in a 7 of step 1099511627776 (buckets lane"));
        bytes[0] ^= 1;
        assert_eq!(Call::parse(&bytes), None);
    }
}
