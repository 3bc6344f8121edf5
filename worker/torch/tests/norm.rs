//! The fused passes against libtorch's own BatchNorm over the whole batch, in fp64, fp32 and bf16; with a mean far
//! larger than the deviation; with no rows, and with one.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test may panic")]

use lockstep_torch::{Activation, apply, gate, gradient, stats};
use tch::{Device, Kind, Tensor};

fn nhwc(x: &Tensor) -> Tensor {
    x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

fn random(shape: [i64; 4], kind: Kind, seed: i64) -> Tensor {
    tch::manual_seed(seed);
    nhwc(&Tensor::randn(shape, (Kind::Double, Device::Cpu)).to_kind(kind))
}

fn mean_variance(message: &[f64], count: f64) -> (Vec<f64>, Vec<f64>) {
    let (first, second) = message.split_at(message.len() / 2);
    let mean: Vec<f64> = first.iter().map(|s| s / count).collect();
    let variance = second.iter().zip(&mean).map(|(s, m)| s / count - m * m).collect();
    (mean, variance)
}

fn values(x: &Tensor) -> Vec<f64> {
    Vec::<f64>::try_from(x.to_kind(Kind::Double).contiguous().view([-1])).unwrap()
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).abs().max().double_value(&[])
}

/// Channels that fill the lanes, that do not, and both.
const CHANNELS: [i64; 4] = [16, 5, 64, 37];

#[test]
fn sums_of_chunks_are_the_statistics_of_the_whole_batch() {
    for channels in CHANNELS {
        let x = random([6, channels, 5, 3], Kind::Double, 1);
        let mut total = vec![0.0; 2 * channels as usize];
        for (from, to) in [(0, 1), (1, 4), (4, 6)] {
            let mut message = vec![f64::NAN; total.len()];
            stats(&nhwc(&x.slice(0, from, to, 1)), &mut message).unwrap();
            total.iter_mut().zip(&message).for_each(|(t, m)| *t += m);
        }
        let (mean, variance) = mean_variance(&total, 90.0);
        let want_mean = values(&x.mean_dim([0i64, 2, 3].as_slice(), false, None::<Kind>));
        let want_variance = values(&x.var_dim([0i64, 2, 3].as_slice(), false, false));
        for c in 0..channels as usize {
            assert!((mean[c] - want_mean[c]).abs() < 1e-14, "channel {c} of {channels}");
            assert!((variance[c] - want_variance[c]).abs() < 1e-13, "channel {c} of {channels}");
        }
    }
}

#[test]
fn a_mean_far_larger_than_the_deviation_costs_nothing() {
    let x = nhwc(&(random([8, 16, 16, 16], Kind::Double, 2) + 1e4)).to_kind(Kind::Float);
    let exact = x.to_kind(Kind::Double);
    let mut total = vec![0.0; 32];
    for i in 0..8 {
        let mut message = vec![0.0; 32];
        stats(&nhwc(&x.slice(0, i, i + 1, 1)), &mut message).unwrap();
        total.iter_mut().zip(&message).for_each(|(t, m)| *t += m);
    }
    let (_, variance) = mean_variance(&total, 8.0 * 256.0);
    let want = values(&exact.var_dim([0i64, 2, 3].as_slice(), false, false));
    let worst = variance.iter().zip(&want).map(|(have, want)| ((have - want) / want).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-7, "relative error of the variance {worst:e}");
}

#[test]
fn no_rows_give_zeros_and_one_row_its_value() {
    let mut message = vec![f64::NAN; 10];
    stats(&random([0, 5, 4, 4], Kind::Float, 3), &mut message).unwrap();
    assert_eq!(message, [0.0; 10]);
    let one = random([1, 5, 1, 1], Kind::Double, 4);
    stats(&one, &mut message).unwrap();
    let (mean, variance) = mean_variance(&message, 1.0);
    assert_eq!(mean, values(&one));
    assert!(variance.iter().all(|v| v.abs() < 1e-15));
}

