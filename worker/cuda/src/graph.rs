//! CUDA graphs of libtorch's work, its memory, ranges for profilers: `graph.cpp`, a library that the executable carries in itself and opens from memory.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use lockstep_torch::TorchError;

/// Empty where it was built without CUDA's headers.
const IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/graph.so"));

type Raw = *mut c_void;

struct Functions {
    error: unsafe extern "C" fn() -> *const c_char,
    new: unsafe extern "C" fn(*mut Raw) -> c_int,
    begin: unsafe extern "C" fn(Raw) -> c_int,
    end: unsafe extern "C" fn(Raw) -> c_int,
    nodes: unsafe extern "C" fn(Raw, *mut u64) -> c_int,
    replay: unsafe extern "C" fn(Raw) -> c_int,
    free: unsafe extern "C" fn(Raw) -> c_int,
    memory: unsafe extern "C" fn(i64, *mut u64) -> c_int,
    reset_peaks: unsafe extern "C" fn(i64) -> c_int,
    push: unsafe extern "C" fn(*const c_char),
    pop: unsafe extern "C" fn(),
}

/// Makes graphs, and knows what memory libtorch holds.
#[derive(Clone)]
pub struct Graphs(Arc<Functions>);

/// Device memory of libtorch's allocator, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// In tensors now.
    pub allocated: u64,
    /// In tensors, at most since the last reset.
    pub allocated_peak: u64,
    /// Taken from the device now.
    pub reserved: u64,
    /// Taken from the device, at most since the last reset.
    pub reserved_peak: u64,
}

