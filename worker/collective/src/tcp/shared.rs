//! What the lanes of a mesh have in common: its identity, its last words, its first failure.

use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use lockstep_proto::ids::{Generation, Rank};
use rustix::event::{PollFd, PollFlags};

use super::control::{Control, Farewell, Heard};
use super::drive::wait;
use super::frame::{Call, Frame};
use crate::error::{CollectiveError, Operation};

/// How long the last word of a peer may come after its other connections broke.
const LAST_WORD: Duration = Duration::from_millis(100);

pub(crate) struct Shared {
    pub(crate) generation: Generation,
    pub(crate) rank: usize,
    /// Of every operation, from the last byte that moved.
    pub(crate) deadline: Duration,
    /// Data connections, by lane and rank; none with itself.
    pub(crate) sockets: [Vec<Option<TcpStream>>; 2],
    /// By rank; none with itself.
    pub(crate) controls: Vec<Option<Control>>,
    /// The first failure, for ever.
    pub(crate) cause: OnceLock<CollectiveError>,
}

impl Shared {
    /// Fails if the mesh has.
    pub(crate) fn check(&self) -> Result<(), CollectiveError> {
        self.cause.get().cloned().map_or(Ok(()), Err)
    }

    /// Records a failure, tells the peers, wakes all lanes. Returns the first failure.
    pub(crate) fn fail(&self, error: CollectiveError) -> CollectiveError {
        let farewell = Farewell::of(&error);
        if self.cause.set(error.clone()).is_ok() {
            self.controls().for_each(|(_, control)| control.say(&farewell));
            for socket in self.sockets.iter().flatten().flatten() {
                // Whoever sleeps on it wakes, here and there. It may be gone already.
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
        self.cause.get().cloned().unwrap_or(error)
    }

    /// Control connections with the ranks of their other ends.
    pub(crate) fn controls(&self) -> impl Iterator<Item = (usize, &Control)> {
        self.controls.iter().enumerate().filter_map(|(rank, control)| Some((rank, control.as_ref()?)))
    }

    /// Whether a header is what `peer` must send now.
    pub(crate) fn verify(
        &self,
        peer: usize,
        ours: &Call,
        before: Option<Call>,
        parsed: Option<(Call, Frame)>,
    ) -> Result<Frame, CollectiveError> {
        let Some((theirs, frame)) = parsed else { return Err(self.garbled(peer, "not a header".into())) };
        if (theirs.generation, theirs.lane) != (ours.generation, ours.lane) {
            let what = format!("{} in generation {}", theirs.describe(), theirs.generation);
            return Err(self.garbled(peer, what));
        }
        let detail = if !theirs.same_operation(ours) {
            "another operation"
        } else if theirs.shape != ours.shape {
            "the same but of another type, length, layout or root"
        } else {
            return Ok(frame);
        };
        Err(CollectiveError::Mismatch {
            rank: Rank(peer as u32),
            ours: ours.describe(),
            theirs: theirs.describe(),
            detail: detail.into(),
            before: before.map_or_else(|| "nothing".into(), |before| before.describe()),
        })
    }

    pub(crate) fn garbled(&self, peer: usize, what: String) -> CollectiveError {
        CollectiveError::Garbled { rank: Rank(peer as u32), generation: self.generation, what }
    }

    /// Fails if `peer` said its last word, other than that it is done, or is gone without one.
    pub(crate) fn heed(&self, peer: usize, during: &dyn Fn() -> Operation) -> Result<(), CollectiveError> {
        let rank = Rank(peer as u32);
        let gone = |rank, how| Err(CollectiveError::PeerGone { rank, operation: during(), how });
        let me = Rank(self.rank as u32);
        match self.controls[peer].as_ref().map_or(Heard::Nothing, Control::listen) {
            Heard::Nothing | Heard::Farewell(Farewell::Left) => Ok(()),
            Heard::Silence => gone(rank, "its connections are closed".into()),
            Heard::Farewell(Farewell::Aborted) => gone(rank, "it aborted".into()),
            Heard::Farewell(Farewell::Failed { culprit: Some(culprit), what }) if culprit != rank => {
                gone(culprit, format!("rank {rank} reports: {what}"))
            }
            Heard::Farewell(Farewell::Failed { what, .. }) => gone(rank, format!("it failed: {what}")),
            Heard::Farewell(Farewell::Mismatch { culprit, ours, theirs }) if culprit == me => {
                let detail = format!("says rank {rank}");
                Err(CollectiveError::Mismatch { rank, ours: theirs, theirs: ours, detail, before: "unknown".into() })
            }
            Heard::Farewell(Farewell::Mismatch { culprit, ours, theirs }) => {
                gone(culprit, format!("it called {theirs} while rank {rank} called {ours}"))
            }
        }
    }

    /// A data connection of `peer` broke: why, if that can be learned in a moment.
    pub(crate) fn gone(&self, peer: usize, call: &Call, how: String) -> CollectiveError {
        let start = Instant::now();
        loop {
            if let Err(error) = self.check().and_then(|()| self.heed(peer, &|| call.describe())) {
                return error;
            }
            let waited = start.elapsed();
            let Some(control) = &self.controls[peer] else { break };
            if control.has_left() || waited >= LAST_WORD {
                break;
            }
            wait(&mut [PollFd::from_borrowed_fd(control.socket.as_fd(), PollFlags::IN)], LAST_WORD - waited);
        }
        let left = self.controls[peer].as_ref().is_some_and(Control::has_left);
        let how = if left { "it left in good order, before this operation".into() } else { how };
        CollectiveError::PeerGone { rank: Rank(peer as u32), operation: call.describe(), how }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.cause.get().is_none() {
            self.controls().for_each(|(_, control)| control.say(&Farewell::Left));
        }
    }
}
