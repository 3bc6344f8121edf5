//! Softmax cross-entropy where the logits are.

use lockstep_torch::TorchError;
use tch::{Kind, Tensor};

/// What the samples of a batch are to be told as: f64 `[n, 3]`, class, the class of the rest, the first one's share.
pub const TARGET: i64 = 3;

/// `[Σ cross-entropy, wrong, wrong in the best five]` (f64) of logits `[n, k]`, and the gradient of the mean over `batch`.
/// `smoothing` is the share of all classes alike. A mixed sample is judged by the class with the larger share; a tie goes to
/// the lower class; a NaN is wrong.
pub fn cross_entropy(
    logits: &Tensor,
    targets: &Tensor,
    smoothing: f64,
    batch: f64,
) -> Result<(Tensor, Tensor), TorchError> {
    let (n, k) = logits.size2()?;
    let wide = logits.f_to_kind(Kind::Double)?;
    let log_p = wide.f_log_softmax(1, Kind::Double)?;
    let column = |i: i64| targets.f_narrow(1, i, 1);
    let (label, other, keep) = (column(0)?.f_to_kind(Kind::Int64)?, column(1)?.f_to_kind(Kind::Int64)?, column(2)?);
    let rest = keep.f_neg()?.f_add_scalar(1.0)?;
    // What has no share is left out, and not multiplied by 0: it may be infinite.
    let own = log_p.f_gather(1, &label, false)?;
    let both = own.f_mul(&keep)?.f_add(&log_p.f_gather(1, &other, false)?.f_mul(&rest)?)?;
    let mut told = both.f_where_self(&keep.f_lt(1.0)?, &own)?;
    let even = smoothing / k as f64;
    if smoothing > 0.0 {
        let all = log_p.f_sum_dim_intlist([1i64].as_slice(), true, Kind::Double)?.f_mul_scalar(even)?;
        told = told.f_mul_scalar(1.0 - smoothing)?.f_add(&all)?;
    }
    let loss = told.f_sum(Kind::Double)?.f_neg()?;
    let judged = label.f_where_self(&keep.f_ge(0.5)?, &other)?;
    let own = wide.f_gather(1, &judged, false)?;
    let classes = Tensor::f_arange(k, (Kind::Int64, logits.device()))?.f_view([1, k])?;
    let tie = wide.f_eq_tensor(&own)?.f_logical_and(&classes.f_lt_tensor(&judged)?)?;
    let ahead = wide.f_gt_tensor(&own)?.f_logical_or(&tie)?.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Int64)?;
    let lost = own.f_isnan()?.f_view([n])?;
    let behind = |most: i64| ahead.f_gt(most)?.f_logical_or(&lost)?.f_sum(Kind::Double);
    let (wrong, wrong_top5) = (behind(0)?, behind(4)?);
    let hot = |class: &Tensor, share: &Tensor| classes.f_eq_tensor(class)?.f_to_kind(Kind::Double)?.f_mul(share);
    let shares = hot(&label, &keep)?.f_add(&hot(&other, &rest)?)?;
    let target = shares.f_mul_scalar(1.0 - smoothing)?.f_add_scalar(even)?;
    let gradient = log_p.f_exp()?.f_sub(&target)?.f_div_scalar(batch)?.f_to_kind(logits.kind())?;
    Ok((Tensor::f_stack(&[loss, wrong, wrong_top5], 0)?, gradient))
}

#[cfg(test)]
mod tests {
    use lockstep_data::Partner;
    use tch::Device;

    use super::*;
    use crate::exec::{self, Targets};

    /// The replica on the CPU, to rounding: plain, smoothed, mixed, both; ties and a NaN.
    #[test]
    fn it_is_the_loss_of_the_cpu() {
        let (n, k, batch) = (5_usize, 7_usize, 20.0);
        let mut values: Vec<f64> = (0..n * k).map(|i| f64::from((i * 37 % 23) as i32) / 4.0 - 2.0).collect();
        values[3] = values[5];
        let labels = [3_i64, 0, 6, 2, 2];
        let mixed: Vec<Partner> =
            [(0, 1.0), (5, 0.3), (6, 0.75), (1, 0.5), (4, 0.0)].map(|(label, keep)| Partner { label, keep }).to_vec();
        for (partners, smoothing) in [(&[][..], 0.0), (&[][..], 0.1), (&mixed[..], 0.0), (&mixed[..], 0.1)] {
            let mut want = vec![0.0_f64; values.len()];
            let targets = Targets { labels: &labels, partners, smoothing };
            let counts = exec::cross_entropy(&values, targets, batch, Some(&mut want));
            let rows: Vec<f64> = (0..n)
                .flat_map(|i| {
                    let Partner { label, keep } =
                        partners.get(i).copied().unwrap_or(Partner { label: labels[i], keep: 1.0 });
                    [labels[i] as f64, label as f64, keep]
                })
                .collect();
            let targets = Tensor::from_slice(&rows).view([n as i64, TARGET]);
            let logits = Tensor::from_slice(&values).view([n as i64, k as i64]).to_device(Device::Cpu);
            let (sums, gradient) = cross_entropy(&logits, &targets, smoothing, batch).unwrap();
            let have: Vec<f64> = Vec::try_from(&sums).unwrap();
            assert!((have[0] - counts.loss).abs() < 1e-12, "{} and {}, smoothing {smoothing}", have[0], counts.loss);
            assert_eq!((have[1] as u64, have[2] as u64), (counts.wrong, counts.wrong_top5), "smoothing {smoothing}");
            let gradient: Vec<f64> = Vec::try_from(gradient.reshape([-1])).unwrap();
            assert!(gradient.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-15), "smoothing {smoothing}");
        }
    }
}
