//! Rules with a rate of its own for each parameter tensor: for very large batches. Without `decay_vectors`, vectors
//! (biases, γ, β) have neither decay nor a trust ratio, as is usual.

use lockstep_torch::{TorchError, squares};
use tch::Tensor;

use super::{Optimizer, Pace, Part};
use crate::program::Entry;

impl Optimizer {
    /// You et al. 2017 (arXiv:1708.03888), the learning rate outside the momentum as in SGD here: for each tensor
    /// `g ← λ·(g + wd·p)` with `λ = trust·‖p‖ / (‖g‖ + wd·‖p‖ + eps)`, 1 where a norm is 0; then momentum.
    pub(super) fn lars(&self, part: &mut Part, pace: Pace) -> Result<(), TorchError> {
        let (weight_decay, trust, eps) = (self.optim.weight_decay, self.optim.trust, self.optim.eps());
        for entry in &part.trusted {
            let (weights, mut own) = (slice(&part.master, entry)?, slice(&part.gradient, entry)?);
            let (p, g) = (squares(&weights)?.sqrt(), squares(&own)?.sqrt());
            if weight_decay != 0.0 {
                let _ = own.f_add_(&weights.f_mul_scalar(weight_decay)?)?;
            }
            if p > 0.0 && g > 0.0 {
                let _ = own.f_mul_scalar_(trust * p / (g + weight_decay * p + eps))?;
            }
        }
        self.descend(part, pace)
    }

    /// You et al. 2020 (arXiv:1904.00962), algorithm 2, φ the identity: for each tensor `u = Adam's update + wd·p`,
    /// `p −= lr·(‖p‖ / ‖u‖)·u`, the ratio 1 where a norm is 0.
    pub(super) fn lamb(&self, part: &mut Part, pace: Pace) -> Result<(), TorchError> {
        let update = self.moments(part, pace)?;
        for entry in &part.trusted {
            let (weights, mut own) = (slice(&part.master, entry)?, slice(&update, entry)?);
            if self.optim.weight_decay != 0.0 {
                let _ = own.f_add_(&weights.f_mul_scalar(self.optim.weight_decay)?)?;
            }
            let (p, u) = (squares(&weights)?.sqrt(), squares(&own)?.sqrt());
            if p > 0.0 && u > 0.0 {
                let _ = own.f_mul_scalar_(p / u)?;
            }
        }
        let _ = part.master.f_sub_(&update.f_mul_scalar(pace.lr)?)?;
        Ok(())
    }
}

fn slice(flat: &Tensor, entry: &Entry) -> Result<Tensor, TorchError> {
    Ok(flat.f_narrow(0, entry.offset as i64, entry.len as i64)?)
}
