//! The ranks of one generation, over two communicators.
//!
//! ```text
//! Core        shared by the mesh and its sentinel: control plane, communicators, rings, the first failure
//! NcclMesh    Core and a lane each: stream, events, staging buffers
//! ```
//! A failure, whoever finds it: remember it, tell the peers over the control plane, abort both communicators, in this
//! order. So whoever completes with junk because of the abort can know better.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lockstep_collective::{Collective as _, CollectiveError, Lane, Op, TcpMesh};
use lockstep_proto::ids::{Generation, Rank};

use crate::communicator::{Communicator, DataType};
use crate::device::{DevicePtr, Event, Stream};
use crate::error::NcclError;
use crate::ring::{Finding, Progress, Ring, compare, index};
use crate::runtime::Runtime;
use crate::staged::Staging;

/// How long a wait stays awake before it sleeps between looks, and the longest sleep.
const AWAKE: Duration = Duration::from_micros(100);
const NAP: Duration = Duration::from_micros(500);
/// How long the reason may take to arrive after something looked wrong here.
pub(crate) const LAST_WORD: Duration = Duration::from_millis(500);

/// The ends of a peer's rings, by lane, and when it told them.
pub(crate) type Told = (Instant, [Ring; 2]);

/// What the mesh and its sentinel share.
pub(crate) struct Core {
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) tcp: TcpMesh,
    pub(crate) generation: Generation,
    pub(crate) deadline: Duration,
    /// Both, once they have begun to be.
    pub(crate) comms: Mutex<Vec<Arc<Communicator>>>,
    /// This rank's, by lane.
    rings: [Mutex<Ring>; 2],
    /// What peers last told, by rank, and when.
    pub(crate) told: Mutex<Vec<Option<Told>>>,
    cause: OnceLock<CollectiveError>,
    /// Wakes the sentinel.
    pub(crate) wake: OwnedFd,
    pub(crate) is_over: AtomicBool,
}

impl Core {
    pub(crate) fn new(runtime: Arc<Runtime>, tcp: TcpMesh, deadline: Duration) -> Result<Self, CollectiveError> {
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        let wake = rustix::event::eventfd(0, flags)
            .map_err(|error| CollectiveError::Unusable { what: format!("no eventfd: {error}") })?;
        Ok(Self {
            generation: tcp.generation(),
            told: Mutex::new(vec![None; tcp.world() as usize]),
            runtime,
            tcp,
            deadline,
            comms: Mutex::default(),
            rings: Default::default(),
            cause: OnceLock::new(),
            wake,
            is_over: AtomicBool::new(false),
        })
    }

    pub(crate) fn rank(&self) -> Rank {
        self.tcp.rank()
    }

    pub(crate) fn world(&self) -> usize {
        self.tcp.world() as usize
    }

    pub(crate) fn ring(&self, lane: Lane) -> MutexGuard<'_, Ring> {
        self.rings[index(lane)].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn comms(&self) -> MutexGuard<'_, Vec<Arc<Communicator>>> {
        self.comms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails if the mesh has.
    pub(crate) fn check(&self) -> Result<(), CollectiveError> {
        self.cause.get().cloned().map_or(Ok(()), Err)
    }

    /// Records a failure, tells the peers, begins to abort. Returns the first failure.
    pub(crate) fn fail(&self, error: CollectiveError) -> CollectiveError {
        if self.cause.set(error.clone()).is_ok() {
            self.tcp.fail(error.clone());
            self.abort_all();
            self.rouse();
        }
        self.cause.get().cloned().unwrap_or(error)
    }

    fn abort_all(&self) {
        for comm in self.comms().iter() {
            comm.abort(self.runtime.closing);
        }
    }

