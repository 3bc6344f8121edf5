//! What can go wrong with the libraries and with a communicator.

use std::time::Duration;

use lockstep_proto::exit::ExitCode;

/// Why a library cannot be used, or a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NcclError {
    /// No `libnccl.so.2`.
    #[error("no libnccl.so.2: tried {}; install PyTorch with CUDA or NCCL {minimum}, or name the file with --nccl", tried.join(", "), minimum = "2.18 or later")]
    Missing {
        /// Where it was looked for, with what came of it.
        tried: Vec<String>,
    },
    /// An NCCL that lacks what is needed.
    #[error("{path} is NCCL {}: 2.18 or later is needed; name another with --nccl", version_text(*version))]
    TooOld {
        /// The file.
        path: String,
        /// As `ncclGetVersion` gives it.
        version: i32,
    },
    /// A library without one of its functions.
    #[error("{library} has no {symbol}: it is not the library that its name says, or too old")]
    Symbol {
        /// The file.
        library: String,
        /// The function.
        symbol: &'static str,
    },
    /// No CUDA driver, or none that shows a device.
    #[error(
        "no CUDA device can be used: {cause}; install NVIDIA's driver, ask the launcher for a GPU, or use --devices cpu"
    )]
    NoDriver {
        /// What was tried, and what came of it.
        cause: String,
    },
    /// The CUDA driver refused a call. After this the context may not work again.
    #[error("{call} failed: {text} (CUDA error {code})")]
    Cuda {
        /// Which.
        call: &'static str,
        /// As the driver has it.
        code: i32,
        /// What the driver says of it.
        text: String,
    },
    /// NCCL gave an error, at once or later.
    #[error("{call} failed: {text} (NCCL error {code}{})", if detail.is_empty() { String::new() } else { format!(": {detail}") })]
    Call {
        /// Which.
        call: &'static str,
        /// As NCCL has it.
        code: i32,
        /// What NCCL says of the code.
        text: String,
        /// The last thing that NCCL warned of; may be empty or of another call.
        detail: String,
    },
    /// Something took too long.
    #[error("{call} did not end within {waited:.1?}")]
    Timeout {
        /// Which.
        call: &'static str,
        /// How long.
        waited: Duration,
    },
    /// The communicator was aborted.
    #[error("the communicator was aborted by this process")]
    Closed,
    /// Sizes that do not fit together.
    #[error("{call}: {what}")]
    Misuse {
        /// Which.
        call: &'static str,
        /// What is wrong.
        what: String,
    },
}

impl NcclError {
    /// What the process exits with when it cannot go on because of this.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Closed | Self::Misuse { .. } => ExitCode::Software,
            _ => ExitCode::Config,
        }
    }

    /// Whether another communicator in this process may still work.
    pub fn is_passing(&self) -> bool {
        // 1, `ncclUnhandledCudaError`, is CUDA's state, not the communicator's.
        match self {
            Self::Call { code, .. } => *code != 1,
            Self::Timeout { .. } | Self::Closed => true,
            _ => false,
        }
    }
}

/// `2.18.3` for 21803. Versions before 2.9 were coded otherwise.
pub(crate) fn version_text(code: i32) -> String {
    if code < 10_000 {
        format!("{}.{}.{}", code / 1000, code / 100 % 10, code % 100)
    } else {
        format!("{}.{}.{}", code / 10_000, code / 100 % 100, code % 100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_nccl_writes_them() {
        assert_eq!(
            ["2.8.3", "2.18.3", "2.28.9"],
            [2803, 21803, 22809].map(version_text).each_ref().map(String::as_str)
        );
    }

    #[test]
    fn what_a_person_must_mend_is_named_with_the_remedy() {
        let missing = NcclError::Missing { tried: vec!["/a".into(), "/b".into()] };
        assert_eq!(
            missing.to_string(),
            "no libnccl.so.2: tried /a, /b; install PyTorch with CUDA or NCCL 2.18 or later, or name the file with --nccl"
        );
        assert_eq!(missing.exit_code(), ExitCode::Config);
        let old = NcclError::TooOld { path: "x".into(), version: 21705 };
        assert_eq!(old.to_string(), "x is NCCL 2.17.5: 2.18 or later is needed; name another with --nccl");
    }
}
