//! Stochastic gradient descent: plain, with momentum, with Nesterov's.

use lockstep_proto::ids::Step;
use lockstep_proto::recipe::Optim;
use lockstep_torch::TorchError;

use super::{Optimizer, Pace, Part};

impl Optimizer {
    /// Sutskever et al. 2013 in the form that Torch7 and PyTorch use: `g += wd·p; v = µ·v + (1 − d)·g;
    /// p −= lr·(g + µ·v)` with Nesterov, `p −= lr·v` without. The first v is g, without dampening.
    pub(super) fn sgd(&self, part: &mut Part, pace: Pace) -> Result<(), TorchError> {
        self.penalise(part)?;
        self.descend(part, pace)
    }

    /// The rule without weight decay.
    pub(super) fn descend(&self, part: &mut Part, pace: Pace) -> Result<(), TorchError> {
        let Optim { momentum, nesterov, dampening, .. } = self.optim;
        let Part { master, buffers, gradient, .. } = part;
        let Some(buffer) = buffers.first_mut().filter(|_| momentum != 0.0) else {
            let _ = master.f_sub_(&gradient.f_mul_scalar(pace.lr)?)?;
            return Ok(());
        };
        let dampening = if pace.step == Step(1) { 0.0 } else { dampening };
        let _ = buffer.f_mul_scalar_(momentum)?;
        let _ = buffer.f_add_(&gradient.f_mul_scalar(1.0 - dampening)?)?;
        let update = if nesterov { gradient.f_add(&buffer.f_mul_scalar(momentum)?)? } else { buffer.shallow_clone() };
        let _ = master.f_sub_(&update.f_mul_scalar(pace.lr)?)?;
        Ok(())
    }
}
