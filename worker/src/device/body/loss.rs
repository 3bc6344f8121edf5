//! Softmax cross-entropy where the logits are.

use lockstep_torch::TorchError;
use tch::{Kind, Tensor};

/// `[Σ cross-entropy, wrong, wrong in the best five]` (f64) of logits `[n, k]`, and the gradient of the mean over `batch`. A tie goes to the
/// lower class; a NaN is wrong.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor, batch: f64) -> Result<(Tensor, Tensor), TorchError> {
    let (n, k) = logits.size2()?;
    let wide = logits.f_to_kind(Kind::Double)?;
    let log_p = wide.f_log_softmax(1, Kind::Double)?;
    let index = labels.f_view([n, 1])?;
    let loss = log_p.f_gather(1, &index, false)?.f_sum(Kind::Double)?.f_neg()?;
    let own = wide.f_gather(1, &index, false)?;
    let classes = Tensor::f_arange(k, (Kind::Int64, logits.device()))?.f_view([1, k])?;
    let tie = wide.f_eq_tensor(&own)?.f_logical_and(&classes.f_lt_tensor(&index)?)?;
    let ahead = wide.f_gt_tensor(&own)?.f_logical_or(&tie)?.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Int64)?;
    let lost = own.f_isnan()?.f_view([n])?;
    let behind = |most: i64| ahead.f_gt(most)?.f_logical_or(&lost)?.f_sum(Kind::Double);
    let (wrong, wrong_top5) = (behind(0)?, behind(4)?);
    let target = classes.f_eq_tensor(&index)?.f_to_kind(Kind::Double)?;
    let gradient = log_p.f_exp()?.f_sub(&target)?.f_div_scalar(batch)?.f_to_kind(logits.kind())?;
    Ok((Tensor::f_stack(&[loss, wrong, wrong_top5], 0)?, gradient))
}
