//! One NCCL communicator: every call returns at once and is polled; the end is on a thread of its own.

use std::ffi::c_int;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::device::{DevicePtr, Stream};
use crate::error::NcclError;
use crate::ffi::{Nccl, UniqueId};
use crate::runtime::Runtime;
use crate::sys::{Config, NCCL_IN_PROGRESS, NCCL_SUCCESS, NCCL_SUM, NcclResult, RawComm, RawId};

/// Pauses between polls: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_micros(20), Duration::from_millis(1));
/// Where nobody else says how long a communicator may take to end.
const LAST_RESORT: Duration = Duration::from_secs(10);

/// What elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataType {
    /// Bytes, which cannot be summed.
    U8,
    /// 32-bit float.
    F32,
    /// 64-bit float.
    F64,
    /// bfloat16.
    Bf16,
}

impl DataType {
    /// Bytes of one.
    pub fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// `ncclDataType_t`
    fn code(self) -> c_int {
        match self {
            Self::U8 => 1,
            Self::F32 => 7,
            Self::F64 => 8,
            Self::Bf16 => 9,
        }
    }
}

/// Whose end of a communicator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// This rank.
    pub rank: u32,
    /// Number of ranks.
    pub world: u32,
}

/// This rank's end of a communicator.
///
/// Operations only put work on a stream, and return once NCCL has taken it. Ends by [`abort`](Self::abort) or
/// [`finish`](Self::finish); dropped without either it is aborted.
#[derive(Debug)]
pub struct Communicator {
    handle: Arc<Handle>,
    place: Place,
    /// Of a call that NCCL takes its time for.
    deadline: Duration,
    ending: Mutex<Ending>,
}

#[derive(Debug, Default)]
struct Ending {
    /// Says how it went; gone once it was heard.
    result: Option<Receiver<Result<(), NcclError>>>,
    is_begun: bool,
}

/// What the thread that ends it needs too.
#[derive(Debug)]
struct Handle {
    nccl: Arc<Nccl>,
    launch: Arc<Mutex<()>>,
    state: Mutex<State>,
    /// Calls in flight became fewer.
    returned: Condvar,
}

#[derive(Debug)]
struct State {
    raw: RawComm,
    in_flight: u32,
    is_closed: bool,
}

// SAFETY: NCCL's communicators may be used by any thread, one at a time, which `launch` sees to; polls and the end do not
// run beside each other, which `in_flight` and `is_closed` see to.
unsafe impl Send for State {}

impl Handle {
    /// Makes one call, unless the communicator is at its end. The end waits for calls in flight, since it frees what they
    /// use.
    fn call(&self, f: impl FnOnce(&Nccl, RawComm) -> NcclResult) -> Result<NcclResult, NcclError> {
        let raw = {
            let mut state = self.lock();
            if state.is_closed {
                return Err(NcclError::Closed);
            }
            state.in_flight += 1;
            state.raw
        };
        let code = f(&self.nccl, raw);
        self.lock().in_flight -= 1;
        self.returned.notify_all();
        Ok(code)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn async_error(&self) -> Result<NcclResult, NcclError> {
        let mut code = NCCL_SUCCESS;
        let called = self.call(|nccl, raw| {
            // SAFETY: the communicator lives; writes one int.
            unsafe { (nccl.functions.async_error)(raw, &mut code) }
        })?;
        self.nccl.check("ncclCommGetAsyncError", called)?;
        Ok(code)
    }

    /// Lets nobody in any more, and takes the communicator once nobody is in it.
    fn close(&self, within: Duration) -> Result<RawComm, NcclError> {
        let mut state = self.lock();
        state.is_closed = true;
        let (mut state, timeout) = self
            .returned
            .wait_timeout_while(state, within, |state| state.in_flight > 0)
            .unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            return Err(NcclError::Timeout { call: "a call into NCCL", waited: within });
        }
        Ok(std::mem::replace(&mut state.raw, std::ptr::null_mut()))
    }
}