/// Forward and backward of relu(norm(x) + add) with two gradients coming in, against autograd.
#[test]
fn forward_and_backward_equal_autograd_over_the_whole_batch() {
    let leaky = Activation::LeakyRelu(0.01);
    for (channels, activation) in
        CHANNELS.into_iter().zip([Activation::Relu, Activation::Identity, leaky, Activation::Relu])
    {
        let shape = [4, channels, 6, 5];
        let (count, width) = (4.0 * 30.0, channels as usize);
        let x = random(shape, Kind::Double, 5) * 3.0 + 2.0;
        let add = random(shape, Kind::Double, 6);
        let (d1, d2) = (random(shape, Kind::Double, 7), random(shape, Kind::Double, 8));
        let gamma = Tensor::randn([channels], (Kind::Double, Device::Cpu));
        let beta = Tensor::randn([channels], (Kind::Double, Device::Cpu));

        let leaves: Vec<Tensor> =
            [&x, &add, &gamma, &beta].into_iter().map(|t| t.copy().set_requires_grad(true)).collect();
        let normed = leaves[0].batch_norm(
            Some(&leaves[2]),
            Some(&leaves[3]),
            None::<&Tensor>,
            None::<&Tensor>,
            true,
            0.1,
            1e-5,
            false,
        );
        let sum = normed + &leaves[1];
        let want = match activation {
            Activation::Identity => sum,
            Activation::Relu => sum.relu(),
            Activation::LeakyRelu(_) => sum.leaky_relu(),
        };
        let target = (&want * (&d1 + &d2)).sum(Kind::Double);
        let gradients = Tensor::run_backward(&[&target], &leaves.iter().collect::<Vec<_>>(), false, false);

        let mut message = vec![0.0; 2 * width];
        stats(&x, &mut message).unwrap();
        let (mean, variance) = mean_variance(&message, count);
        let inverse: Vec<f64> = variance.iter().map(|v| 1.0 / (v + 1e-5).sqrt()).collect();
        let scale: Vec<f64> = values(&gamma).iter().zip(&inverse).map(|(g, i)| g * i).collect();
        let mut y = x.empty_like();
        apply(&x, Some(&add), &mut y, activation, &[mean.clone(), scale.clone(), values(&beta)].concat()).unwrap();
        assert!(largest_difference(&y, &want) < 1e-12);

        let g = d1.copy();
        gate((&g, Some(&d2)), (&y, activation), (&x, &mean), &g, &mut message).unwrap();
        assert!(largest_difference(&g, &gradients[1]) < 1e-12, "gradient of the addend");
        let (sums, dots) = message.split_at(width);
        for c in 0..width {
            assert!((sums[c] - values(&gradients[3])[c]).abs() < 1e-11, "gradient of beta");
            assert!((dots[c] * inverse[c] - values(&gradients[2])[c]).abs() < 1e-11, "gradient of gamma");
        }
        let slope: Vec<f64> = (0..width).map(|c| -scale[c] * inverse[c] * inverse[c] * dots[c] / count).collect();
        let offset: Vec<f64> = (0..width).map(|c| -scale[c] * sums[c] / count).collect();
        let dx = x.empty_like();
        gradient(&g, &x, &dx, &[mean, scale, slope, offset].concat()).unwrap();
        assert!(largest_difference(&dx, &gradients[0]) < 1e-12, "gradient of the input");
    }
}

#[test]
fn bf16_is_the_32_bit_result_rounded_to_nearest_even() {
    let x = random([2, 16, 4, 4], Kind::BFloat16, 9);
    let coefficients: Vec<f32> = (0..48).map(|i| 0.37 + i as f32 * 0.11).collect();
    let (mut half, wide) = (x.empty_like(), x.to_kind(Kind::Float));
    let mut full = wide.empty_like();
    apply(&x, None, &mut half, Activation::Relu, &coefficients).unwrap();
    apply(&wide, None, &mut full, Activation::Relu, &coefficients).unwrap();
    assert_eq!(largest_difference(&half, &full.to_kind(Kind::BFloat16)), 0.0);
}

#[test]
fn what_does_not_fit_is_an_error_and_not_a_crash() {
    let x = random([2, 16, 4, 4], Kind::Float, 10);
    let planar = Tensor::zeros([2, 16, 4, 4], (Kind::Float, Device::Cpu));
    assert!(stats(&planar, &mut [0.0; 32]).unwrap_err().message.contains("channels-last"));
    assert!(stats(&x, &mut [0.0; 31]).is_err());
    assert!(apply(&x, None, &mut x.empty_like(), Activation::Relu, &[0.0f32; 47]).is_err());
    assert!(apply(&x, None, &mut x.empty_like(), Activation::Relu, &[0.0f64; 48]).is_err());
    let other = random([2, 16, 4, 3], Kind::Float, 11);
    assert!(apply(&x, Some(&other), &mut x.empty_like(), Activation::Relu, &[0.0f32; 48]).is_err());
}
