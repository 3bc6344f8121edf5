//! Who failed first, and why.
//!
//! Every pair of ranks has a third connection, silent until one of them goes. A rank that goes says how: in good order,
//! aborted, or failed because of someone. One that is killed says nothing, which is heard too. So a rank that sees
//! connections break in a row still names the one that broke first.
//!
//! Before that it may carry *notes*, words in passing of which only the last counts: what a rank is doing, where the data
//! go another way and cannot tell.

use std::net::{Shutdown, TcpStream};
use std::sync::{Mutex, PoisonError};

use lockstep_proto::ids::Rank;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::error::CollectiveError;

const MAGIC: [u8; 4] = *b"LSCF";
const FIXED: usize = 16;
/// Bytes of each text at the most.
pub(crate) const TEXT: usize = 1024;
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
        encode(kind, culprit, one.as_bytes(), two.as_bytes())
    }

    /// `None` if it is none.
    fn decode(raw: &Raw<'_>) -> Option<Self> {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let (one, two, culprit) = (text(raw.one), text(raw.two), raw.culprit);
        match raw.kind {
            0 => Some(Self::Left),
            1 => Some(Self::Aborted),
            2 => Some(Self::Failed { culprit: (culprit != NOBODY).then_some(Rank(culprit)), what: one }),
            3 => Some(Self::Mismatch { culprit: Rank(culprit), ours: one, theirs: two }),
            _ => None,
        }
    }
}

/// Kind of a message that is no farewell.
const NOTE: u8 = 4;

fn encode(kind: u8, culprit: u32, one: &[u8], two: &[u8]) -> Vec<u8> {
    let (one, two) = (&one[..one.len().min(TEXT)], &two[..two.len().min(TEXT)]);
    let mut bytes = MAGIC.to_vec();
    bytes.extend([kind, 0, 0, 0]);
    bytes.extend(culprit.to_le_bytes());
    bytes.extend((one.len() as u16).to_le_bytes());
    bytes.extend((two.len() as u16).to_le_bytes());
    bytes.extend(one);
    bytes.extend(two);
    bytes
}

/// A message, as far as it is understood without its kind.
struct Raw<'a> {
    kind: u8,
    culprit: u32,
    one: &'a [u8],
    two: &'a [u8],
}

impl<'a> Raw<'a> {
    /// The first of `bytes` and its length; `None` while bytes are missing, or if they are no message's.
    fn parse(bytes: &'a [u8]) -> Option<(Self, usize)> {
        let fixed = bytes.get(..FIXED).filter(|fixed| fixed[..4] == MAGIC)?;
        let half = |at: usize| usize::from(u16::from_le_bytes([fixed[at], fixed[at + 1]]));
        let (one, two) = (half(12), half(14));
        let end = FIXED + one + two;
        let culprit = u32::from_le_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]);
        let raw =
            Self { kind: fixed[4], culprit, one: bytes.get(FIXED..FIXED + one)?, two: bytes.get(FIXED + one..end)? };
        Some((raw, end))
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
    inbox: Mutex<Inbox>,
    /// What is left of a note that went in part.
    unsent: Mutex<Vec<u8>>,
}

#[derive(Debug)]
struct Inbox {
    bytes: Vec<u8>,
    heard: Heard,
    note: Option<Vec<u8>>,
}

impl Control {
    pub(crate) fn new(socket: TcpStream) -> Self {
        let inbox = Mutex::new(Inbox { bytes: Vec::new(), heard: Heard::Nothing, note: None });
        Self { socket, inbox, unsent: Mutex::default() }
    }

