//! Contexts, streams, events and memory of a CUDA device, as far as collectives need them.

use std::ffi::{c_uint, c_void};
use std::marker::PhantomData;
use std::sync::Arc;

use crate::error::NcclError;
use crate::ffi::Driver;
use crate::sys::{CUDA_NOT_READY, CudaResult, RawContext, RawDevicePtr, RawEvent, RawStream};

/// `CU_STREAM_NON_BLOCKING`: does not wait for the default stream.
const NON_BLOCKING: c_uint = 1;
/// `CU_EVENT_DISABLE_TIMING`
const NO_TIMING: c_uint = 2;

/// The primary context of a device: the one that libtorch uses too.
#[derive(Debug)]
pub struct Context {
    driver: Arc<Driver>,
    device: i32,
    raw: RawContext,
}

// SAFETY: a context is a name that any thread may use; the driver synchronises.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Of device `ordinal` of those that this process sees.
    ///
    /// # Errors
    /// There is no such device, or it gives no context.
    pub fn new(driver: Arc<Driver>, ordinal: u32) -> Result<Self, NcclError> {
        let (mut device, mut raw) = (0, std::ptr::null_mut());
        let ordinal = i32::try_from(ordinal).unwrap_or(i32::MAX);
        // SAFETY: writes one int; then one pointer.
        unsafe {
            driver.check("cuDeviceGet", (driver.functions.device)(&mut device, ordinal))?;
            driver.check("cuDevicePrimaryCtxRetain", (driver.functions.context_retain)(&mut raw, device))?;
        }
        Ok(Self { driver, device, raw })
    }

    /// Makes it the calling thread's. Everything here does so itself; NCCL's functions want it done.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn enter(&self) -> Result<(), NcclError> {
        // SAFETY: the context is retained.
        self.check("cuCtxSetCurrent", unsafe { (self.driver.functions.context_set)(self.raw) })
    }

    fn check(&self, call: &'static str, code: CudaResult) -> Result<(), NcclError> {
        self.driver.check(call, code)
    }

    /// `Ok(false)` while it is not ready.
    fn is_ready(&self, call: &'static str, code: CudaResult) -> Result<bool, NcclError> {
        if code == CUDA_NOT_READY { Ok(false) } else { self.check(call, code).map(|()| true) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once; whatever lives in it keeps it alive.
        unsafe { (self.driver.functions.context_release)(self.device) };
    }
}

/// A queue of work on the device.
#[derive(Debug)]
pub struct Stream {
    context: Arc<Context>,
    raw: RawStream,
    is_own: bool,
}

// SAFETY: streams may be used from any thread; the driver synchronises.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A new one.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn new(context: &Arc<Context>) -> Result<Self, NcclError> {
        context.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes one pointer.
        context.check("cuStreamCreate", unsafe { (context.driver.functions.stream_create)(&mut raw, NON_BLOCKING) })?;
        Ok(Self { context: Arc::clone(context), raw, is_own: true })
    }

    /// One that belongs to someone else, such as libtorch's current one.
    ///
    /// # Safety
    /// `raw` is a `CUstream` (`cudaStream_t`) of this very context, and outlives the value and all work put on it.
    pub unsafe fn foreign(context: &Arc<Context>, raw: *mut c_void) -> Self {
        Self { context: Arc::clone(context), raw, is_own: false }
    }

    /// Whether everything on it is done.
    ///
    /// # Errors
    /// Something that was on it failed.
    pub fn is_idle(&self) -> Result<bool, NcclError> {
        self.context.enter()?;
        // SAFETY: the stream lives.
        self.context.is_ready("cuStreamQuery", unsafe { (self.context.driver.functions.stream_query)(self.raw) })
    }

    /// What is put on it from now on waits for the event's last record.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn wait_for(&self, event: &Event) -> Result<(), NcclError> {
        self.context.enter()?;
        // SAFETY: both live; no flags are defined.
        self.context
            .check("cuStreamWaitEvent", unsafe { (self.context.driver.functions.stream_wait)(self.raw, event.raw, 0) })
    }

    pub(crate) fn raw(&self) -> RawStream {
        self.raw
    }

    /// Copies the first `bytes` of `from`. They must not be touched before an event behind it.
    pub(crate) fn copy_in(&self, from: &HostBuffer, to: DevicePtr<'_>, bytes: usize) -> Result<(), NcclError> {
        assert!(bytes <= from.bytes && bytes <= to.bytes, "a copy within its buffers");
        self.context.enter()?;
        // SAFETY: both have as many bytes; the staging code drops neither before the stream is drained.
        self.context.check("cuMemcpyHtoDAsync", unsafe {
            (self.context.driver.functions.copy_in)(to.address, from.at, bytes, self.raw)
        })
    }

    /// Copies the first `bytes` of `from` to the start of `to`, which must not be touched before an event behind it.
    pub(crate) fn copy_out(&self, from: DevicePtr<'_>, to: &mut HostBuffer, bytes: usize) -> Result<(), NcclError> {
        assert!(bytes <= from.bytes && bytes <= to.bytes, "a copy within its buffers");
        self.context.enter()?;
        // SAFETY: as above.
        self.context.check("cuMemcpyDtoHAsync", unsafe {
            (self.context.driver.functions.copy_out)(to.at, from.address, bytes, self.raw)
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.is_own && self.context.enter().is_ok() {
            // SAFETY: made here, used no more. The driver lets go of it when its work is done.
            unsafe { (self.context.driver.functions.stream_destroy)(self.raw) };
        }
    }
}

/// A mark on a stream.
#[derive(Debug)]
pub struct Event {
    context: Arc<Context>,
    raw: RawEvent,
}

// SAFETY: as for streams.
unsafe impl Send for Event {}
// SAFETY: as for streams.
unsafe impl Sync for Event {}

impl Event {
    /// One that is not recorded yet, and so counts as reached.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn new(context: &Arc<Context>) -> Result<Self, NcclError> {
        context.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes one pointer.
        context.check("cuEventCreate", unsafe { (context.driver.functions.event_create)(&mut raw, NO_TIMING) })?;
        Ok(Self { context: Arc::clone(context), raw })
    }

    /// Puts it behind what is on the stream now.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn record(&self, stream: &Stream) -> Result<(), NcclError> {
        self.context.enter()?;
        // SAFETY: both live.
        self.context
            .check("cuEventRecord", unsafe { (self.context.driver.functions.event_record)(self.raw, stream.raw) })
    }

    /// Whether the stream has come to its last record.
    ///
    /// # Errors
    /// Something before it failed.
    pub fn is_reached(&self) -> Result<bool, NcclError> {
        self.context.enter()?;
        // SAFETY: the event lives.
        self.context.is_ready("cuEventQuery", unsafe { (self.context.driver.functions.event_query)(self.raw) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: made here, used no more; the driver lets go of it once it is reached.
            unsafe { (self.context.driver.functions.event_destroy)(self.raw) };
        }
    }
}

