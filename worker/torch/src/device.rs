//! Devices beside the CPU: their library, streams and events, through libtorch's own interfaces.
//!
//! The executable is linked against libtorch's CPU half only. What it needs for CUDA, [`open`] opens at run time, before
//! anything is asked of a device: afterwards libtorch has made up its mind that there is none.

use std::ffi::c_void;
use std::path::{Path, PathBuf};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::TorchError;

/// Name of the library that holds everything of CUDA.
pub const LIBRARY: &str = "libtorch_cuda.so";

mod sys {
    use std::ffi::{c_char, c_int, c_void};

    use torch_sys::C_tensor;

    #[repr(C)]
    pub struct Stream {
        _opaque: [u8; 0],
    }
    #[repr(C)]
    pub struct Event {
        _opaque: [u8; 0],
    }

    unsafe extern "C" {
        pub fn ls_stream_new(index: i64, high: c_int, out: *mut *mut Stream) -> c_int;
        pub fn ls_stream_free(stream: *mut Stream);
        pub fn ls_stream_use(stream: *const Stream) -> c_int;
        pub fn ls_stream_handle(stream: *const Stream, out: *mut *mut c_void) -> c_int;
        pub fn ls_stream_idle(stream: *const Stream, idle: *mut c_int) -> c_int;
        pub fn ls_event_new(out: *mut *mut Event) -> c_int;
        pub fn ls_event_free(event: *mut Event);
        pub fn ls_event_record(event: *mut Event, stream: *const Stream) -> c_int;
        pub fn ls_event_block(event: *const Event, stream: *const Stream) -> c_int;
        pub fn ls_event_reached(event: *const Event, reached: *mut c_int) -> c_int;
        pub fn ls_memory(tensor: *const C_tensor, address: *mut u64, bytes: *mut u64) -> c_int;
        pub fn ls_as_seen_by(pinned: *const C_tensor, index: i64, out: *mut *mut C_tensor) -> c_int;
        pub fn ls_record_stream(tensor: *const C_tensor, stream: *const Stream) -> c_int;
        pub fn ls_torch_version() -> *const c_char;
        pub fn ls_tf32(on: c_int) -> c_int;
        pub fn ls_deterministic(on: c_int) -> c_int;
    }
}

/// Opens CUDA's half of libtorch from the first of these folders that has it, for the rest of the process. It must be of
/// the version that this executable was linked with. Returns the folder; `None` if no folder has it.
///
/// # Errors
/// What the loader says of the one that is there: a library that it needs and does not find, another version.
pub fn open(folders: &[PathBuf]) -> Result<Option<&Path>, TorchError> {
    let Some(folder) = folders.iter().find(|folder| folder.join(LIBRARY).exists()) else { return Ok(None) };
    let file = folder.join(LIBRARY);
    let flags = libloading::os::unix::RTLD_NOW | libloading::os::unix::RTLD_GLOBAL;
    // SAFETY: libtorch's initialisers register operators and nothing else; they may run in any thread, once.
    let library = unsafe { libloading::os::unix::Library::open(Some(&file), flags) };
    let library = library.map_err(|error| {
        // What the loader says stands behind what failed.
        let why = std::error::Error::source(&error).map(ToString::to_string);
        TorchError::new(why.unwrap_or_else(|| error.to_string()))
    })?;
    // Operators are registered from it: it stays.
    std::mem::forget(library);
    Ok(Some(folder))
}

/// A queue of a device.
#[derive(Debug)]
pub struct Stream(*mut sys::Stream);

// SAFETY: a c10::Stream is a plain description (device, number); using one is a matter of the calling thread.
unsafe impl Send for Stream {}

impl Stream {
    /// One of device `index`'s pool; `high` goes before others.
    ///
    /// # Errors
    /// No such device, no driver.
    pub fn new(index: usize, high: bool) -> Result<Self, TorchError> {
        let mut out = std::ptr::null_mut();
        // SAFETY: `out` is a place; it is set on success.
        TorchError::check(unsafe { sys::ls_stream_new(index as i64, i32::from(high), &mut out) })?;
        Ok(Self(out))
    }

    /// What libtorch enqueues in this thread goes here from now on.
    ///
    /// # Errors
    /// What the device says.
    pub fn enter(&self) -> Result<(), TorchError> {
        // SAFETY: the stream is alive.
        TorchError::check(unsafe { sys::ls_stream_use(self.0) })
    }

    /// Says that `tensor`, which another stream may have made, is used here: its memory is not given to others before what
    /// is enqueued here now has happened.
    ///
    /// # Errors
    /// Not memory of this device.
    pub fn uses(&self, tensor: &Tensor) -> Result<(), TorchError> {
        // SAFETY: both are alive.
        TorchError::check(unsafe { sys::ls_record_stream(tensor.as_ptr(), self.0) })
    }

