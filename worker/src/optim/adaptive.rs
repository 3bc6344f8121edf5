//! Rules with a rate of its own for each element.

use lockstep_proto::recipe::{Formula, Optim};
use lockstep_torch::TorchError;
use tch::Tensor;

use super::{Optimizer, Pace, Part, blend, blend_squares};

impl Optimizer {
    /// Tieleman & Hinton 2012, as Torch7 and PyTorch: `v = α·v + (1 − α)·g²; p −= lr·g / (√v + eps)`.
    pub(super) fn rmsprop(&self, part: &mut Part, pace: Pace) -> Result<(), TorchError> {
        self.penalise(part)?;
        let Part { master, buffers, gradient, .. } = part;
        let [square_avg] = &mut buffers[..] else { return Ok(()) };
        blend_squares(square_avg, self.optim.alpha, gradient)?;
        let root = square_avg.f_sqrt()?.f_add_scalar(self.optim.eps())?;
        let _ = master.f_sub_(&gradient.f_div(&root)?.f_mul_scalar(pace.lr)?)?;
        Ok(())
    }

    /// Duchi et al. 2011, as Torch7 and PyTorch: `s += g²; p −= lr·g / (√s + eps)`.
    pub(super) fn adagrad(&self, part: &mut Part, pace: Pace) -> Result<(), TorchError> {
        self.penalise(part)?;
        let Part { master, buffers, gradient, .. } = part;
        let [sum] = &mut buffers[..] else { return Ok(()) };
        let _ = sum.f_add_(&gradient.f_mul(&*gradient)?)?;
        let root = sum.f_sqrt()?.f_add_scalar(self.optim.eps())?;
        let _ = master.f_sub_(&gradient.f_div(&root)?.f_mul_scalar(pace.lr)?)?;
        Ok(())
    }

    /// Zeiler 2012, algorithm 1, as Torch7 (lr = 1) and PyTorch: `v = ρ·v + (1 − ρ)·g²; δ = g·√(a + eps) / √(v + eps);
    /// p −= lr·δ; a = ρ·a + (1 − ρ)·δ²`.
    pub(super) fn adadelta(&self, part: &mut Part, pace: Pace) -> Result<(), TorchError> {
        self.penalise(part)?;
        let (rho, eps) = (self.optim.rho, self.optim.eps());
        let Part { master, buffers, gradient, .. } = part;
        let [square_avg, acc_delta] = &mut buffers[..] else { return Ok(()) };
        blend_squares(square_avg, rho, gradient)?;
        let root = square_avg.f_add_scalar(eps)?.f_sqrt()?;
        let delta = acc_delta.f_add_scalar(eps)?.f_sqrt()?.f_div(&root)?.f_mul(gradient)?;
        let _ = master.f_sub_(&delta.f_mul_scalar(pace.lr)?)?;
        blend_squares(acc_delta, rho, &delta)
    }

    /// Kingma & Ba 2015. `m = β₁·m + (1 − β₁)·g; v = β₂·v + (1 − β₂)·g²`, then
    /// `p −= lr·m̂ / (√v̂ + eps)` (PyTorch, as published) or `p −= lr·√c₂/c₁·m / (√v + eps)` (Torch7), where
    /// `c = 1 − βᵗ` corrects the start, `m̂ = m/c₁`, `v̂ = v/c₂`.
    pub(super) fn adam(&self, part: &mut Part, pace: Pace) -> Result<(), TorchError> {
        self.penalise(part)?;
        self.adapt(part, pace)
    }

    /// Loshchilov & Hutter 2019, as PyTorch: `p −= lr·wd·p`, then Adam's update with the gradient alone.
    pub(super) fn adamw(&self, part: &mut Part, pace: Pace) -> Result<(), TorchError> {
        if self.optim.weight_decay != 0.0 {
            let mut decayed = part.master.f_narrow(0, 0, part.decayed)?;
            let _ = decayed.f_mul_scalar_(1.0 - pace.lr * self.optim.weight_decay)?;
        }
        self.adapt(part, pace)
    }

    fn adapt(&self, part: &mut Part, pace: Pace) -> Result<(), TorchError> {
        let update = self.moments(part, pace)?;
        let _ = part.master.f_sub_(&update.f_mul_scalar(pace.lr)?)?;
        Ok(())
    }

    /// Takes g into both means; gives Adam's update for a rate of 1.
    pub(super) fn moments(&self, part: &mut Part, pace: Pace) -> Result<Tensor, TorchError> {
        let Optim { beta1, beta2, formula, .. } = self.optim;
        let eps = self.optim.eps();
        let Part { buffers, gradient, .. } = part;
        let [mean, squares] = &mut buffers[..] else { return Ok(gradient.f_zeros_like()?) };
        blend(mean, beta1, gradient)?;
        blend_squares(squares, beta2, gradient)?;
        let correction = |beta: f64| 1.0 - libm::pow(beta, pace.step.0 as f64);
        let (c1, c2) = (correction(beta1), correction(beta2));
        let root = squares.f_sqrt()?;
        let (root, scale) = match formula {
            Formula::Pytorch => (root.f_div_scalar(c2.sqrt())?, 1.0 / c1),
            Formula::Torch7 => (root, c2.sqrt() / c1),
        };
        Ok(mean.f_div(&root.f_add_scalar(eps)?)?.f_mul_scalar(scale)?)
    }
}