    pub(crate) fn rouse(&self) {
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Takes a communicator that has begun to be: from now on a failure aborts it.
    pub(crate) fn adopt(&self, comm: Communicator) -> Arc<Communicator> {
        let comm = Arc::new(comm);
        self.comms().push(Arc::clone(&comm));
        if self.cause.get().is_some() {
            comm.abort(self.runtime.closing);
        }
        comm
    }

    /// What an error of the library means for this world.
    pub(crate) fn error(&self, operation: impl FnOnce() -> String, error: NcclError) -> CollectiveError {
        if matches!(error, NcclError::Closed) {
            // Whoever closes says why first.
            return self.cause.get().cloned().unwrap_or(CollectiveError::Aborted);
        }
        if let NcclError::Timeout { waited, .. } = error {
            return self.late(Lane::Norm, operation(), waited);
        }
        if error.is_passing() {
            return CollectiveError::Failed { rank: self.rank(), operation: operation(), what: error.to_string() };
        }
        let what = format!("{}: {error}", operation());
        self.runtime.spoil(what.clone());
        CollectiveError::Unusable { what }
    }

    /// Notes a call on a lane; gives its number.
    pub(crate) fn begin(&self, op: &Op, shape: u64, bytes: usize) -> u64 {
        self.ring(op.lane).begin(op, shape, bytes as u64)
    }

    /// What this rank is doing, for people: the oldest call that is not done.
    pub(crate) fn doing(&self) -> String {
        let of = |lane: Lane| self.ring(lane).open().map(|call| format!("{call} on the {lane} lane"));
        of(Lane::Norm).or_else(|| of(Lane::Buckets)).unwrap_or_else(|| "no operation".into())
    }

    /// Waits until `is_done`, looking at everything that may end the wait. `operation` for people.
    pub(crate) fn wait(
        &self,
        lane: Lane,
        operation: &dyn Fn() -> String,
        mut is_done: impl FnMut() -> Result<bool, NcclError>,
    ) -> Result<(), CollectiveError> {
        let start = Instant::now();
        let mut left = None;
        loop {
            self.check()?;
            if is_done().map_err(|error| self.fail(self.error(operation, error)))? {
                return Ok(());
            }
            let waited = start.elapsed();
            if waited < AWAKE {
                std::thread::yield_now();
                continue;
            }
            if waited >= self.deadline {
                return Err(self.fail(self.late(lane, operation(), waited)));
            }
            // A copy: whoever fails takes the list to abort them.
            let comms = self.comms().clone();
            for comm in &comms {
                comm.is_ready().map_err(|error| self.fail(self.error(operation, error)))?;
            }
            // Who has left may have done its part of this; so it is given a moment to arrive.
            if let Some(rank) = self.tcp.left()
                && left.get_or_insert_with(Instant::now).elapsed() > LAST_WORD
            {
                let how = "it left in good order, before this operation".into();
                return Err(self.fail(CollectiveError::PeerGone { rank, operation: operation(), how }));
            }
            std::thread::sleep(NAP.min(waited / 8));
        }
    }

    /// The deadline is over: who is it?
    fn late(&self, lane: Lane, operation: String, waited: Duration) -> CollectiveError {
        let finding = self.finding(lane);
        let stale = self.silent();
        let culprit = finding.culprit().or(stale);
        tracing::warn!(rank = %self.rank(), generation = %self.generation, "{operation} is late: {finding}");
        match (finding, culprit) {
            (Finding::Differs { rank, theirs, others }, _) => CollectiveError::Mismatch {
                rank,
                ours: others.to_string(),
                theirs: theirs.to_string(),
                detail: "as their last calls tell".into(),
                before: "unknown".into(),
            },
            (finding @ Finding::Behind { .. }, Some(rank)) => {
                CollectiveError::Deadline { rank, operation: format!("{operation} ({finding})"), waited }
            }
            (_, Some(rank)) => CollectiveError::Deadline { rank, operation, waited },
            (finding, None) => CollectiveError::Failed {
                rank: self.rank(),
                operation,
                what: format!("it did not end within {waited:.1?}: {finding}"),
            },
        }
    }

    /// What the rings tell: of this lane, or of the other where this one tells nothing, or names a rank that is itself kept
    /// waiting on the other.
    pub(crate) fn finding(&self, lane: Lane) -> Finding {
        let other = if lane == Lane::Norm { Lane::Buckets } else { Lane::Norm };
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let own = Lane::ALL.map(|lane| self.ring(lane).clone());
        let rings = |lane: Lane| -> Vec<Option<&Ring>> {
            let of = |rank: usize| match &told[rank] {
                _ if rank == self.rank().0 as usize => Some(&own[index(lane)]),
                told => told.as_ref().map(|(_, rings)| &rings[index(lane)]),
            };
            (0..told.len()).map(of).collect()
        };
        let (first, second) = (compare(&rings(lane)), compare(&rings(other)));
        // Whoever waits on one lane may be kept from calling on the other: it is not its fault there.
        let waits = |lane: Lane, rank: Rank| rings(lane)[rank.0 as usize].is_some_and(|ring| ring.open().is_some());
        match (first.culprit(), second.culprit()) {
            (None, Some(culprit)) if !waits(lane, culprit) => second,
            (Some(rank), Some(culprit)) if rank != culprit && waits(other, rank) => second,
            _ => first,
        }
    }

    /// A peer that has told nothing for long.
    fn silent(&self) -> Option<Rank> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_silent = |told: &Option<(Instant, [Ring; 2])>| match told {
            Some((when, _)) => when.elapsed() > self.deadline / 2,
            None => true,
        };
        let peers = told.iter().enumerate().filter(|(rank, _)| *rank != self.rank().0 as usize);
        peers.into_iter().find(|(_, told)| is_silent(told)).map(|(rank, _)| Rank(rank as u32))
    }
}

