//! Between two passes of BatchNorm: from sums to coefficients. All in f64, rounded once at the end.
//!
//! Ioffe & Szegedy 2015, algorithm 1 and the gradients after it, over whatever samples the sums are of.

use crate::number::Number;
use crate::state::Running;

/// Mean and variance of each channel over `count` values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    /// Values a channel (samples × pixels).
    pub count: f64,
    /// Mean of each channel.
    pub mean: Vec<f64>,
    /// Biased variance of each channel.
    pub variance: Vec<f64>,
    /// 1 / √(variance + eps)
    pub inverse: Vec<f64>,
}

impl Statistics {
    /// From the sum of the chunks' messages `[n·mean, M2 + n·mean²]`. A count of zero gives mean 0, variance 0.
    pub fn from_sums(sums: &[f64], count: f64, eps: f64) -> Self {
        let (first, second) = sums.split_at(sums.len() / 2);
        let over = |x: f64| if count > 0.0 { x / count } else { 0.0 };
        let mean: Vec<f64> = first.iter().map(|s| over(*s)).collect();
        let variance: Vec<f64> = second.iter().zip(&mean).map(|(s, m)| (over(*s) - m * m).max(0.0)).collect();
        let inverse = variance.iter().map(|v| 1.0 / (v + eps).sqrt()).collect();
        Self { count, mean, variance, inverse }
    }

    /// Running statistics as they are, for evaluation.
    pub fn fixed(mean: &[f64], variance: &[f64], eps: f64) -> Self {
        let inverse = variance.iter().map(|v| 1.0 / (v + eps).sqrt()).collect();
        Self { count: 0.0, mean: mean.to_vec(), variance: variance.to_vec(), inverse }
    }

    /// Unbiased variance of channel `c`; biased where the count is 1.
    pub fn unbiased(&self, c: usize) -> f64 {
        if self.count > 1.0 { self.variance[c] * (self.count / (self.count - 1.0)) } else { self.variance[c] }
    }
}

/// `[mean, scale, bias]` of [`lockstep_torch::apply`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Forward<A>(pub Vec<A>);

/// `[mean, scale, slope, offset]` of [`lockstep_torch::gradient`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Backward<A>(pub Vec<A>);

/// Coefficients of the forward pass. The mean is subtracted before anything is scaled, and what rounding took from it
/// goes into the bias: a mean far larger than the deviation costs no precision.
pub fn forward<A: Number>(s: &Statistics, gamma: &[A], beta: &[A]) -> Forward<A> {
    let channels = s.mean.len();
    let mut out = vec![A::default(); 3 * channels];
    for c in 0..channels {
        let mean = A::from_f64(s.mean[c]);
        let scale = gamma[c].to_f64() * s.inverse[c];
        out[c] = mean;
        out[channels + c] = A::from_f64(scale);
        out[2 * channels + c] = A::from_f64(beta[c].to_f64() - (s.mean[c] - mean.to_f64()) * scale);
    }
    Forward(out)
}

/// Coefficients of the backward pass from the sums `[Σ g, Σ g·(x − rounded mean)]` over the same samples.
pub fn backward<A: Number>(s: &Statistics, gamma: &[A], sums: &[f64]) -> Backward<A> {
    let channels = s.mean.len();
    let mut out = vec![A::default(); 4 * channels];
    for c in 0..channels {
        let mean = A::from_f64(s.mean[c]);
        let rest = s.mean[c] - mean.to_f64();
        let scale = gamma[c].to_f64() * s.inverse[c];
        let sum = sums[c];
        let dot = sums[channels + c] - rest * sum;
        let slope = -scale * s.inverse[c] * s.inverse[c] * dot / s.count;
        out[c] = mean;
        out[channels + c] = A::from_f64(scale);
        out[2 * channels + c] = A::from_f64(slope);
        out[3 * channels + c] = A::from_f64(-scale * sum / s.count - slope * rest);
    }
    Backward(out)
}

/// Coefficients of the backward pass where statistics do not depend on the samples: the gradient is only scaled.
pub fn backward_fixed<A: Number>(s: &Statistics, gamma: &[A]) -> Backward<A> {
    let channels = s.mean.len();
    let mut out = vec![A::default(); 4 * channels];
    for c in 0..channels {
        out[c] = A::from_f64(s.mean[c]);
        out[channels + c] = A::from_f64(gamma[c].to_f64() * s.inverse[c]);
    }
    Backward(out)
}

/// One chunk's part of the gradients of γ and β, from its own message.
pub fn parameter_gradients<A: Number>(s: &Statistics, message: &[f64], d_gamma: &mut [A], d_beta: &mut [A]) {
    let channels = s.mean.len();
    for c in 0..channels {
        let rest = s.mean[c] - A::from_f64(s.mean[c]).to_f64();
        d_gamma[c] = A::from_f64(s.inverse[c] * (message[channels + c] - rest * message[c]));
        d_beta[c] = A::from_f64(message[c]);
    }
}

/// `running ← (1 − momentum)·running + momentum·batch`, rounded to the precision that checkpoints hold. `batch` is mean
/// and unbiased variance of every layer, one after another.
pub fn running_update<'a, A: Number>(running: impl Iterator<Item = &'a mut Running>, batch: &[f64], momentum: f64) {
    let values = running.flat_map(|layer| layer.mean.iter_mut().chain(&mut layer.variance));
    for (old, new) in values.zip(batch) {
        *old = A::from_f64((1.0 - momentum) * *old + momentum * new).to_f64();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_of_one_keeps_the_biased_variance_and_none_gives_zeros() {
        let one = Statistics::from_sums(&[3.0, 9.0], 1.0, 1e-5);
        assert_eq!((one.mean[0], one.variance[0], one.unbiased(0)), (3.0, 0.0, 0.0));
        let none = Statistics::from_sums(&[0.0, 0.0], 0.0, 1e-5);
        assert_eq!((none.mean[0], none.variance[0]), (0.0, 0.0));
        let two = Statistics::from_sums(&[4.0, 16.0], 2.0, 1e-5);
        assert_eq!((two.mean[0], two.variance[0], two.unbiased(0)), (2.0, 4.0, 8.0));
    }

    #[test]
    fn rounding_of_a_large_mean_is_made_good() {
        let s = Statistics { count: 4.0, mean: vec![1e4 + 1e-5], variance: vec![1.0], inverse: vec![1.0] };
        let Forward(f) = forward::<f32>(&s, &[2.0], &[0.5]);
        let x = f64::from(f[0]);
        let y = (x - f64::from(f[0])) * f64::from(f[1]) + f64::from(f[2]);
        assert!((y - (2.0 * (x - s.mean[0]) + 0.5)).abs() < 1e-6);
    }
}
