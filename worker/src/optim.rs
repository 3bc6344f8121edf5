//! Optimizers: a few operations on whole flat buffers. Element by element, so bits do not depend on threads.

use lockstep_proto::recipe::{Optim, Solver};
use lockstep_torch::TorchError;
use tch::Tensor;

use crate::program::FlatLayout;
use crate::state::State;

/// A rule for turning a gradient into an update.
#[derive(Clone, Debug)]
pub struct Optimizer {
    optim: Optim,
    /// Elements that weight decay applies to.
    decayed: i64,
}

impl Optimizer {
    /// The recipe's rule over a layout.
    pub fn new(optim: &Optim, layout: &FlatLayout) -> Self {
        let decayed = if optim.decay_vectors { layout.len } else { layout.vectors };
        Self { optim: optim.clone(), decayed: decayed as i64 }
    }

    /// Updates parameters and momentum. `gradient` (flat) is used up.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn update(&self, state: &mut State, gradient: &mut Tensor, lr: f64) -> Result<(), TorchError> {
        match self.optim.solver {
            Solver::Sgd => self.sgd(state, gradient, lr),
        }
    }

    /// Sutskever et al. 2013 in the form that Torch7 and PyTorch use: `g += wd·p; v = µ·v + (1 − d)·g;
    /// p −= lr·(g + µ·v)` with Nesterov, `p −= lr·v` without.
    fn sgd(&self, state: &mut State, gradient: &mut Tensor, lr: f64) -> Result<(), TorchError> {
        let Optim { momentum, nesterov, dampening, weight_decay, .. } = self.optim;
        if weight_decay != 0.0 {
            let mut decayed = gradient.f_narrow(0, 0, self.decayed)?;
            let penalty = state.master.f_narrow(0, 0, self.decayed)?.f_mul_scalar(weight_decay)?;
            let _ = decayed.f_add_(&penalty)?;
        }
        if momentum == 0.0 {
            let _ = state.master.f_sub_(&gradient.f_mul_scalar(lr)?)?;
            return Ok(());
        }
        let _ = state.momentum.f_mul_scalar_(momentum)?;
        let _ = state.momentum.f_add_(&gradient.f_mul_scalar(1.0 - dampening)?)?;
        let update = if nesterov {
            gradient.f_add(&state.momentum.f_mul_scalar(momentum)?)?
        } else {
            state.momentum.shallow_clone()
        };
        let _ = state.master.f_sub_(&update.f_mul_scalar(lr)?)?;
        Ok(())
    }
}