/// The ranks of one generation. Dropping it tells the peers that this rank left in good order, and ends the communicators.
///
/// Two kinds of use. Its [`Collective`](lockstep_collective::Collective) is for host slices and returns when they are
/// there, checked. [`enqueue_all_reduce`](Self::enqueue_all_reduce) is for device memory and only puts work on a stream;
/// what comes of it is junk if anything failed before the caller looked, so it needs a gate.
pub struct NcclMesh {
    pub(crate) core: Arc<Core>,
    pub(crate) lanes: [Mutex<Staging>; 2],
    pub(crate) sentinel: Option<JoinHandle<()>>,
}

impl NcclMesh {
    /// The generation that it belongs to.
    pub fn generation(&self) -> Generation {
        self.core.generation
    }

    /// The last 64 calls of a lane.
    pub fn ring(&self, lane: Lane) -> Ring {
        self.core.ring(lane).clone()
    }

    /// What the last calls of all ranks tell about why a lane does not get on.
    pub fn finding(&self, lane: Lane) -> Finding {
        self.core.finding(lane)
    }

    /// The communicator of a lane; a fixed order of calls on each is the caller's duty.
    pub fn communicator(&self, lane: Lane) -> Arc<Communicator> {
        Arc::clone(&self.core.comms()[index(lane)])
    }

    /// Fails if the mesh has: someone is gone, aborted, or an operation failed in the meantime.
    ///
    /// # Errors
    /// The first failure.
    pub fn check(&self) -> Result<(), CollectiveError> {
        self.core.check()
    }

