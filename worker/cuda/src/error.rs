use std::path::PathBuf;

use lockstep_kernels::KernelError;
use lockstep_nccl::NcclError;
use lockstep_proto::exit::ExitCode;
use lockstep_torch::TorchError;

/// Why a device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// No `libtorch_cuda.so`.
    #[error(
        "no libtorch_cuda.so: looked {}; install PyTorch {wanted} with CUDA (`pip install torch=={wanted}`), or name its \
         folder with --libtorch", tried.join(", ")
    )]
    Missing {
        /// Where it was looked for.
        tried: Vec<String>,
        /// The version that this program needs.
        wanted: String,
    },
    /// A libtorch of another version.
    #[error("{} is libtorch {found}, and this program was built for {wanted}: name a PyTorch {wanted} with --libtorch", path.display())]
    Version {
        /// Its folder.
        path: PathBuf,
        /// Its version.
        found: String,
        /// The one that is needed.
        wanted: String,
    },
    /// It does not open.
    #[error("{} does not open: {why}; the `nvidia` packages that PyTorch installs must lie beside its folder", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the loader says.
        why: String,
    },
    /// The driver, or NCCL.
    #[error(transparent)]
    Driver(#[from] NcclError),
    /// Our kernels, or their compiler.
    #[error("{0}")]
    Kernels(String),
    /// libtorch.
    #[error(transparent)]
    Torch(#[from] TorchError),
}

impl From<KernelError> for CudaError {
    fn from(error: KernelError) -> Self {
        Self::Kernels(error.to_string())
    }
}

impl CudaError {
    /// What the process exits with when it cannot go on because of this.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Driver(error) => error.exit_code(),
            _ => ExitCode::Config,
        }
    }
}
