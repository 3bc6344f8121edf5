//! A world of processes, each connected with every other.

use std::collections::VecDeque;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use lockstep_proto::ids::{Generation, Rank};
use rustix::event::{PollFd, PollFlags};

use super::broadcast::Broadcast;
use super::control::Control;
use super::drive::{Drive, Peer, wait};
use super::exchange::Exchange;
use super::frame::{Call, digest};
use super::gather::Gather;
use super::listener::Listener;
use super::reduce::{Reduce, Shape};
use super::rendezvous::{Membership, rendezvous};
use super::scratch::Scratch;
use super::shared::Shared;
use crate::collective::{Collective, Lane, Op};
use crate::element::Element;
use crate::error::{CollectiveError, Operation};
use crate::layout::Layout;
use crate::solo::{check_reduce, check_root};

/// Operations of a lane that are remembered.
const HISTORY: usize = 64;
/// All who meet have just said that they are ready.
const MEETING: Duration = Duration::from_secs(30);

/// The members of one generation, connected over TCP: a connection for each pair of ranks and lane, and one more that
/// says who failed first. Dropping it tells the peers that this rank left in good order.
pub struct TcpMesh {
    shared: Shared,
    lanes: [Mutex<LaneState>; 2],
    history: [Mutex<VecDeque<Call>>; 2],
}

struct LaneState {
    /// Number of the last operation.
    seq: u64,
    peers: Vec<Peer>,
    scratch: Scratch,
}

impl TcpMesh {
    /// Meets the other ranks of `generation`: listens for those above, goes to those below, until all are connected or
    /// `deadline` is over. `addresses` are `host:port` of every rank's [`Listener`], by rank; `secret` is that of the
    /// generation, at most 128 bytes. Connections of other generations or with another secret are closed and do no harm.
    /// `deadline` is also that of every later operation; a meeting takes half a minute at most.
    ///
    /// # Errors
    /// [`CollectiveError::NeverCame`] names the first missing rank; [`CollectiveError::Aborted`] after
    /// [`Listener::cancel`].
    #[expect(clippy::too_many_arguments, reason = "each is a thing of its own, and there is one caller")]
    pub fn connect(
        listener: &Listener,
        generation: Generation,
        secret: &str,
        rank: Rank,
        addresses: &[String],
        deadline: Duration,
    ) -> Result<Self, CollectiveError> {
        let world = addresses.len();
        let [norm, buckets, control] =
            rendezvous(listener, &Membership { generation, secret, rank, addresses }, deadline.min(MEETING))?;
        let shared = Shared {
            generation,
            rank: rank.0 as usize,
            deadline,
            sockets: [norm, buckets],
            controls: control.into_iter().map(|socket: Option<TcpStream>| socket.map(Control::new)).collect(),
            cause: OnceLock::new(),
        };
        let lane = || {
            let peers = (0..world).map(|_| Peer::new()).collect();
            Mutex::new(LaneState { seq: 0, peers, scratch: Scratch::default() })
        };
        let history = || Mutex::new(VecDeque::with_capacity(HISTORY));
        Ok(Self { shared, lanes: [lane(), lane()], history: [history(), history()] })
    }

    /// The generation that it belongs to.
    pub fn generation(&self) -> Generation {
        self.shared.generation
    }

    /// The last operations of a lane, oldest first, for people.
    pub fn history(&self, lane: Lane) -> Vec<Operation> {
        let history = self.history[lane.index()].lock().unwrap_or_else(PoisonError::into_inner);
        history.iter().map(Call::describe).collect()
    }

    /// Tells every peer a word in passing, of which only the last counts, without waiting: at most a kilobyte. For who
    /// moves data another way, and keeps this mesh to know about the others.
    pub fn note(&self, note: &[u8]) {
        self.shared.controls().filter(|(_, control)| !control.has_left()).for_each(|(_, control)| control.note(note));
    }

    /// Waits until a peer says something, `wake` is readable, or `timeout` is over; hands over the notes that came.
    /// Whoever left in good order is no failure.
    ///
    /// # Errors
    /// This mesh has failed; a peer has, aborted, or is gone. `during` says what was going on.
    pub fn listen(
        &self,
        wake: BorrowedFd<'_>,
        timeout: Duration,
        during: &dyn Fn() -> Operation,
        mut heard: impl FnMut(Rank, Vec<u8>),
    ) -> Result<(), CollectiveError> {
        self.shared.check()?;
        let present = || self.shared.controls().filter(|(_, control)| !control.has_left());
        let mut fds = vec![PollFd::from_borrowed_fd(wake, PollFlags::IN)];
        fds.extend(present().map(|(_, control)| PollFd::from_borrowed_fd(control.socket.as_fd(), PollFlags::IN)));
        wait(&mut fds, timeout);
        self.shared.check()?;
        for (peer, control) in present() {
            self.shared.heed(peer, during)?;
            if let Some(note) = control.take_note() {
                heard(Rank(peer as u32), note);
            }
        }
        Ok(())
    }