    /// The driver's handle of it.
    ///
    /// # Errors
    /// What the device says.
    pub fn handle(&self) -> Result<*mut c_void, TorchError> {
        let mut out = std::ptr::null_mut();
        // SAFETY: the stream is alive, `out` is a place.
        TorchError::check(unsafe { sys::ls_stream_handle(self.0, &mut out) })?;
        Ok(out)
    }

    /// Whether all that was enqueued has happened.
    ///
    /// # Errors
    /// What went wrong on the device meanwhile.
    pub fn is_idle(&self) -> Result<bool, TorchError> {
        let mut idle = 0;
        // SAFETY: the stream is alive, `idle` is a place.
        TorchError::check(unsafe { sys::ls_stream_idle(self.0, &mut idle) })?;
        Ok(idle != 0)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made by `ls_stream_new`, and freed once.
        unsafe { sys::ls_stream_free(self.0) }
    }
}

/// A point in a stream.
#[derive(Debug)]
pub struct Event(*mut sys::Event);

// SAFETY: CUDA's events may be used from any thread; there is no shared access without &self methods of C++ that only read.
unsafe impl Send for Event {}

impl Event {
    /// An event that has not been recorded.
    ///
    /// # Errors
    /// What the device says.
    pub fn new() -> Result<Self, TorchError> {
        let mut out = std::ptr::null_mut();
        // SAFETY: `out` is a place; it is set on success.
        TorchError::check(unsafe { sys::ls_event_new(&mut out) })?;
        Ok(Self(out))
    }

    /// Marks where `stream` is now.
    ///
    /// # Errors
    /// What the device says.
    pub fn record(&mut self, stream: &Stream) -> Result<(), TorchError> {
        // SAFETY: both are alive.
        TorchError::check(unsafe { sys::ls_event_record(self.0, stream.0) })
    }

    /// What `stream` is given from now on waits for this.
    ///
    /// # Errors
    /// What the device says.
    pub fn hold(&self, stream: &Stream) -> Result<(), TorchError> {
        // SAFETY: both are alive.
        TorchError::check(unsafe { sys::ls_event_block(self.0, stream.0) })
    }

    /// Whether it has happened.
    ///
    /// # Errors
    /// What went wrong on the device meanwhile.
    pub fn is_reached(&self) -> Result<bool, TorchError> {
        let mut reached = 0;
        // SAFETY: the event is alive, `reached` is a place.
        TorchError::check(unsafe { sys::ls_event_reached(self.0, &mut reached) })?;
        Ok(reached != 0)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `ls_event_new`, and freed once.
        unsafe { sys::ls_event_free(self.0) }
    }
}

/// Address and bytes of a dense tensor's memory, for libraries that take such.
///
/// # Errors
/// Holes.
pub fn memory(tensor: &Tensor) -> Result<(u64, u64), TorchError> {
    let (mut address, mut bytes) = (0, 0);
    // SAFETY: the tensor is alive, the others are places.
    TorchError::check(unsafe { sys::ls_memory(tensor.as_ptr(), &mut address, &mut bytes) })?;
    Ok((address, bytes))
}

/// Pinned memory of the host as a tensor of device `index`: what the host writes there, kernels read when they run.
///
/// # Errors
/// Memory that is not pinned.
pub fn as_seen_by(pinned: &Tensor, index: usize) -> Result<Tensor, TorchError> {
    let mut out: *mut C_tensor = std::ptr::null_mut();
    // SAFETY: the tensor is alive; the result keeps its memory.
    TorchError::check(unsafe { sys::ls_as_seen_by(pinned.as_ptr(), index as i64, &mut out) })?;
    // SAFETY: the call succeeded and stored a new tensor.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// The version of libtorch that this executable was built for, such as `2.11.0`.
pub fn version() -> String {
    // SAFETY: a constant string.
    unsafe { std::ffi::CStr::from_ptr(sys::ls_torch_version()) }.to_string_lossy().into_owned()
}

/// Whether fp32 products and convolutions may round their factors to TF32.
///
/// # Errors
/// What libtorch says.
pub fn allow_tf32(on: bool) -> Result<(), TorchError> {
    // SAFETY: a switch.
    TorchError::check(unsafe { sys::ls_tf32(i32::from(on)) })
}

/// Whether cuDNN keeps to algorithms that give the same bits every time; else it measures which is fastest.
///
/// # Errors
/// What libtorch says.
pub fn keep_bits(on: bool) -> Result<(), TorchError> {
    // SAFETY: a switch.
    TorchError::check(unsafe { sys::ls_deterministic(i32::from(on)) })
}
