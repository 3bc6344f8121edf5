//! Settings of the process and of the calling thread.

use std::ffi::{CStr, CString};

use crate::{TorchError, sys};

/// Lowers libtorch and oneDNN to an instruction set of `lockstep_proto::isa::LADDER`. Call it before the first tensor:
/// both read their settings once. A name above what the CPU has changes nothing.
///
/// # Errors
/// An unknown name.
pub fn limit_isa(name: &str) -> Result<(), TorchError> {
    let (aten, onednn) = match name {
        "sse4.1" => ("default", "SSE41"),
        "avx2" => ("avx2", "AVX2"),
        "avx512" => ("avx512", "AVX512_CORE_VNNI"),
        "avx512_bf16" => ("avx512", "AVX512_CORE_BF16"),
        "amx" => ("avx512", "AVX512_CORE_AMX"),
        _ => return Err(TorchError::new(format!("unknown instruction set `{name}`"))),
    };
    for (key, value) in [("ATEN_CPU_CAPABILITY", aten), ("ONEDNN_MAX_CPU_ISA", onednn)] {
        let (Ok(key), Ok(value)) = (CString::new(key), CString::new(value)) else { continue };
        // SAFETY: both are NUL-terminated. The caller has not started computing, so libtorch is not reading the
        // environment now.
        unsafe { sys::ls_set_env(key.as_ptr(), value.as_ptr()) };
    }
    Ok(())
}

/// Makes the allocator keep large blocks, in one arena, instead of mapping and faulting them in anew each step.
/// Call it first thing in the process.
pub fn keep_memory() {
    // SAFETY: mallopt may be called at any time.
    unsafe { sys::ls_keep_memory() }
}

/// Sets the number of intra-op threads of the calling thread (OpenMP keeps it per thread).
///
/// # Errors
/// What libtorch says of a number below 1.
pub fn set_threads(threads: i32) -> Result<(), TorchError> {
    // SAFETY: no pointers.
    TorchError::check(unsafe { sys::ls_set_threads(threads) })
}

/// Number of intra-op threads of the calling thread.
pub fn num_threads() -> i32 {
    // SAFETY: no pointers.
    unsafe { sys::ls_threads() }
}

/// ATen's kernel set in use: `DEFAULT`, `AVX2`, `AVX512`. Fixes it, so call it after [`limit_isa`].
pub fn capability() -> String {
    // SAFETY: a static string.
    unsafe { CStr::from_ptr(sys::ls_capability()) }.to_string_lossy().into_owned()
}