    /// Who left in good order, as far as was heard.
    pub fn left(&self) -> Option<Rank> {
        self.shared.controls().find(|(_, control)| control.has_left()).map(|(peer, _)| Rank(peer as u32))
    }

    /// From any thread: records a failure that was found elsewhere, as [`abort`](Collective::abort) records its own.
    /// Returns the first there was.
    pub fn fail(&self, error: CollectiveError) -> CollectiveError {
        self.shared.fail(error)
    }

    /// Runs one operation. `make` prepares it with the lane's scratch memory; `finish` takes what it leaves.
    fn run<'a, E: Exchange>(
        &self,
        op: &Op,
        shape: u64,
        make: impl FnOnce(&'a mut Scratch) -> E,
        state: &'a mut LaneState,
    ) -> Result<E, CollectiveError> {
        self.shared.check()?;
        state.seq += 1;
        let lane = op.lane.index();
        let call = Call::new(op, self.shared.generation.0, state.seq, shape);
        let before = self.remember(lane, call);
        let LaneState { peers, scratch, .. } = state;
        let mut exchange = make(scratch);
        let spin = match op.lane {
            Lane::Norm => Duration::from_micros(50),
            Lane::Buckets => Duration::from_micros(10),
        };
        let mut drive = Drive { shared: &self.shared, sockets: &self.shared.sockets[lane], peers, call, before, spin };
        drive.run(&mut exchange).map_err(|error| self.shared.fail(error))?;
        Ok(exchange)
    }

    /// Notes an operation; returns the one before.
    fn remember(&self, lane: usize, call: Call) -> Option<Call> {
        let mut history = self.history[lane].lock().unwrap_or_else(PoisonError::into_inner);
        let before = history.back().copied();
        if history.len() == HISTORY {
            history.pop_front();
        }
        history.push_back(call);
        before
    }

    fn lane(&self, op: &Op) -> std::sync::MutexGuard<'_, LaneState> {
        self.lanes[op.lane.index()].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reduce<T: Element>(
        &self,
        op: &Op,
        layout: &Layout,
        partials: &[&[T]],
        out: &mut [T],
    ) -> Result<(), CollectiveError> {
        check_reduce(op, layout, self, partials, out).map_err(|error| self.shared.fail(error))?;
        let me = self.shared.rank;
        let shape = Shape::new::<T>(layout, me, out.len());
        let sign = digest(&[1, T::BYTES as u64, out.len() as u64, layout.digest()], &[]);
        let len = shape.scratch_len();
        let mut lane = self.lane(op);
        self.run(op, sign, |scratch| Reduce::new(&shape, layout, partials, out, scratch.take(len)), &mut lane)?;
        Ok(())
    }
}

impl Collective for TcpMesh {
    fn rank(&self) -> Rank {
        Rank(self.shared.rank as u32)
    }

    fn world(&self) -> u32 {
        self.shared.controls.len() as u32
    }

    fn reduce_f32(
        &self,
        op: &Op,
        layout: &Layout,
        partials: &[&[f32]],
        out: &mut [f32],
    ) -> Result<(), CollectiveError> {
        self.reduce(op, layout, partials, out)
    }

    fn reduce_f64(
        &self,
        op: &Op,
        layout: &Layout,
        partials: &[&[f64]],
        out: &mut [f64],
    ) -> Result<(), CollectiveError> {
        self.reduce(op, layout, partials, out)
    }

    fn broadcast(&self, op: &Op, root: Rank, bytes: &mut [u8]) -> Result<(), CollectiveError> {
        check_root(op, root, self).map_err(|error| self.shared.fail(error))?;
        let (me, world) = (self.shared.rank, self.world() as usize);
        let sign = digest(&[2, u64::from(root.0), bytes.len() as u64], &[]);
        let mut lane = self.lane(op);
        self.run(op, sign, |_| Broadcast::new(me, root.0 as usize, world, bytes), &mut lane)?;
        Ok(())
    }

    fn all_gather(&self, op: &Op, mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        let (me, world) = (self.shared.rank, self.world() as usize);
        let make = |_| Gather::new(me, world, mine);
        self.run(op, digest(&[3], &[]), make, &mut self.lane(op)).map(Gather::into_messages)
    }

    fn abort(&self) {
        self.shared.fail(CollectiveError::Aborted);
    }
}