    /// Puts the sum over all ranks of `count` elements of `at` in their place, as work on `stream`, and returns; in NCCL's
    /// order of addition. The number it gives goes to [`reached`](Self::reached). All ranks must call in the same order,
    /// over both lanes together: kernels of two communicators that wait for each other's places on the device would
    /// otherwise stand still.
    ///
    /// # Errors
    /// NCCL refuses, or the mesh has failed. Success says nothing about the sum.
    pub fn enqueue_all_reduce(
        &self,
        op: &Op,
        at: DevicePtr<'_>,
        (count, dtype): (usize, DataType),
        stream: &Stream,
    ) -> Result<u64, CollectiveError> {
        let core = &self.core;
        core.check()?;
        let shape = crate::frame::shape(&[4, dtype as u64, count as u64]);
        let number = core.begin(op, shape, count * dtype.bytes());
        self.communicator(op.lane)
            .all_reduce((at, at), count, dtype, stream)
            .map_err(|error| core.fail(core.error(|| op.to_string(), error)))?;
        core.ring(op.lane).reach(number, Progress::Enqueued);
        Ok(number)
    }

    /// Notes that the device has come past call `number`.
    pub fn reached(&self, lane: Lane, number: u64) {
        self.core.ring(lane).reach(number, Progress::Finished);
    }

    /// Waits until the stream has come to `event`, or something says that it will not.
    ///
    /// # Errors
    /// The first failure; the deadline, with who is behind.
    pub fn wait(&self, op: &Op, event: &Event) -> Result<(), CollectiveError> {
        self.core.wait(op.lane, &|| op.to_string(), || event.is_reached())
    }

    /// The same for work of several operations, named for people.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_for(&self, lane: Lane, what: &str, event: &Event) -> Result<(), CollectiveError> {
        self.core.wait(lane, &|| what.to_owned(), || event.is_reached())
    }

    /// Waits for the end of the communicators after [`abort`](lockstep_collective::Collective::abort) began it, when no
    /// graph holds them any more. Does nothing while they are open.
    ///
    /// # Errors
    /// They have not ended in time, or badly.
    pub fn join_abort(&self, within: Duration) -> Result<(), NcclError> {
        let comms = self.core.comms().clone();
        comms.iter().try_for_each(|comm| comm.join(within))
    }

    /// The device.
    pub fn runtime(&self) -> &Arc<Runtime> {
        &self.core.runtime
    }

    /// Ends the communicators and drains the streams; whether that came to an end.
    fn close(&mut self) -> Result<(), NcclError> {
        let core = &self.core;
        core.is_over.store(true, Ordering::Release);
        core.rouse();
        if let Some(sentinel) = self.sentinel.take() {
            let _ = sentinel.join(); // one that panicked has ended too
        }
        let (closing, failed) = (core.runtime.closing, core.check().is_err());
        let comms = std::mem::take(&mut *core.comms());
        for comm in &comms {
            if failed {
                comm.abort(closing); // begun already, but for one that came late
            } else {
                comm.finish(closing);
            }
        }
        for comm in &comms {
            comm.join(2 * closing)?;
        }
        let start = Instant::now();
        for lane in &mut self.lanes {
            let staging = lane.get_mut().unwrap_or_else(PoisonError::into_inner);
            while !staging.stream().is_idle()? {
                if start.elapsed() > closing {
                    return Err(NcclError::Timeout { call: "what was left on a stream", waited: closing });
                }
                std::thread::sleep(NAP);
            }
        }
        Ok(())
    }
}

impl Drop for NcclMesh {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            let generation = self.core.generation;
            self.core.runtime.spoil(format!(
                "the communicators of generation {generation} did not come to an end: {error}; this process has to"
            ));
            for lane in &mut self.lanes {
                // The device may still write there: what it writes to must stay.
                lane.get_mut().unwrap_or_else(PoisonError::into_inner).forget();
            }
        }
    }
}

/// Wakes at the latest when something is to be told.
pub(crate) fn listen(core: &Core, timeout: Duration) -> Result<(), CollectiveError> {
    core.tcp.listen(core.wake.as_fd(), timeout, &|| core.doing(), |rank, note| {
        if let Some(rings) = crate::ring::from_note(&note) {
            let mut told = core.told.lock().unwrap_or_else(PoisonError::into_inner);
            told[rank.0 as usize] = Some((Instant::now(), rings));
        }
    })
}
