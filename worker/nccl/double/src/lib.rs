//! A test double with the ABI of NCCL and of the CUDA driver: host memory in place of a GPU, shared memory in place of
//! links. Ranks are processes or threads of one machine, eight at the most.
//!
//! ```text
//! libcuda.so.1   contexts that are nothing, memory that is malloc's, a stream is a thread with a queue
//! libnccl.so.2   a communicator is a file in /dev/shm; collectives are tasks of a stream
//! ```
//! `LOCKSTEP_NCCL_DOUBLE` makes it misbehave. Items are separated by `;`, words of an item by spaces:
//!
//! | item | what happens |
//! |---|---|
//! | `rank=1 call=7 do=hang` | the seventh collective call of rank 1 in this process: others get its data, its own never ends |
//! | `… do=mute` | it gives nothing and never ends |
//! | `… do=stall` | the call itself does not return |
//! | `… do=error` | the call returns `ncclInternalError` |
//! | `… do=async` | it never ends, and the communicator has an asynchronous error |
//! | `… do=die` | SIGKILL |
//! | `rank=1 init=2 do=…` | the same for its second initialisation (`hang`, `mute`, `error`, `die`) |
//! | `rank=1 abort=1 do=hang` | its first abort does not return |
//! | `junk` | whoever waits for a rank that aborted completes at once, with junk |
//! | `nodriver` | `cuInit` finds no device |
//!
//! What it cannot tell: how long a real abort takes, and anything about kernels.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

/// The stand-in for `libnccl.so.2`.
pub fn nccl() -> PathBuf {
    Path::new(env!("OUT_DIR")).join("libnccl.so.2")
}

/// The stand-in for `libcuda.so.1`.
pub fn driver() -> PathBuf {
    Path::new(env!("OUT_DIR")).join("libcuda.so.1")
}
