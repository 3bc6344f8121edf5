//! Stochastic gradient descent: plain, with momentum, with Nesterov's.

use lockstep_proto::ids::Step;
use lockstep_proto::recipe::Optim;
use lockstep_torch::TorchError;
use tch::Tensor;

use super::{Optimizer, Pace, Part};
use crate::state::State;

impl Optimizer {
    /// Sutskever et al. 2013 in the form that Torch7 and PyTorch use: `g += wd·p; v = µ·v + (1 − d)·g;
    /// p −= lr·(g + µ·v)` with Nesterov, `p −= lr·v` without. The first v is g, without dampening.
    pub(super) fn sgd(&self, part: &mut Part, pace: Pace) -> Result<(), TorchError> {
        self.penalise(part)?;
        self.descend(part, pace)
    }

    /// The same with a rate that only the device knows (1 number), so that nothing waits for it.
    pub(crate) fn sgd_at(
        &self,
        state: &State,
        gradient: &Tensor,
        (step, rate): (Step, &Tensor),
    ) -> Result<(), TorchError> {
        for span in &self.spans {
            let mut part = self.part(state, gradient, *span)?;
            self.penalise(&part)?;
            let rate = rate.f_mul_scalar(span.lr_scale)?.f_to_kind(gradient.kind())?;
            self.descend_by(&mut part, step, |update| Ok(update.f_mul(&rate)?))?;
        }
        Ok(())
    }

    /// The rule without weight decay.
    pub(super) fn descend(&self, part: &mut Part, pace: Pace) -> Result<(), TorchError> {
        self.descend_by(part, pace.step, |update| Ok(update.f_mul_scalar(pace.lr)?))
    }

    fn descend_by(
        &self,
        part: &mut Part,
        step: Step,
        scaled: impl Fn(&Tensor) -> Result<Tensor, TorchError>,
    ) -> Result<(), TorchError> {
        let Optim { momentum, nesterov, dampening, .. } = self.optim;
        let Part { master, buffers, gradient, .. } = part;
        let Some(buffer) = buffers.first_mut().filter(|_| momentum != 0.0) else {
            let _ = master.f_sub_(&scaled(gradient)?)?;
            return Ok(());
        };
        let dampening = if step == Step(1) { 0.0 } else { dampening };
        let _ = buffer.f_mul_scalar_(momentum)?;
        let _ = buffer.f_add_(&gradient.f_mul_scalar(1.0 - dampening)?)?;
        let update = if nesterov { gradient.f_add(&buffer.f_mul_scalar(momentum)?)? } else { buffer.shallow_clone() };
        let _ = master.f_sub_(&scaled(&update)?)?;
        Ok(())
    }
}