impl Communicator {
    /// Begins to make this rank's end of communicator `id`; [`is_ready`](Self::is_ready) tells when it is made. The device
    /// is the calling thread's current one. `max_ctas` bounds the blocks of its kernels; `deadline` is that of each call
    /// which NCCL takes its time for.
    ///
    /// # Errors
    /// What NCCL says at once: without a driver, for instance.
    pub fn begin(
        nccl: &Arc<Nccl>,
        launch: &Arc<Mutex<()>>,
        id: &UniqueId,
        place: Place,
        (max_ctas, deadline): (Option<u32>, Duration),
    ) -> Result<Self, NcclError> {
        let (mut raw, mut config) = (std::ptr::null_mut(), Config::new(max_ctas));
        let code = {
            let _launch = launch_lock(launch, deadline, &|| false)?;
            // SAFETY: writes one pointer; the configuration is NCCL 2.18's, and is copied.
            unsafe {
                (nccl.functions.init)(&mut raw, place.world as c_int, RawId(id.0), place.rank as c_int, &mut config)
            }
        };
        if code != NCCL_SUCCESS && code != NCCL_IN_PROGRESS {
            return Err(nccl.error("ncclCommInitRankConfig", code));
        }
        let handle = Handle {
            nccl: Arc::clone(nccl),
            launch: Arc::clone(launch),
            state: Mutex::new(State { raw, in_flight: 0, is_closed: false }),
            returned: Condvar::new(),
        };
        Ok(Self { handle: Arc::new(handle), place, deadline, ending: Mutex::default() })
    }

    /// The same with what a [`Runtime`] has.
    pub(crate) fn begin_on(
        runtime: &Runtime,
        id: &UniqueId,
        place: Place,
        limits: (Option<u32>, Duration),
    ) -> Result<Self, NcclError> {
        runtime.context.enter()?;
        Self::begin(&runtime.nccl, &runtime.launch, id, place, limits)
    }

    /// Whose end it is.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Whether NCCL is done with what it took its time for.
    ///
    /// # Errors
    /// It failed, or something that runs has.
    pub fn is_ready(&self) -> Result<bool, NcclError> {
        match self.handle.async_error()? {
            NCCL_SUCCESS => Ok(true),
            NCCL_IN_PROGRESS => Ok(false),
            code => Err(self.handle.nccl.error("a communicator", code)),
        }
    }

    /// Waits until it is [ready](Self::is_ready).
    ///
    /// # Errors
    /// As there; or the deadline is over.
    pub fn wait_ready(&self, call: &'static str) -> Result<(), NcclError> {
        let (start, mut pause) = (Instant::now(), PAUSES.0);
        while !self.is_ready()? {
            let waited = start.elapsed();
            if waited >= self.deadline {
                return Err(NcclError::Timeout { call, waited });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSES.1);
        }
        Ok(())
    }

    /// Puts the sum of everybody's `count` elements of `from` into `to`, which may be the same, in NCCL's order: the same
    /// on all ranks.
    ///
    /// # Errors
    /// As of [`group`](Self::group).
    pub fn all_reduce(
        &self,
        (from, to): (DevicePtr<'_>, DevicePtr<'_>),
        count: usize,
        dtype: DataType,
        stream: &Stream,
    ) -> Result<(), NcclError> {
        let call = "ncclAllReduce";
        fits(call, count * dtype.bytes(), &[from, to])?;
        self.launch(call, |nccl, raw| {
            // SAFETY: both have room for `count` elements; the communicator and the stream live.
            unsafe {
                let (from, to) = (from.as_ptr(), to.as_ptr());
                (nccl.functions.all_reduce)(from, to, count, dtype.code(), NCCL_SUM, raw, stream.raw())
            }
        })
    }

    /// Copies `bytes` bytes of `root`'s `from` to everybody's `to`.
    ///
    /// # Errors
    /// As of [`group`](Self::group).
    pub fn broadcast(
        &self,
        (from, to): (DevicePtr<'_>, DevicePtr<'_>),
        bytes: usize,
        root: u32,
        stream: &Stream,
    ) -> Result<(), NcclError> {
        let call = "ncclBroadcast";
        fits(call, bytes, &[from, to])?;
        self.peer(call, root)?;
        self.launch(call, |nccl, raw| {
            // SAFETY: both have room; the communicator and the stream live; the root exists.
            unsafe {
                let (from, to, u8) = (from.as_ptr(), to.as_ptr(), DataType::U8.code());
                (nccl.functions.broadcast)(from, to, bytes, u8, root as c_int, raw, stream.raw())
            }
        })
    }

