//! One rank's bytes to all.
//!
//! ```text
//! small  the root sends everything to everyone
//! large  the root sends slice s to rank s alone, which passes it on to the others: every byte leaves the root once
//! ```

use std::ops::Range;

use super::exchange::{Exchange, SEGMENT, Segments, slices};
use super::frame::{Frame, Kind};

/// Bytes up to which the root sends everything itself.
const SMALL: usize = 64 << 10;

#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    sent: usize,
    received: usize,
}

pub(crate) struct Broadcast<'a> {
    me: usize,
    root: usize,
    bytes: &'a mut [u8],
    relayed: bool,
    /// What each rank has from the root.
    regions: Vec<Segments>,
    peers: Vec<Progress>,
}

impl<'a> Broadcast<'a> {
    pub(crate) fn new(me: usize, root: usize, world: usize, bytes: &'a mut [u8]) -> Self {
        let relayed = bytes.len() > SMALL && world > 2;
        let regions: Vec<Range<usize>> = if relayed {
            let mut regions = slices(bytes.len(), world - 1, 64);
            regions.insert(root, 0..0);
            regions
        } else {
            vec![0..bytes.len(); world]
        };
        let regions = regions.into_iter().map(|region| Segments::new(region, SEGMENT)).collect();
        Self { me, root, bytes, relayed, regions, peers: vec![Progress::default(); world] }
    }

    /// Whose region goes from `from` to `to`, if any.
    fn region(&self, from: usize, to: usize) -> Option<&Segments> {
        if to == self.root {
            None
        } else if from == self.root {
            Some(&self.regions[to])
        } else {
            self.relayed.then(|| &self.regions[from])
        }
    }
}

impl Exchange for Broadcast<'_> {
    fn next_frame(&mut self, peer: usize) -> Option<Frame> {
        let segments = self.region(self.me, peer)?;
        let at = self.peers[peer].sent;
        let (kind, ready) = if self.me == self.root {
            (Kind::Part, segments.count())
        } else {
            (Kind::Result, self.peers[self.root].received)
        };
        let frame = (at < ready).then(|| Frame { kind, part: at as u32, len: segments.get(at).len() })?;
        self.peers[peer].sent += 1;
        Some(frame)
    }

    fn payload(&self, peer: usize, frame: &Frame) -> &[u8] {
        match self.region(self.me, peer) {
            Some(segments) => &self.bytes[segments.get(frame.part as usize)],
            None => &[],
        }
    }

    fn expects(&self, peer: usize) -> bool {
        self.region(peer, self.me).is_some_and(|segments| self.peers[peer].received < segments.count())
    }

    fn accept(&mut self, peer: usize, frame: &Frame) -> Result<bool, String> {
        let next = self.peers[peer].received;
        let kind = if peer == self.root { Kind::Part } else { Kind::Result };
        let len = self.region(peer, self.me).map(|segments| segments.get(next).len());
        if (frame.kind, frame.part as usize, Some(frame.len)) != (kind, next, len) {
            return Err(format!("{frame:?} instead of number {next} of {len:?} bytes"));
        }
        Ok(true)
    }

    fn buffer(&mut self, peer: usize, frame: &Frame) -> &mut [u8] {
        match self.region(peer, self.me).map(|segments| segments.get(frame.part as usize)) {
            Some(range) => &mut self.bytes[range],
            None => &mut [],
        }
    }

    fn received(&mut self, peer: usize, _frame: &Frame) {
        self.peers[peer].received += 1;
    }

    fn laggard(&self) -> Option<usize> {
        // Who passes on may wait for the root itself, so the root comes first.
        let others = || (0..self.peers.len()).filter(|&peer| peer != self.me && self.expects(peer));
        others().find(|&peer| peer == self.root).or_else(|| others().min_by_key(|&peer| self.peers[peer].received))
    }
}
