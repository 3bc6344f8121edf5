//! Who failed first, and why.
//!
//! Every pair of ranks has a third connection, silent until one of them goes. A rank that goes says how: in good order,
//! aborted, or failed because of someone. One that is killed says nothing, which is heard too. So a rank that sees
//! connections break in a row still names the one that broke first.

use std::net::{Shutdown, TcpStream};
use std::sync::{Mutex, PoisonError};

use lockstep_proto::ids::Rank;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::error::CollectiveError;

const MAGIC: [u8; 4] = *b"LSCF";
const FIXED: usize = 16;
/// Bytes of each text at the most.
const TEXT: usize = 1024;
const NOBODY: u32 = u32::MAX;

/// The last word of a rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Farewell {
    /// It is done.
    Left,
    /// Someone told it to stop.
    Aborted,
    /// It failed, maybe because of someone.
    Failed { culprit: Option<Rank>, what: String },
    /// It and `culprit` called different operations.
    Mismatch { culprit: Rank, ours: String, theirs: String },
}

impl Farewell {
    pub(crate) fn of(error: &CollectiveError) -> Self {
        match error {
            CollectiveError::Aborted => Self::Aborted,
            CollectiveError::Mismatch { rank, ours, theirs, .. } => {
                Self::Mismatch { culprit: *rank, ours: ours.clone(), theirs: theirs.clone() }
            }
            other => Self::Failed { culprit: other.culprit(), what: other.to_string() },
        }
    }

    fn encode(&self) -> Vec<u8> {
        let (kind, culprit, one, two) = match self {
            Self::Left => (0, NOBODY, "", ""),
            Self::Aborted => (1, NOBODY, "", ""),
            Self::Failed { culprit, what } => (2, culprit.map_or(NOBODY, |rank| rank.0), what.as_str(), ""),
            Self::Mismatch { culprit, ours, theirs } => (3, culprit.0, ours.as_str(), theirs.as_str()),
        };
        let (one, two) = (&one.as_bytes()[..one.len().min(TEXT)], &two.as_bytes()[..two.len().min(TEXT)]);
        let mut bytes = MAGIC.to_vec();
        bytes.extend([kind, 0, 0, 0]);
        bytes.extend(culprit.to_le_bytes());
        bytes.extend((one.len() as u16).to_le_bytes());
        bytes.extend((two.len() as u16).to_le_bytes());
        bytes.extend(one);
        bytes.extend(two);
        bytes
    }

    /// `None` while bytes are missing, or if they are no farewell's.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let fixed = bytes.get(..FIXED).filter(|fixed| fixed[..4] == MAGIC)?;
        let half = |at: usize| usize::from(u16::from_le_bytes([fixed[at], fixed[at + 1]]));
        let text = |from: usize, len: usize| {
            bytes.get(from..from + len).map(|text| String::from_utf8_lossy(text).into_owned())
        };
        let (one, two) = (text(FIXED, half(12))?, text(FIXED + half(12), half(14))?);
        let culprit = u32::from_le_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]);
        match fixed[4] {
            0 => Some(Self::Left),
            1 => Some(Self::Aborted),
            2 => Some(Self::Failed { culprit: (culprit != NOBODY).then_some(Rank(culprit)), what: one }),
            3 => Some(Self::Mismatch { culprit: Rank(culprit), ours: one, theirs: two }),
            _ => None,
        }
    }
}

/// What a control connection has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Nothing yet.
    Nothing,
    /// Its last word.
    Farewell(Farewell),
    /// It is gone without a word.
    Silence,
}

/// The control connection with one peer.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) socket: TcpStream,
    heard: Mutex<(Vec<u8>, Heard)>,
}

impl Control {
    pub(crate) fn new(socket: TcpStream) -> Self {
        Self { socket, heard: Mutex::new((Vec::new(), Heard::Nothing)) }
    }

    /// Says the last word, and closes. A peer that is gone already does not mind.
    pub(crate) fn say(&self, farewell: &Farewell) {
        let _ = send(&self.socket, &farewell.encode(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        // What the peer said last is taken, since closing with unread bytes would break off what was just sent.
        self.listen();
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Takes what has come, without waiting. Says the same again after the last word.
    pub(crate) fn listen(&self) -> Heard {
        let mut guard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let (bytes, heard) = &mut *guard;
        let mut buffer = [0; FIXED + 2 * TEXT];
        while *heard == Heard::Nothing {
            match recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((_, 0)) => *heard = Heard::Silence,
                Ok((_, len)) => {
                    bytes.extend_from_slice(&buffer[..len]);
                    if let Some(farewell) = Farewell::decode(bytes) {
                        *heard = Heard::Farewell(farewell);
                    } else if bytes.len() >= buffer.len() {
                        *heard = Heard::Silence;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => *heard = Heard::Silence,
            }
        }
        heard.clone()
    }

    /// Whether the peer left in good order, as far as was heard.
    pub(crate) fn has_left(&self) -> bool {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).1 == Heard::Farewell(Farewell::Left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_farewell_comes_back_as_it_went() {
        for farewell in [
            Farewell::Left,
            Farewell::Aborted,
            Farewell::Failed { culprit: None, what: String::new() },
            Farewell::Failed { culprit: Some(Rank(3)), what: "it was late".into() },
            Farewell::Mismatch { culprit: Rank(1), ours: "a".into(), theirs: "bb".into() },
        ] {
            let bytes = farewell.encode();
            assert_eq!(Farewell::decode(&bytes[..bytes.len() - 1]), None);
            assert_eq!(Farewell::decode(&bytes), Some(farewell));
        }
    }
}