    /// Says the last word, and closes. A peer that is gone already does not mind.
    pub(crate) fn say(&self, farewell: &Farewell) {
        let mut unsent = self.unsent.lock().unwrap_or_else(PoisonError::into_inner);
        if self.flush(&mut unsent) {
            let _ = send(&self.socket, &farewell.encode(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        }
        // What the peer said last is taken, since closing with unread bytes would break off what was just sent.
        self.listen();
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Sends a note, whole or not at all: a peer that does not read gets the next one. At most [`TEXT`] bytes.
    pub(crate) fn note(&self, note: &[u8]) {
        let mut unsent = self.unsent.lock().unwrap_or_else(PoisonError::into_inner);
        if self.flush(&mut unsent) {
            *unsent = encode(NOTE, NOBODY, note, &[]);
            let len = unsent.len();
            self.flush(&mut unsent);
            if unsent.len() == len {
                unsent.clear();
            }
        }
    }

    /// Whether nothing is left.
    fn flush(&self, unsent: &mut Vec<u8>) -> bool {
        if !unsent.is_empty()
            && let Ok(len) = send(&self.socket, unsent, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
        {
            unsent.drain(..len);
        }
        unsent.is_empty()
    }

    /// Takes what has come, without waiting. Says the same again after the last word.
    pub(crate) fn listen(&self) -> Heard {
        let mut guard = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        let Inbox { bytes, heard, note } = &mut *guard;
        let mut buffer = [0; FIXED + 2 * TEXT];
        while *heard == Heard::Nothing {
            match recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((_, 0)) => *heard = Heard::Silence,
                Ok((_, len)) => bytes.extend_from_slice(&buffer[..len]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => *heard = Heard::Silence,
            }
            while *heard == Heard::Nothing
                && let Some((raw, len)) = Raw::parse(bytes)
            {
                match Farewell::decode(&raw) {
                    Some(farewell) => *heard = Heard::Farewell(farewell),
                    None => *note = Some(raw.one.to_vec()),
                }
                bytes.drain(..len);
            }
            if bytes.len() >= buffer.len() {
                *heard = Heard::Silence; // no message is so long
            }
        }
        heard.clone()
    }

    /// The last note that came, once.
    pub(crate) fn take_note(&self) -> Option<Vec<u8>> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).note.take()
    }

    /// Whether the peer left in good order, as far as was heard.
    pub(crate) fn has_left(&self) -> bool {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).heard == Heard::Farewell(Farewell::Left)
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

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
            assert!(Raw::parse(&bytes[..bytes.len() - 1]).is_none());
            let (raw, len) = Raw::parse(&bytes).unwrap();
            assert_eq!((Farewell::decode(&raw), len), (Some(farewell), bytes.len()));
        }
    }

    fn pair() -> (Control, Control) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (Control::new(one), Control::new(listener.accept().unwrap().0))
    }

    #[test]
    fn of_notes_the_last_is_heard_and_then_the_farewell() {
        let (one, two) = pair();
        one.note(b"first");
        one.note(b"second");
        assert_eq!((two.listen(), two.take_note()), (Heard::Nothing, Some(b"second".to_vec())));
        assert_eq!(two.take_note(), None);
        one.note(b"third");
        one.say(&Farewell::Aborted);
        assert_eq!((two.listen(), two.take_note()), (Heard::Farewell(Farewell::Aborted), Some(b"third".to_vec())));
    }

    /// What `control` hears once something came, within 20 s.
    fn wait(control: &Control) -> Heard {
        let patience = Timespec { tv_sec: 20, tv_nsec: 0 };
        let mut sockets = [PollFd::new(&control.socket, PollFlags::IN)];
        assert_eq!(poll(&mut sockets, Some(&patience)), Ok(1), "nothing came");
        control.listen()
    }

    #[test]
    fn a_peer_that_does_not_read_gets_whole_notes_when_it_does() {
        let (one, two) = pair();
        for number in 0..20_000u32 {
            one.note(&[number.to_le_bytes(); 200].concat());
        }

        // In each round something is under way: a note of the flood, or the end.
        let mut notes = 0;
        loop {
            one.note(b"end");
            assert_eq!(wait(&two), Heard::Nothing);
            let Some(note) = two.take_note() else { continue };
            if note == b"end" {
                break;
            }
            assert!(note.len() == 800 && note.chunks(4).all(|number| number == &note[..4]));
            notes += 1;
        }
        assert!(notes > 0);
        while !one.flush(&mut one.unsent.lock().unwrap()) {
            assert_eq!(wait(&two), Heard::Nothing);
        }
        one.say(&Farewell::Left);
        while wait(&two) == Heard::Nothing {}
        assert_eq!(two.listen(), Heard::Farewell(Farewell::Left));
    }
}
