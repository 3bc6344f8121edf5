//! An average of the weights (Polyak & Juditsky 1992; as exponential as torchvision's): part of the state, so that it is
//! saved, healed and hashed with it, and the same bits on any number of workers.
//!
//! BatchNorm's running statistics are averaged with the weights and by the same rule: those of the trained weights would
//! not be those of the averaged ones.

use lockstep_proto::ids::{Epoch, Step};
use lockstep_proto::recipe::Train;
use lockstep_torch::TorchError;
use tch::Tensor;

use crate::exec::running_update;
use crate::number::Number;
use crate::state::{Running, State};

/// What the tensors of an average are called in a checkpoint: `ema.<parameter>`.
pub const PREFIX: &str = "ema.";

/// Averaged parameters and running statistics.
#[derive(Debug)]
pub struct Average {
    /// Flat, in the layout of the parameters.
    pub values: Tensor,
    /// By norm layer.
    pub running: Vec<Running>,
}

impl State {
    /// Keeps an average from now on, which begins as the weights are.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn keep_average(&mut self) -> Result<(), TorchError> {
        let mut values = self.master.f_empty_like()?;
        values.f_copy_(&self.master)?;
        self.average = Some(Average { values, running: self.running.clone() });
        Ok(())
    }

    /// The average, where one is kept, becomes a copy of the weights.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn restart_average(&mut self) -> Result<(), TorchError> {
        if let Some(average) = &mut self.average {
            average.values.f_copy_(&self.master)?;
            average.running.clone_from(&self.running);
        }
        Ok(())
    }

    /// Takes in the weights after a step, if it is one after which that is done.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn update_average<A: Number>(&mut self, train: &Train, epoch: Epoch, step: Step) -> Result<(), TorchError> {
        if self.average.is_none() || !step.0.is_multiple_of(train.ema_every) {
            return Ok(());
        }
        // Until then there is nothing to be averaged with but the weights that the run began with.
        if epoch.0 <= train.ema_after_epochs || step.0 == train.ema_every {
            return self.restart_average();
        }
        let Some(average) = &mut self.average else { return Ok(()) };
        let fresh = 1.0 - train.ema_decay;
        let _ = average.values.f_mul_scalar_(train.ema_decay)?;
        let _ = average.values.f_add_(&self.master.f_mul_scalar(fresh)?)?;
        let now: Vec<f64> =
            self.running.iter().flat_map(|layer| layer.mean.iter().chain(&layer.variance)).copied().collect();
        running_update::<A>(average.running.iter_mut(), &now, fresh);
        Ok(())
    }

    /// Runs `f` with the average in the place of the weights. They are back afterwards, whatever `f` says.
    ///
    /// # Errors
    /// What `f` or libtorch says.
    pub fn with_average<T, E: From<TorchError>>(&mut self, f: impl FnOnce(&Self) -> Result<T, E>) -> Result<T, E> {
        let Some(average) = self.average.take() else { return f(self) };
        let mut kept = self.master.f_empty_like().map_err(TorchError::from)?;
        kept.f_copy_(&self.master).map_err(TorchError::from)?;
        let kept_running = std::mem::replace(&mut self.running, average.running.clone());
        // In place: operations hold views of the weights.
        self.master.f_copy_(&average.values).map_err(TorchError::from)?;
        let result = f(self);
        self.master.f_copy_(&kept).map_err(TorchError::from)?;
        self.running = kept_running;
        self.average = Some(average);
        result
    }
}
