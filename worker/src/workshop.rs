//! What computes in the product: replicas on the CPU.

use std::sync::Arc;

use lockstep_data::Dataset;
use lockstep_proto::exit::ExitCode;
use lockstep_proto::message::DataIdentity;
use lockstep_proto::recipe::Recipe;

use crate::compute::{Compute, ComputeError};
use crate::exit::Exit;
use crate::session::Workshop;
use crate::trainer;

/// Makes CPU replicas.
#[derive(Clone, Copy, Debug)]
pub struct CpuWorkshop {
    /// Compute threads of each replica.
    pub threads: usize,
}

impl Workshop for CpuWorkshop {
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
        let replica = trainer::cpu(recipe, data, self.threads)?;
        Ok(replica)
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