    /// Puts everybody's `bytes` bytes of `from` into `to`, by rank.
    ///
    /// # Errors
    /// As of [`group`](Self::group).
    pub fn all_gather(
        &self,
        (from, to): (DevicePtr<'_>, DevicePtr<'_>),
        bytes: usize,
        stream: &Stream,
    ) -> Result<(), NcclError> {
        let call = "ncclAllGather";
        fits(call, bytes, &[from])?;
        fits(call, bytes * self.place.world as usize, &[to])?;
        self.launch(call, |nccl, raw| {
            // SAFETY: both have room; the communicator and the stream live.
            unsafe {
                (nccl.functions.all_gather)(from.as_ptr(), to.as_ptr(), bytes, DataType::U8.code(), raw, stream.raw())
            }
        })
    }

    /// Sends and receives at the same time: to and from whom, and what. Pieces of no bytes are left out.
    ///
    /// # Errors
    /// A size or a rank that cannot be; what NCCL says, at once or while it takes its time; the deadline; or the
    /// communicator was aborted.
    pub fn group(
        &self,
        sends: &[(u32, DevicePtr<'_>)],
        receives: &[(u32, DevicePtr<'_>)],
        stream: &Stream,
    ) -> Result<(), NcclError> {
        let call = "ncclGroupEnd";
        for &(peer, _) in sends.iter().chain(receives) {
            self.peer(call, peer)?;
        }
        let (u8, stream) = (DataType::U8.code(), stream.raw());
        self.launch(call, |nccl, raw| {
            let functions = &nccl.functions;
            // SAFETY: every piece is as long as it says; the communicator and the stream live; the peers exist. A group
            // is this thread's own, and always ended.
            unsafe {
                let mut code = (functions.group_start)();
                for (peer, from) in sends.iter().filter(|(_, from)| from.bytes() > 0) {
                    if code == NCCL_SUCCESS {
                        code = (functions.send)(from.as_ptr(), from.bytes(), u8, *peer as c_int, raw, stream);
                    }
                }
                for (peer, to) in receives.iter().filter(|(_, to)| to.bytes() > 0) {
                    if code == NCCL_SUCCESS {
                        code = (functions.recv)(to.as_ptr(), to.bytes(), u8, *peer as c_int, raw, stream);
                    }
                }
                let ended = (functions.group_end)();
                if code == NCCL_SUCCESS { ended } else { code }
            }
        })
    }

    /// One call that puts work on a stream, and the wait until NCCL has taken it.
    fn launch(&self, call: &'static str, f: impl FnOnce(&Nccl, RawComm) -> NcclResult) -> Result<(), NcclError> {
        let code = {
            let _launch = launch_lock(&self.handle.launch, self.deadline, &|| self.handle.lock().is_closed)?;
            self.handle.call(f)?
        };
        match code {
            NCCL_SUCCESS => Ok(()),
            NCCL_IN_PROGRESS => self.wait_ready(call),
            code => Err(self.handle.nccl.error(call, code)),
        }
    }

    fn peer(&self, call: &'static str, peer: u32) -> Result<(), NcclError> {
        if peer < self.place.world {
            return Ok(());
        }
        Err(NcclError::Misuse { call, what: format!("there is no rank {peer} in a world of {}", self.place.world) })
    }

    /// From any thread: begins to end it, whatever runs. Does not wait; see [`join`](Self::join).
    pub fn abort(&self, within: Duration) {
        self.end(within, |nccl, raw, _| {
            // SAFETY: nobody else has it any more. What is in progress there ends by itself.
            accepted(nccl, "ncclCommAbort", unsafe { (nccl.functions.abort)(raw) })
        });
    }

    /// Begins to end it in good order, once what was put on streams is done; where that takes too long, aborts it.
    pub fn finish(&self, within: Duration) {
        self.end(within, |nccl, raw, within| {
            let (start, mut code) = (Instant::now(), NCCL_IN_PROGRESS);
            // SAFETY: nobody else has it any more.
            let mut finalized = accepted(nccl, "ncclCommFinalize", unsafe { (nccl.functions.finalize)(raw) });
            while finalized.is_ok() && code == NCCL_IN_PROGRESS {
                // SAFETY: it lives; writes one int.
                finalized =
                    nccl.check("ncclCommGetAsyncError", unsafe { (nccl.functions.async_error)(raw, &mut code) });
                if start.elapsed() > within / 2 {
                    break;
                }
                std::thread::sleep(PAUSES.0);
            }
            // SAFETY: it lives, and is gone afterwards, either way.
            unsafe {
                if finalized.is_ok() && code == NCCL_SUCCESS {
                    accepted(nccl, "ncclCommDestroy", (nccl.functions.destroy)(raw))
                } else {
                    accepted(nccl, "ncclCommAbort", (nccl.functions.abort)(raw))
                }
            }
        });
    }

    fn end(
        &self,
        within: Duration,
        how: impl FnOnce(&Nccl, RawComm, Duration) -> Result<(), NcclError> + Send + 'static,
    ) {
        let mut ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut ending.is_begun, true) {
            return;
        }
        // At once, so that nothing begins any more even while the thread does.
        self.handle.lock().is_closed = true;
        let (said, result) = channel();
        let handle = Arc::clone(&self.handle);
        let work = move || {
            let ended = handle.close(within).and_then(|raw| how(&handle.nccl, raw, within));
            let _ = said.send(ended);
        };
        // Without a thread there is no end, which `join` tells.
        if std::thread::Builder::new().name("nccl-end".into()).spawn(work).is_ok() {
            ending.result = Some(result);
        }
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// It has not within the time, or badly: what it held is lost, and the device is not to be trusted.
    pub fn join(&self, within: Duration) -> Result<(), NcclError> {
        let mut ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        let late = Err(NcclError::Timeout { call: "the end of a communicator", waited: within });
        if !ending.is_begun {
            return Ok(());
        }
        let Some(result) = ending.result.take() else { return late };
        match result.recv_timeout(within) {
            Ok(ended) => {
                ending.is_begun = false;
                ended
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => late,
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        let is_open = !self.handle.lock().is_closed;
        if is_open {
            self.abort(LAST_RESORT);
            let _ = self.join(LAST_RESORT);
        }
    }
}

/// A call that frees the communicator cannot be polled: in progress is as good as done.
fn accepted(nccl: &Nccl, call: &'static str, code: NcclResult) -> Result<(), NcclError> {
    if code == NCCL_IN_PROGRESS { Ok(()) } else { nccl.check(call, code) }
}

fn fits(call: &'static str, bytes: usize, pointers: &[DevicePtr<'_>]) -> Result<(), NcclError> {
    match pointers.iter().find(|pointer| pointer.bytes() < bytes) {
        None => Ok(()),
        Some(pointer) => {
            Err(NcclError::Misuse { call, what: format!("{bytes} bytes in a piece of {}", pointer.bytes()) })
        }
    }
}

/// The lock of a device, unless another thread's call does not return.
fn launch_lock<'a>(
    launch: &'a Mutex<()>,
    deadline: Duration,
    is_over: &dyn Fn() -> bool,
) -> Result<std::sync::MutexGuard<'a, ()>, NcclError> {
    let start = Instant::now();
    loop {
        match launch.try_lock() {
            Ok(guard) => return Ok(guard),
            Err(std::sync::TryLockError::Poisoned(guard)) => return Ok(guard.into_inner()),
            Err(std::sync::TryLockError::WouldBlock) => {}
        }
        let waited = start.elapsed();
        if is_over() {
            return Err(NcclError::Closed);
        }
        if waited >= deadline {
            return Err(NcclError::Timeout { call: "another thread's call into NCCL", waited });
        }
        std::thread::yield_now();
    }
}
