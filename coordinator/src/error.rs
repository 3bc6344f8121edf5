//! Why a coordinator does not start, and the exit code of each.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use lockstep_proto::exit::ExitCode;
use lockstep_proto::wire::TlsError;

use crate::engine::EngineError;
use crate::run_dir::RunDirError;
use crate::store::StoreError;

/// Why a coordinator does not start.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    /// The run directory cannot be used.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The history cannot be continued.
    #[error("{error}{}", bad.iter().map(|reason| format!("; {reason}")).collect::<String>())]
    Engine {
        /// What the engine says.
        error: EngineError,
        /// What is wrong with each checkpoint.
        bad: Vec<String>,
    },
    /// The address is taken, or not this host's.
    #[error("cannot listen on {address}: {error}; choose another --listen, port 0 takes any that is free")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
    /// Open to the network without a secret.
    #[error(
        "{address} is reachable from other machines; set a token (--token, LOCKSTEP_TOKEN), or say --insecure if \
         everyone who reaches it may steer the run"
    )]
    Exposed {
        /// What was asked for.
        address: SocketAddr,
    },
    /// Certificates that are of no use.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// What is in them.
    #[error("TLS: {0}; check that --tls-cert, --tls-key and --tls-ca hold PEM, and that the key is the certificate's")]
    BadTls(tonic::transport::Error),
    /// A file of the coordinator's own, or a thread, cannot be made.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

impl CoordinatorError {
    /// What the process exits with.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::RunDir(error) => error.exit_code(),
            Self::Store(error) => error.exit_code(),
            Self::Engine { error, .. } => error.exit_code(),
            Self::Listen { .. } | Self::Io { .. } => ExitCode::CantCreate,
            Self::Exposed { .. } | Self::BadTls(_) => ExitCode::Usage,
            Self::Tls(error) => error.exit_code(),
        }
    }
}