impl Graphs {
    /// Opens the library. [`open`](crate::open) must have been called.
    ///
    /// # Errors
    /// Built without CUDA's headers; CUDA's half of libtorch is not open, or another one.
    pub fn open() -> Result<Self, String> {
        if IMAGE.is_empty() {
            return Err("this program was built without CUDA's headers".into());
        }
        let name = |error: std::io::Error| format!("no memory for a library: {error}");
        let file = rustix::fs::memfd_create("lockstep-graphs", rustix::fs::MemfdFlags::CLOEXEC);
        let mut file = std::fs::File::from(file.map_err(|error| name(error.into()))?);
        file.write_all(IMAGE).map_err(name)?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        // SAFETY: the library is the one that the build made of `graph.cpp`; it has no initialisers but C++'s own.
        let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) };
        let library = library.map_err(|error| {
            let why = std::error::Error::source(&error).map(ToString::to_string);
            why.unwrap_or_else(|| error.to_string()).replace(&path, "graph.so")
        })?;
        // SAFETY: the types are those of `graph.cpp`.
        let functions = unsafe {
            Functions {
                error: function(&library, "lg_error")?,
                new: function(&library, "lg_new")?,
                begin: function(&library, "lg_begin")?,
                end: function(&library, "lg_end")?,
                nodes: function(&library, "lg_nodes")?,
                replay: function(&library, "lg_replay")?,
                free: function(&library, "lg_free")?,
                memory: function(&library, "lg_memory")?,
                reset_peaks: function(&library, "lg_reset_peaks")?,
                push: function(&library, "lg_push")?,
                pop: function(&library, "lg_pop")?,
            }
        };
        // Graphs keep its code.
        std::mem::forget(library);
        Ok(Self(Arc::new(functions)))
    }

    /// Captures what `f` has this thread enqueue on its current stream, and on those that come to wait for it. Nothing of
    /// it runs.
    ///
    /// # Errors
    /// What `f` says, or CUDA: something in it cannot be captured. The stream can be used as before.
    pub fn capture<E: From<TorchError>>(&self, f: impl FnOnce() -> Result<(), E>) -> Result<Graph, E> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` is a place.
        self.check(unsafe { (self.0.new)(&mut raw) })?;
        let graph = Graph { functions: Arc::clone(&self.0), raw };
        // SAFETY: the graph is alive.
        self.check(unsafe { (self.0.begin)(graph.raw) })?;
        let done = f();
        // SAFETY: the graph is alive. Also after a failure: it ends the capture, and says that it is none.
        let ended = self.check(unsafe { (self.0.end)(graph.raw) });
        done?;
        ended?;
        Ok(graph)
    }

    /// Memory that libtorch holds on device `ordinal`.
    ///
    /// # Errors
    /// No such device.
    pub fn usage(&self, ordinal: u32) -> Result<Usage, TorchError> {
        let mut out = [0_u64; 4];
        // SAFETY: four places.
        self.check(unsafe { (self.0.memory)(i64::from(ordinal), out.as_mut_ptr()) })?;
        let [allocated, allocated_peak, reserved, reserved_peak] = out;
        Ok(Usage { allocated, allocated_peak, reserved, reserved_peak })
    }

    /// From now on peaks are of what follows.
    ///
    /// # Errors
    /// No such device.
    pub fn reset_peaks(&self, ordinal: u32) -> Result<(), TorchError> {
        // SAFETY: a plain call.
        self.check(unsafe { (self.0.reset_peaks)(i64::from(ordinal)) })
    }

    /// Runs `f` within a range of this name on a profiler's timeline (NVTX).
    pub fn range<T>(&self, name: &CStr, f: impl FnOnce() -> T) -> T {
        // SAFETY: a string that ends with zero, read during the call.
        unsafe { (self.0.push)(name.as_ptr()) };
        let out = f();
        // SAFETY: ends what was begun in this thread.
        unsafe { (self.0.pop)() };
        out
    }

    fn check(&self, code: c_int) -> Result<(), TorchError> {
        check(&self.0, code)
    }
}

fn check(functions: &Functions, code: c_int) -> Result<(), TorchError> {
    if code == 0 {
        return Ok(());
    }
    // SAFETY: a string of this thread, alive until its next failure.
    let text = unsafe { CStr::from_ptr((functions.error)()) }.to_string_lossy();
    Err(TorchError::new(text.lines().next().unwrap_or_default()))
}

/// # Safety
/// `F` must be its type.
unsafe fn function<F: Copy>(library: &Library, name: &str) -> Result<F, String> {
    // SAFETY: the caller knows the type.
    let found = unsafe { library.get::<F>(name.as_bytes()) };
    found.map(|f| *f).map_err(|error| format!("graph.so: {error}"))
}

/// A captured graph, with the memory that its work uses.
pub struct Graph {
    functions: Arc<Functions>,
    raw: Raw,
}

// SAFETY: a graph may be used by any thread, one at a time: its methods take `&mut self`.
unsafe impl Send for Graph {}

impl Graph {
    /// Kernels, copies and waits in it.
    ///
    /// # Errors
    /// What the device says.
    pub fn num_nodes(&self) -> Result<u64, TorchError> {
        let mut nodes = 0;
        // SAFETY: the graph is alive, `nodes` is a place.
        check(&self.functions, unsafe { (self.functions.nodes)(self.raw, &mut nodes) })?;
        Ok(nodes)
    }

    /// Enqueues all of it on the thread's current stream.
    ///
    /// # Errors
    /// What the device says.
    pub fn replay(&mut self) -> Result<(), TorchError> {
        // SAFETY: the graph is alive.
        check(&self.functions, unsafe { (self.functions.replay)(self.raw) })
    }
}

impl Drop for Graph {
    /// Nothing may be running it: drain its stream before.
    fn drop(&mut self) {
        // SAFETY: made by `lg_new`, and freed once.
        if let Err(error) = check(&self.functions, unsafe { (self.functions.free)(self.raw) }) {
            tracing::warn!("a CUDA graph was not given back: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_cudas_half_of_libtorch_it_says_which_symbol_is_missing() {
        let Err(why) = Graphs::open() else { panic!("nothing has opened libtorch_cuda.so here") };
        assert!(why.contains("CUDA"), "{why}");
    }
}
