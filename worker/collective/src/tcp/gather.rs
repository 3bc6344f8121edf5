//! Everybody's bytes to everybody.

use super::exchange::Exchange;
use super::frame::{Frame, Kind};

/// Bytes that a peer may send, so that a broken one cannot ask for all memory.
const MOST: usize = 1 << 30;

pub(crate) struct Gather<'a> {
    me: usize,
    mine: &'a [u8],
    sent: Vec<bool>,
    messages: Vec<Vec<u8>>,
    received: Vec<bool>,
}

impl<'a> Gather<'a> {
    pub(crate) fn new(me: usize, world: usize, mine: &'a [u8]) -> Self {
        let own = |rank| rank == me;
        let messages = (0..world).map(|rank| if own(rank) { mine.to_vec() } else { Vec::new() }).collect();
        let (sent, received) = ((0..world).map(own).collect(), (0..world).map(own).collect());
        Self { me, mine, sent, messages, received }
    }

    /// By rank.
    pub(crate) fn into_messages(self) -> Vec<Vec<u8>> {
        self.messages
    }
}

impl Exchange for Gather<'_> {
    fn next_frame(&mut self, peer: usize) -> Option<Frame> {
        let first = !std::mem::replace(&mut self.sent[peer], true);
        first.then_some(Frame { kind: Kind::Part, part: 0, len: self.mine.len() })
    }

    fn payload(&self, _peer: usize, _frame: &Frame) -> &[u8] {
        self.mine
    }

    fn expects(&self, peer: usize) -> bool {
        !self.received[peer]
    }

    fn accept(&mut self, peer: usize, frame: &Frame) -> Result<bool, String> {
        if frame.kind != Kind::Part || frame.part != 0 || frame.len > MOST {
            return Err(format!("{frame:?} instead of a message of at most {MOST} bytes"));
        }
        self.messages[peer] = vec![0; frame.len];
        Ok(true)
    }

    fn buffer(&mut self, peer: usize, _frame: &Frame) -> &mut [u8] {
        &mut self.messages[peer]
    }

    fn received(&mut self, peer: usize, _frame: &Frame) {
        self.received[peer] = true;
    }

    fn laggard(&self) -> Option<usize> {
        (0..self.received.len()).find(|&peer| peer != self.me && !self.received[peer])
    }
}
