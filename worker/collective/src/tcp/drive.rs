//! Moves the bytes of an exchange over the sockets of a lane until it is done, the deadline passes or a peer is gone.

use std::io::IoSlice;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use lockstep_proto::ids::Rank;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, send, sendmsg};

use super::exchange::Exchange;
use super::frame::{Call, Frame, HEADER};
use super::shared::Shared;
use crate::error::CollectiveError;

/// Bytes that may be read ahead of what is expected: headers, and small payloads with them.
const STAGING: usize = 4096;

/// What is under way with one peer on one lane.
pub(crate) struct Peer {
    staging: Box<[u8]>,
    start: usize,
    end: usize,
    inbound: Option<Inbound>,
    outbound: Option<Outbound>,
}

struct Inbound {
    frame: Frame,
    accepted: bool,
    filled: usize,
}

struct Outbound {
    frame: Frame,
    header: [u8; HEADER],
    sent: usize,
}

impl Peer {
    pub(crate) fn new() -> Self {
        Self { staging: vec![0; STAGING].into(), start: 0, end: 0, inbound: None, outbound: None }
    }
}

/// One operation under way.
pub(crate) struct Drive<'a> {
    pub(crate) shared: &'a Shared,
    /// By rank; none for this one.
    pub(crate) sockets: &'a [Option<TcpStream>],
    pub(crate) peers: &'a mut [Peer],
    pub(crate) call: Call,
    /// The operation before, for people.
    pub(crate) before: Option<Call>,
    /// How long to wait awake before sleeping.
    pub(crate) spin: Duration,
}

