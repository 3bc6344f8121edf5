//! What can go wrong.

use std::io;
use std::path::PathBuf;

/// Why a kernel was not compiled or not launched.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A library that does not open.
    #[error("cannot open {library}: {why}; {remedy}")]
    Library {
        /// NVRTC or the driver.
        library: String,
        /// What the loader says, or where it was looked for.
        why: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A library that opens and is another one.
    #[error("{library} has no {symbol}: it is not the library that its name says, or too old")]
    Symbol {
        /// Which library.
        library: String,
        /// What it lacks.
        symbol: &'static str,
    },
    /// A device that is too old.
    #[error("compute capability {major}.{minor} is too old for these kernels, which need 8.0 (Ampere)")]
    TooOld {
        /// Of the device.
        major: u32,
        /// Of the device.
        minor: u32,
    },
    /// NVRTC refuses.
    #[error("NVRTC {version} cannot compile the kernels for {target}: {said}")]
    Compile {
        /// NVRTC's.
        version: String,
        /// Architecture.
        target: String,
        /// Its error and log.
        said: String,
    },
    /// The driver refuses.
    #[error("{call} failed with CUDA error {code}: {text}")]
    Driver {
        /// Function of the driver's interface, and for a launch the kernel.
        call: String,
        /// `CUresult`.
        code: i32,
        /// The driver's words.
        text: String,
    },
    /// Arguments that do not fit.
    #[error("{kernel}: {problem}")]
    Argument {
        /// Which kernel.
        kernel: &'static str,
        /// What does not fit.
        problem: String,
    },
    /// The cache of compiled kernels.
    #[error("cannot write {path}: {source}", path = path.display())]
    Cache {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl KernelError {
    /// Whether this machine has no use of the kernels (exit code 78), rather than the caller a bug.
    pub fn is_unusable(&self) -> bool {
        !matches!(self, Self::Argument { .. } | Self::Cache { .. })
    }
}
