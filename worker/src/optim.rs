//! Optimizers: a few operations on whole flat buffers. Element by element, so bits do not depend on threads; where a
//! norm is needed it is summed in one fixed order.
//!
//! Below, g is the gradient, p the parameters, t the step from 1, and all of it is per element. Padding stays zero: every
//! rule gives a zero update where g and its buffers are zero.

mod adaptive;
mod layerwise;
mod sgd;
#[cfg(test)]
mod tests;

use lockstep_proto::ids::Step;
use lockstep_proto::recipe::{Optim, Solver};
use lockstep_torch::TorchError;
use tch::Tensor;

use crate::program::{Entry, FlatLayout};
use crate::state::State;

/// Names of what a solver keeps, as checkpoints have them (`momentum.conv1.weight`): PyTorch's names.
pub fn buffers(solver: Solver) -> &'static [&'static str] {
    match solver {
        Solver::Sgd | Solver::Lars => &["momentum"],
        Solver::Rmsprop => &["square_avg"],
        Solver::Adagrad => &["sum"],
        Solver::Adadelta => &["square_avg", "acc_delta"],
        Solver::Adam | Solver::Adamw | Solver::Lamb => &["exp_avg", "exp_avg_sq"],
    }
}

/// A rule for turning a gradient into an update.
#[derive(Clone, Debug)]
pub struct Optimizer {
    optim: Optim,
    /// Elements that weight decay applies to.
    decayed: i64,
    /// Parameters that have a trust ratio.
    trusted: Vec<Entry>,
}

/// When a step is taken, and how far.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// From 1.
    pub step: Step,
    /// Learning rate.
    pub lr: f64,
}

impl Optimizer {
    /// The recipe's rule over a layout.
    pub fn new(optim: &Optim, layout: &FlatLayout) -> Self {
        let decayed = if optim.decay_vectors { layout.len } else { layout.vectors };
        let trusted = layout.entries.iter().filter(|entry| entry.offset < decayed).copied().collect();
        Self { optim: optim.clone(), decayed: decayed as i64, trusted }
    }

    /// Updates parameters and buffers. `gradient` (flat) is used up.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn update(&self, state: &mut State, gradient: &mut Tensor, pace: Pace) -> Result<(), TorchError> {
        match self.optim.solver {
            Solver::Sgd => self.sgd(state, gradient, pace),
            Solver::Rmsprop => self.rmsprop(state, gradient, pace),
            Solver::Adagrad => self.adagrad(state, gradient, pace),
            Solver::Adadelta => self.adadelta(state, gradient, pace),
            Solver::Adam => self.adam(state, gradient, pace),
            Solver::Adamw => self.adamw(state, gradient, pace),
            Solver::Lars => self.lars(state, gradient, pace),
            Solver::Lamb => self.lamb(state, gradient, pace),
        }
    }

    /// The norm of a gradient over all parameters, in f64 and always added in the same order; with `optim.clip_norm` = c a
    /// larger one is scaled to `c`, as PyTorch's `clip_grad_norm_` does: `g ← g·c / (norm + 1e-6)`.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn clip(&self, gradient: &mut Tensor) -> Result<f64, TorchError> {
        let norm = lockstep_torch::squares(gradient)?.sqrt();
        let scale = self.optim.clip_norm / (norm + 1e-6);
        if self.optim.clip_norm > 0.0 && scale < 1.0 {
            let _ = gradient.f_mul_scalar_(scale)?;
        }
        Ok(norm)
    }

    /// g += wd·p, where decay applies.
    fn penalise(&self, state: &State, gradient: &Tensor) -> Result<(), TorchError> {
        let weight_decay = self.optim.weight_decay;
        if weight_decay != 0.0 {
            let mut decayed = gradient.f_narrow(0, 0, self.decayed)?;
            let penalty = state.master.f_narrow(0, 0, self.decayed)?.f_mul_scalar(weight_decay)?;
            let _ = decayed.f_add_(&penalty)?;
        }
        Ok(())
    }
}

/// `buffer = share·buffer + (1 − share)·g`
fn blend(buffer: &mut Tensor, share: f64, gradient: &Tensor) -> Result<(), TorchError> {
    let _ = buffer.f_mul_scalar_(share)?;
    let _ = buffer.f_add_(&gradient.f_mul_scalar(1.0 - share)?)?;
    Ok(())
}

/// `buffer = share·buffer + (1 − share)·g²`
fn blend_squares(buffer: &mut Tensor, share: f64, gradient: &Tensor) -> Result<(), TorchError> {
    let squares = gradient.f_mul(gradient)?;
    blend(buffer, share, &squares)
}