impl Drive<'_> {
    pub(crate) fn run<E: Exchange>(&mut self, exchange: &mut E) -> Result<(), CollectiveError> {
        // The deadline runs from the last byte that moved: a slow link is not a dead one, and bytes are finite.
        let mut last = Instant::now();
        let (me, world) = (self.shared.rank, self.peers.len());
        let mut idle_since = None;
        loop {
            self.shared.check()?;
            let mut moved = false;
            for offset in 1..world {
                let peer = (me + offset) % world;
                moved |= self.send(peer, exchange)?;
                moved |= self.receive(peer, exchange)?;
            }
            moved |= exchange.advance();
            if moved {
                idle_since = None;
                last = Instant::now();
                continue;
            }
            if self.is_done(exchange) {
                return Ok(());
            }
            let now = Instant::now();
            let waited = now - last;
            if waited >= self.shared.deadline {
                return Err(self.late(exchange, waited));
            }
            if now - *idle_since.get_or_insert(now) < self.spin {
                std::thread::yield_now();
            } else {
                self.sleep(exchange, self.shared.deadline - waited)?;
                // Judged before anything is tried again: a full socket takes a few more bytes whenever it is asked.
                let waited = last.elapsed();
                if waited >= self.shared.deadline {
                    return Err(self.late(exchange, waited));
                }
            }
        }
    }

    fn is_done<E: Exchange>(&self, exchange: &E) -> bool {
        let me = self.shared.rank;
        (0..self.peers.len()).all(|peer| peer == me || (self.peers[peer].outbound.is_none() && !exchange.expects(peer)))
    }

    /// Sends at most one frame to `peer`; whether bytes went.
    fn send<E: Exchange>(&mut self, peer: usize, exchange: &mut E) -> Result<bool, CollectiveError> {
        let Some(socket) = &self.sockets[peer] else { return Ok(false) };
        let state = &mut self.peers[peer];
        if state.outbound.is_none() {
            let Some(frame) = exchange.next_frame(peer) else { return Ok(false) };
            state.outbound = Some(Outbound { frame, header: self.call.header(&frame), sent: 0 });
        }
        let Some(outbound) = &mut state.outbound else { return Ok(false) };
        let payload = exchange.payload(peer, &outbound.frame);
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let sent = if outbound.sent < HEADER {
            let slices = [IoSlice::new(&outbound.header[outbound.sent..]), IoSlice::new(payload)];
            sendmsg(socket, &slices, &mut SendAncillaryBuffer::default(), flags)
        } else {
            send(socket, &payload[outbound.sent - HEADER..], flags)
        };
        match sent {
            Ok(len) => outbound.sent += len,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            Err(errno) => return Err(self.gone(peer, &errno)),
        }
        if outbound.sent == HEADER + outbound.frame.len {
            state.outbound = None;
        }
        Ok(true)
    }

    /// Receives at most one frame from `peer`; whether bytes came.
    fn receive<E: Exchange>(&mut self, peer: usize, exchange: &mut E) -> Result<bool, CollectiveError> {
        let Some(socket) = &self.sockets[peer] else { return Ok(false) };
        let mut moved = false;
        loop {
            let state = &mut self.peers[peer];
            let Some(inbound) = &mut state.inbound else {
                if !exchange.expects(peer) {
                    return Ok(moved);
                }
                if let Some(header) = state.staging[state.start..state.end].first_chunk() {
                    let parsed = Call::parse(header);
                    let frame = self.shared.verify(peer, &self.call, self.before, parsed)?;
                    state.start += HEADER;
                    state.inbound = Some(Inbound { frame, accepted: false, filled: 0 });
                    continue;
                }
                state.staging.copy_within(state.start..state.end, 0);
                (state.start, state.end) = (0, state.end - state.start);
                match recv(socket, &mut state.staging[state.end..], RecvFlags::DONTWAIT) {
                    Ok((_, 0)) => return Err(self.gone(peer, &"its connection is closed")),
                    Ok((_, len)) => state.end += len,
                    Err(Errno::AGAIN | Errno::INTR) => return Ok(moved),
                    Err(errno) => return Err(self.gone(peer, &errno)),
                }
                moved = true;
                continue;
            };
            if !inbound.accepted {
                match exchange.accept(peer, &inbound.frame) {
                    Ok(true) => inbound.accepted = true,
                    Ok(false) => return Ok(moved),
                    Err(what) => return Err(self.shared.garbled(peer, what)),
                }
            }
            let room = &mut exchange.buffer(peer, &inbound.frame)[inbound.filled..];
            let staged = room.len().min(state.end - state.start);
            room[..staged].copy_from_slice(&state.staging[state.start..][..staged]);
            state.start += staged;
            inbound.filled += staged;
            if staged < room.len() {
                match recv(socket, &mut room[staged..], RecvFlags::DONTWAIT) {
                    Ok((_, 0)) => return Err(self.gone(peer, &"its connection is closed")),
                    Ok((_, len)) => inbound.filled += len,
                    Err(Errno::AGAIN | Errno::INTR) => return Ok(moved),
                    Err(errno) => return Err(self.gone(peer, &errno)),
                }
                moved = true;
            }
            if inbound.filled == inbound.frame.len {
                exchange.received(peer, &inbound.frame);
                state.inbound = None;
                return Ok(true);
            }
        }
    }

    /// Waits until a socket can go on, a peer has a last word, or `timeout` is over.
    fn sleep<E: Exchange>(&self, exchange: &E, timeout: Duration) -> Result<(), CollectiveError> {
        let mut fds = Vec::with_capacity(2 * self.peers.len());
        for (peer, state) in self.peers.iter().enumerate() {
            let Some(socket) = &self.sockets[peer] else { continue };
            let mut events = PollFlags::empty();
            events.set(PollFlags::OUT, state.outbound.is_some());
            let reads = state.inbound.as_ref().map_or_else(|| exchange.expects(peer), |inbound| inbound.accepted);
            events.set(PollFlags::IN, reads);
            if !events.is_empty() {
                fds.push(PollFd::from_borrowed_fd(socket.as_fd(), events));
            }
        }
        let num_data = fds.len();
        let controls: Vec<_> = self.shared.controls().filter(|(_, control)| !control.has_left()).collect();
        fds.extend(controls.iter().map(|(_, control)| PollFd::from_borrowed_fd(control.socket.as_fd(), PollFlags::IN)));
        wait(&mut fds, timeout);
        self.shared.check()?;
        for ((peer, _), fd) in controls.iter().zip(&fds[num_data..]) {
            if !fd.revents().is_empty() {
                self.shared.heed(*peer, &|| self.call.describe())?;
            }
        }
        Ok(())
    }

    fn gone(&self, peer: usize, how: &dyn std::fmt::Display) -> CollectiveError {
        self.shared.gone(peer, &self.call, how.to_string())
    }

    fn late<E: Exchange>(&self, exchange: &E, waited: Duration) -> CollectiveError {
        let unsent = || self.peers.iter().position(|peer| peer.outbound.is_some());
        let rank = Rank(exchange.laggard().or_else(unsent).unwrap_or(self.shared.rank) as u32);
        CollectiveError::Deadline { rank, operation: self.call.describe(), waited }
    }
}

/// Polls; an interruption counts as a wake-up.
pub(crate) fn wait(fds: &mut [PollFd<'_>], timeout: Duration) {
    // A timespec cannot hold more seconds than an i64; nobody waits that long.
    let seconds = timeout.as_secs().min(i64::MAX as u64) as i64;
    let timeout = Timespec { tv_sec: seconds, tv_nsec: timeout.subsec_nanos().into() };
    let _ = poll(fds, Some(&timeout));
}
