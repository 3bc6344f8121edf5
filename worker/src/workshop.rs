//! What computes in the product: replicas on CPUs or on devices.

use std::sync::Arc;
use std::time::Duration;

use lockstep_cuda::{CudaError, Device};
use lockstep_data::Dataset;
use lockstep_proto::exit::ExitCode;
use lockstep_proto::message::DataIdentity;
use lockstep_proto::recipe::{Precision, Recipe, Reduction};
use tch::Kind;

use crate::args::{CudaArgs, When};
use crate::compute::{Compute, ComputeError};
use crate::device::{CudaGpu, DeviceTrainer, HostGpu, Options};
use crate::exit::Exit;
use crate::session::Workshop;
use crate::trainer;

/// How long work of one GPU alone may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// Where the replicas of a process compute.
#[derive(Clone, Debug)]
pub enum Place {
    /// Chunks side by side on CPU threads.
    Cpu,
    /// As on a device, on CPU tensors.
    Host,
    /// On a GPU.
    Cuda {
        /// Of those that this process sees.
        ordinal: u32,
        /// Its libraries.
        args: CudaArgs,
    },
}

/// Makes replicas.
#[derive(Clone, Debug)]
pub struct Replicas {
    /// Where they compute.
    pub place: Place,
    /// Compute threads of each replica; on a device, those that load.
    pub threads: usize,
}

impl Replicas {
    /// For a process with one replica, or several on CPUs. Opens what a GPU needs, before anything is asked of one.
    ///
    /// # Errors
    /// A library of CUDA is missing, or another one (78).
    pub fn new(device: &str, threads: usize, args: &CudaArgs) -> Result<Self, Exit> {
        let place = match device.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse().ok()) {
            Some(ordinal) => {
                lockstep_cuda::open(args.libtorch.as_deref()).map_err(|error| {
                    let reason = format!("--devices {device}: {error}; `lockstep doctor` tells what else is missing");
                    Exit::new(error.exit_code(), reason)
                })?;
                Place::Cuda { ordinal, args: args.clone() }
            }
            None if device == "host" => Place::Host,
            None => Place::Cpu,
        };
        Ok(Self { place, threads })
    }
}

impl Workshop for Replicas {
    type Data = Arc<dyn Dataset>;

    fn limit_isa(&self, isa: &str) -> Result<(), Exit> {
        lockstep_torch::limit_isa(isa).map_err(|error| Exit::new(ExitCode::Config, error.to_string()))
    }

    fn load(&self, recipe: &Recipe) -> Result<(Self::Data, DataIdentity), Exit> {
        let data = open_data(recipe)?;
        let identity = data.identity().clone();
        Ok((data, identity))
    }

    fn build(&self, recipe: &Recipe, data: Self::Data) -> Result<Box<dyn Compute>, ComputeError> {
        match &self.place {
            Place::Cpu => {
                let replica = trainer::cpu(recipe, data, self.threads)?;
                Ok(replica)
            }
            Place::Host => {
                // One thread computes: what libtorch does within an operation is nobody's order then.
                lockstep_torch::set_threads(1).map_err(trainer::torch)?;
                let gpu = HostGpu::new().map_err(trainer::torch)?;
                Ok(Box::new(DeviceTrainer::new(recipe, data, Box::new(gpu), self.threads)?))
            }
            Place::Cuda { ordinal, args } => {
                let lost =
                    |error: CudaError| ComputeError::fatal(error.exit_code(), format!("cuda:{ordinal}: {error}"));
                let device = Device::new(*ordinal, args.libtorch.as_deref(), None).map_err(lost)?;
                let options = Options {
                    deterministic: recipe.train.reduction == Reduction::Canonical,
                    tf32: recipe.train.tf32,
                    graphs: args.graphs == When::Auto,
                    kernels: args.kernels == When::Auto && recipe.train.precision != Precision::Fp64,
                    kind: if recipe.train.precision == Precision::Bf16 { Kind::BFloat16 } else { Kind::Float },
                    patience: PATIENCE,
                };
                let gpu = CudaGpu::new(device, options)?;
                Ok(Box::new(DeviceTrainer::new(recipe, data, Box::new(gpu), self.threads)?))
            }
        }
    }
}

/// Opens the data of a recipe.
///
/// # Errors
/// Missing (66) or wrong (65).
pub fn open_data(recipe: &Recipe) -> Result<Arc<dyn Dataset>, Exit> {
    lockstep_data::open(&recipe.data, recipe.train.seed)
        .map_err(|error| Exit::new(error.exit_code(), error.to_string()))
}
