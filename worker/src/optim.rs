//! Optimizers: a few operations on whole flat buffers, or on each stretch of them that has a rate of its own. Element by element, so bits do not depend on threads; where a
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
use crate::tuning::Span;

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
    /// What is updated, and at which part of the rate.
    spans: Vec<Span>,
}

/// A stretch of the state that is updated at one rate: views.
struct Part {
    master: Tensor,
    buffers: Vec<Tensor>,
    gradient: Tensor,
    /// Elements, from the first, that weight decay applies to.
    decayed: i64,
    /// Parameters that have a trust ratio, counted from the first element.
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
        let spans = vec![Span { start: 0, len: layout.len, lr_scale: 1.0 }];
        Self { optim: optim.clone(), decayed: decayed as i64, trusted, spans }
    }

    /// The same for these stretches alone; what lies between them stays as it is.
    pub fn over(self, spans: &[Span]) -> Self {
        Self { spans: spans.to_vec(), ..self }
    }

    /// Updates parameters and buffers. `gradient` (flat) is used up.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn update(&self, state: &mut State, gradient: &mut Tensor, pace: Pace) -> Result<(), TorchError> {
        for span in &self.spans {
            let mut part = self.part(state, gradient, *span)?;
            let pace = Pace { lr: pace.lr * span.lr_scale, ..pace };
            match self.optim.solver {
                Solver::Sgd => self.sgd(&mut part, pace),
                Solver::Rmsprop => self.rmsprop(&mut part, pace),
                Solver::Adagrad => self.adagrad(&mut part, pace),
                Solver::Adadelta => self.adadelta(&mut part, pace),
                Solver::Adam => self.adam(&mut part, pace),
                Solver::Adamw => self.adamw(&mut part, pace),
                Solver::Lars => self.lars(&mut part, pace),
                Solver::Lamb => self.lamb(&mut part, pace),
            }?;
        }
        Ok(())
    }

    fn part(&self, state: &State, gradient: &Tensor, span: Span) -> Result<Part, TorchError> {
        let (start, len) = (span.start as i64, span.len as i64);
        let view = |flat: &Tensor| -> Result<Tensor, TorchError> { Ok(flat.f_narrow(0, start, len)?) };
        let inside = |entry: &&Entry| (span.start..span.start + span.len).contains(&entry.offset);
        let moved = |entry: &Entry| Entry { offset: entry.offset - span.start, ..*entry };
        Ok(Part {
            master: view(&state.master)?,
            buffers: state.buffers.iter().map(|buffer| view(&buffer.values)).collect::<Result<_, _>>()?,
            gradient: view(gradient)?,
            decayed: (self.decayed - start).clamp(0, len),
            trusted: self.trusted.iter().filter(inside).map(moved).collect(),
        })
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
    fn penalise(&self, part: &Part) -> Result<(), TorchError> {
        let weight_decay = self.optim.weight_decay;
        if weight_decay != 0.0 {
            let mut decayed = part.gradient.f_narrow(0, 0, part.decayed)?;
            let penalty = part.master.f_narrow(0, 0, part.decayed)?.f_mul_scalar(weight_decay)?;
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