/// A piece of device memory: where, and how much.
#[derive(Clone, Copy, Debug)]
pub struct DevicePtr<'a> {
    address: RawDevicePtr,
    bytes: usize,
    lives: PhantomData<&'a ()>,
}

impl<'a> DevicePtr<'a> {
    /// Memory of someone else, such as a tensor's `data_ptr`.
    ///
    /// # Safety
    /// `bytes` bytes at `address` are memory of the device on which it is used. They stay so, and nobody else writes them
    /// (or reads them, where they are an output), until the stream has come past everything that it was used for, which
    /// may be later than `'a`.
    pub unsafe fn foreign(address: u64, bytes: usize) -> Self {
        Self { address, bytes, lives: PhantomData }
    }

    /// Its length.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A part of it.
    ///
    /// # Panics
    /// If it is not within.
    pub fn part(self, start: usize, bytes: usize) -> DevicePtr<'a> {
        assert!(start.checked_add(bytes).is_some_and(|end| end <= self.bytes), "a part within its memory");
        Self { address: self.address + start as u64, bytes, lives: PhantomData }
    }

    pub(crate) fn as_ptr(&self) -> *mut c_void {
        self.address as usize as *mut c_void
    }
}

/// Memory of the device. Dropping it waits for the device: keep it until its streams are drained.
#[derive(Debug)]
pub struct DeviceBuffer {
    context: Arc<Context>,
    address: RawDevicePtr,
    bytes: usize,
}

impl DeviceBuffer {
    /// Of as many bytes, at least one; contents are unspecified.
    ///
    /// # Errors
    /// The device has no more.
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, NcclError> {
        context.enter()?;
        let mut address = 0;
        // SAFETY: writes one address.
        context.check("cuMemAlloc", unsafe { (context.driver.functions.alloc)(&mut address, bytes.max(1)) })?;
        Ok(Self { context: Arc::clone(context), address, bytes })
    }

    /// All of it.
    pub fn ptr(&self) -> DevicePtr<'_> {
        DevicePtr { address: self.address, bytes: self.bytes, lives: PhantomData }
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: allocated here; the driver waits for work that uses it.
            unsafe { (self.context.driver.functions.free)(self.address) };
        }
    }
}

/// Memory of the host that the device copies from and to without the host's help. A copy from ordinary memory could block
/// the calling thread behind whatever hangs on the stream.
#[derive(Debug)]
pub struct HostBuffer {
    context: Arc<Context>,
    at: *mut c_void,
    bytes: usize,
}

// SAFETY: it owns its memory.
unsafe impl Send for HostBuffer {}
// SAFETY: it gives shared access by `&self` only to read.
unsafe impl Sync for HostBuffer {}

impl HostBuffer {
    /// Of as many bytes, zeros.
    ///
    /// # Errors
    /// The system has no more that can be pinned.
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, NcclError> {
        context.enter()?;
        let mut at = std::ptr::null_mut();
        // SAFETY: writes one pointer; then the memory that it points to.
        unsafe {
            context.check("cuMemHostAlloc", (context.driver.functions.host_alloc)(&mut at, bytes.max(1), 0))?;
            std::ptr::write_bytes(at.cast::<u8>(), 0, bytes);
        }
        Ok(Self { context: Arc::clone(context), at, bytes })
    }

    /// Its contents. Not while a copy to it is under way.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: allocated with as many bytes, initialised; `staged` reads only behind an event that was reached.
        unsafe { std::slice::from_raw_parts(self.at.cast(), self.bytes) }
    }

    /// Its contents. Not while a copy from or to it is under way.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.at.cast(), self.bytes) }
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: allocated here.
            unsafe { (self.context.driver.functions.host_free)(self.at) };
        }
    }
}
