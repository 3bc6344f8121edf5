//! What computes in the product: replicas on CPUs or on devices.

use std::sync::Arc;

use lockstep_data::Dataset;
use lockstep_proto::exit::ExitCode;
use lockstep_proto::message::DataIdentity;
use lockstep_proto::recipe::Recipe;

use crate::compute::{Compute, ComputeError};
use crate::device::{DeviceTrainer, HostGpu};
use crate::exit::Exit;
use crate::session::Workshop;
use crate::trainer;

/// Where the replicas of a process compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Chunks side by side on CPU threads.
    Cpu,
    /// As on a device, on CPU tensors.
    Host,
}

/// Makes replicas.
#[derive(Clone, Copy, Debug)]
pub struct Replicas {
    /// Where they compute.
    pub place: Place,
    /// Compute threads of each replica; on a device, those that load.
    pub threads: usize,
}

impl Replicas {
    /// For the devices of a process, which are of one kind.
    pub fn new(devices: &[String], threads: usize) -> Self {
        let place = if devices.iter().any(|name| name == "host") { Place::Host } else { Place::Cpu };
        Self { place, threads }
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
        match self.place {
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
