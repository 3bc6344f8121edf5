//! The first bytes on a connection.

use std::hint::black_box;

use lockstep_proto::ids::Generation;

/// Bytes of a greeting.
pub(crate) const GREETING: usize = 24 + SECRET + 1;
/// Bytes of the answer.
pub(crate) const WELCOME: usize = 16;
/// Bytes of a secret at the most.
pub(crate) const SECRET: usize = 128;
const MAGIC: [u8; 4] = *b"LSG1";
const ANSWER: [u8; 4] = *b"LSW1";

/// What the rank that connects says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Greeting {
    pub(crate) generation: Generation,
    pub(crate) from: u32,
    pub(crate) to: u32,
    /// A lane, or the control connection.
    pub(crate) lane: u8,
}

impl Greeting {
    pub(crate) fn encode(&self, secret: &str) -> [u8; GREETING] {
        let mut bytes = [0; GREETING];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = self.lane;
        bytes[8..16].copy_from_slice(&self.generation.0.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.from.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.to.to_le_bytes());
        bytes[24..].copy_from_slice(&padded(secret));
        bytes
    }

    /// `None` if it is no greeting; else what it says, and whether it knows the secret.
    pub(crate) fn decode(bytes: &[u8; GREETING], secret: &str) -> Option<(Self, bool)> {
        if bytes[..4] != MAGIC {
            return None;
        }
        let mut generation = [0; 8];
        generation.copy_from_slice(&bytes[8..16]);
        let half = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let generation = Generation(u64::from_le_bytes(generation));
        let greeting = Self { generation, from: half(16), to: half(20), lane: bytes[4] };
        Some((greeting, equal(&bytes[24..], &padded(secret))))
    }
}

/// What the rank that was found answers.
pub(crate) fn welcome(generation: Generation, rank: u32) -> [u8; WELCOME] {
    let mut bytes = [0; WELCOME];
    bytes[..4].copy_from_slice(&ANSWER);
    bytes[4..12].copy_from_slice(&generation.0.to_le_bytes());
    bytes[12..].copy_from_slice(&rank.to_le_bytes());
    bytes
}

/// The secret with its length, always as long. The caller checks that it fits.
fn padded(secret: &str) -> [u8; SECRET + 1] {
    let mut bytes = [0; SECRET + 1];
    let len = secret.len().min(SECRET);
    bytes[0] = len as u8;
    bytes[1..=len].copy_from_slice(&secret.as_bytes()[..len]);
    bytes
}

/// Takes as long wherever they differ, so that nobody learns a secret byte by byte.
fn equal(a: &[u8], b: &[u8]) -> bool {
    let difference = a.iter().zip(b).fold(0, |difference, (a, b)| black_box(difference | (a ^ b)));
    a.len() == b.len() && difference == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_tells_who_and_whether_it_knows_the_secret() {
        let greeting = Greeting { generation: Generation(1 << 40), from: 3, to: 1, lane: 2 };
        let mut bytes = greeting.encode("open sesame");
        assert_eq!(Greeting::decode(&bytes, "open sesame"), Some((greeting, true)));
        for wrong in ["", "open sesam", "open sesame ", "Open sesame"] {
            assert_eq!(Greeting::decode(&bytes, wrong), Some((greeting, false)));
        }
        bytes[0] = 0;
        assert_eq!(Greeting::decode(&bytes, "open sesame"), None);
    }
}
