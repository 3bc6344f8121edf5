//! The same passes as in [`norm`](crate::stats) and [`ops`](crate::join), composed of ATen's operations: on any device,
//! and nothing waits for the device. Messages and coefficients are tensors that stay where they are.
//!
//! Shapes: x, y, g, d are NCHW in channels-last memory; messages f64 `[2·C]`; coefficients `[C]` each, in the compute type
//! ([`compute_kind`]): f32 for f32 and bf16 tensors, f64 for f64 tensors.

use tch::{Kind, Tensor};

use crate::{Activation, TorchError};

const OVER: [i64; 3] = [0, 2, 3];

/// The type that sums and coefficients of tensors of `kind` have.
pub fn compute_kind(kind: Kind) -> Kind {
    if kind == Kind::Double { Kind::Double } else { Kind::Float }
}

/// A number a channel, spread over NCHW.
fn spread(values_c: &Tensor) -> Result<Tensor, TorchError> {
    Ok(values_c.f_view([1, -1, 1, 1])?)
}

fn widened(x: &Tensor) -> Result<Tensor, TorchError> {
    Ok(x.f_to_kind(compute_kind(x.kind()))?)
}

/// Writes `[n·mean, M2 + n·mean²]` of each channel of `x_nchw` into `message` (f64, 2·C). Sums are taken around the
/// rounded mean, so that a mean far larger than the deviation costs no precision. No rows: zeros.
///
/// # Errors
/// What libtorch says.
pub fn stats(x: &Tensor, message: &mut Tensor) -> Result<(), TorchError> {
    let (n, c, h, w) = x.size4()?;
    let count = (n * h * w) as f64;
    if count == 0.0 {
        let _ = message.f_zero_()?;
        return Ok(());
    }
    let x = widened(x)?;
    let shift = x.f_mean_dim(OVER.as_slice(), false, x.kind())?;
    let away = x.f_sub(&spread(&shift)?)?;
    let sum = away.f_sum_dim_intlist(OVER.as_slice(), false, x.kind())?.f_to_kind(Kind::Double)?;
    let square = away.f_mul(&away)?.f_sum_dim_intlist(OVER.as_slice(), false, x.kind())?.f_to_kind(Kind::Double)?;
    let mean = shift.f_to_kind(Kind::Double)?.f_add(&sum.f_div_scalar(count)?)?;
    let around = square.f_sub(&sum.f_mul(&sum)?.f_div_scalar(count)?)?.f_clamp_min(0.0)?;
    message.f_narrow(0, 0, c)?.f_copy_(&mean.f_mul_scalar(count)?)?;
    message.f_narrow(0, c, c)?.f_copy_(&around.f_add(&mean.f_mul(&mean)?.f_mul_scalar(count)?)?)?;
    Ok(())
}

/// Mean and variance of a layer over all who met, in f64, and what is rounded from them.
#[derive(Debug)]
pub struct Statistics {
    /// Values a channel, of all who met.
    pub count: f64,
    /// Mean, f64.
    pub mean: Tensor,
    /// Biased variance, f64.
    pub variance: Tensor,
    /// 1 / √(variance + eps), f64.
    pub inverse: Tensor,
    /// The mean, rounded to the compute type.
    pub rounded: Tensor,
}

impl Statistics {
    /// From the sum of messages over `count` values a channel; rounded to `kind`. A count of zero gives mean 0,
    /// variance 0.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn from_sums(sums: &Tensor, count: f64, eps: f64, kind: Kind) -> Result<Self, TorchError> {
        let channels = sums.size1()? / 2;
        let over = if count > 0.0 { 1.0 / count } else { 0.0 };
        let of = |at| Ok::<_, TorchError>(sums.f_narrow(0, at, channels)?.f_mul_scalar(over)?);
        let mean = of(0)?;
        let variance = of(channels)?.f_sub(&mean.f_mul(&mean)?)?.f_clamp_min(0.0)?;
        Self::new(count, mean, variance, eps, kind)
    }

    /// Running statistics as they are, for evaluation.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn fixed(mean: Tensor, variance: Tensor, eps: f64, kind: Kind) -> Result<Self, TorchError> {
        Self::new(0.0, mean, variance, eps, kind)
    }

    fn new(count: f64, mean: Tensor, variance: Tensor, eps: f64, kind: Kind) -> Result<Self, TorchError> {
        let inverse = variance.f_add_scalar(eps)?.f_rsqrt()?;
        let rounded = mean.f_to_kind(kind)?;
        Ok(Self { count, mean, variance, inverse, rounded })
    }

    /// Unbiased variance; biased where the count is 1.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn unbiased(&self) -> Result<Tensor, TorchError> {
        let factor = if self.count > 1.0 { self.count / (self.count - 1.0) } else { 1.0 };
        Ok(self.variance.f_mul_scalar(factor)?)
    }

    fn rest(&self) -> Result<Tensor, TorchError> {
        Ok(self.mean.f_sub(&self.rounded.f_to_kind(Kind::Double)?)?)
    }

    fn scale(&self, gamma: &Tensor) -> Result<Tensor, TorchError> {
        Ok(gamma.f_to_kind(Kind::Double)?.f_mul(&self.inverse)?)
    }

    /// `[mean, scale, bias]` of [`apply`].
    ///
    /// # Errors
    /// What libtorch says.
    pub fn forward(&self, gamma: &Tensor, beta: &Tensor) -> Result<[Tensor; 3], TorchError> {
        let scale = self.scale(gamma)?;
        let bias = beta.f_to_kind(Kind::Double)?.f_sub(&self.rest()?.f_mul(&scale)?)?;
        let kind = self.rounded.kind();
        Ok([self.rounded.shallow_clone(), scale.f_to_kind(kind)?, bias.f_to_kind(kind)?])
    }

    /// `[mean, scale, slope, offset]` of [`gradient`], from the sums `[Σ g, Σ g·(x − rounded mean)]` over the same values.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn backward(&self, gamma: &Tensor, sums: &Tensor) -> Result<[Tensor; 4], TorchError> {
        let channels = sums.size1()? / 2;
        let (sum, dot) = (sums.f_narrow(0, 0, channels)?, sums.f_narrow(0, channels, channels)?);
        let (scale, rest) = (self.scale(gamma)?, self.rest()?);
        let dot = dot.f_sub(&rest.f_mul(&sum)?)?;
        let over = if self.count > 0.0 { -1.0 / self.count } else { 0.0 };
        let slope = scale.f_mul(&self.inverse)?.f_mul(&self.inverse)?.f_mul(&dot)?.f_mul_scalar(over)?;
        let offset = scale.f_mul(&sum)?.f_mul_scalar(over)?.f_sub(&slope.f_mul(&rest)?)?;
        let kind = self.rounded.kind();
        Ok([self.rounded.shallow_clone(), scale.f_to_kind(kind)?, slope.f_to_kind(kind)?, offset.f_to_kind(kind)?])
    }

    /// One shard's part of the gradients of γ and β, from its own message of [`gate`]; in the compute type.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn parameter_gradients(&self, message: &Tensor) -> Result<[Tensor; 2], TorchError> {
        let channels = message.size1()? / 2;
        let (sum, dot) = (message.f_narrow(0, 0, channels)?, message.f_narrow(0, channels, channels)?);
        let d_gamma = dot.f_sub(&self.rest()?.f_mul(&sum)?)?.f_mul(&self.inverse)?;
        Ok([d_gamma.f_to_kind(self.rounded.kind())?, sum.f_to_kind(self.rounded.kind())?])
    }
}

/// `act((x − mean)·scale + bias + add)`, of the type of `x`.
///
/// # Errors
/// What libtorch says.
pub fn apply(
    x: &Tensor,
    add: Option<&Tensor>,
    activation: Activation,
    [mean, scale, bias]: &[Tensor; 3],
) -> Result<Tensor, TorchError> {
    let scaled = widened(x)?.f_sub(&spread(mean)?)?.f_mul(&spread(scale)?)?;
    let mut sum = scaled.f_add(&spread(bias)?)?;
    if let Some(add) = add {
        sum = sum.f_add(&widened(add)?)?;
    }
    Ok(rectify(&sum, activation)?.f_to_kind(x.kind())?)
}

/// First half of a norm's gradient: `g = (d1 + d2)·act'`, told from the output `y`, and `[Σ g, Σ g·(x − mean)]` into
/// `message` (f64, 2·C).
///
/// # Errors
/// What libtorch says.
pub fn gate(
    (d1, d2): (&Tensor, Option<&Tensor>),
    (y, activation): (&Tensor, Activation),
    (x, mean): (&Tensor, &Tensor),
    message: &mut Tensor,
) -> Result<Tensor, TorchError> {
    let mut d = widened(d1)?;
    if let Some(d2) = d2 {
        d = d.f_add(&widened(d2)?)?;
    }
    // Rounded once, and the sums are over what the second half will see.
    let g = slope_at(y, &d, activation)?.f_to_kind(x.kind())?;
    let wide = widened(&g)?;
    let c = x.size4()?.1;
    let sum = |t: &Tensor| t.f_sum_dim_intlist(OVER.as_slice(), false, t.kind());
    message.f_narrow(0, 0, c)?.f_copy_(&sum(&wide)?)?;
    message.f_narrow(0, c, c)?.f_copy_(&sum(&wide.f_mul(&widened(x)?.f_sub(&spread(mean)?)?)?)?)?;
    Ok(g)
}

/// Second half: `scale·g + slope·(x − mean) + offset`, of the type of `x`.
///
/// # Errors
/// What libtorch says.
pub fn gradient(g: &Tensor, x: &Tensor, [mean, scale, slope, offset]: &[Tensor; 4]) -> Result<Tensor, TorchError> {
    let from_g = widened(g)?.f_mul(&spread(scale)?)?;
    let from_x = widened(x)?.f_sub(&spread(mean)?)?.f_mul(&spread(slope)?)?;
    Ok(from_g.f_add(&from_x)?.f_add(&spread(offset)?)?.f_to_kind(x.kind())?)
}

/// `act(x)`; a NaN stays one.
///
/// # Errors
/// What libtorch says.
pub fn rectify(x: &Tensor, activation: Activation) -> Result<Tensor, TorchError> {
    Ok(match activation {
        Activation::Identity => x.shallow_clone(),
        Activation::Relu => x.f_relu()?,
        Activation::LeakyRelu(slope) => x.f_where_self(&x.f_gt(0.0)?, &x.f_mul_scalar(slope)?)?,
    })
}

/// Gradient of [`rectify`], told from its output `y`; of the type of `d`.
///
/// # Errors
/// What libtorch says.
pub fn slope_at(y: &Tensor, d: &Tensor, activation: Activation) -> Result<Tensor, TorchError> {
    Ok(match activation {
        Activation::Identity => d.shallow_clone(),
        Activation::Relu => d.f_where_self(&y.f_gt(0.0)?, &d.f_zeros_like()?)?,
        Activation::LeakyRelu(slope) => d.f_where_self(&y.f_gt(0.0)?, &d.f_mul_scalar(slope)?)?,
    })
}

/// `a + b`, computed in the compute type.
///
/// # Errors
/// What libtorch says.
pub fn join(a: &Tensor, b: &Tensor) -> Result<Tensor, TorchError> {
    Ok(widened(a)?.f_add(&widened(b)?)?.f_to_kind(a.kind())?)
}

/// Shortcut A: every `stride`-th pixel, zero channels appended up to `channels`.
///
/// # Errors
/// What libtorch says.
pub fn subsample(x: &Tensor, stride: i64, channels: i64) -> Result<Tensor, TorchError> {
    let c = x.size4()?.1;
    let taken = x.f_slice(2, None, None, stride)?.f_slice(3, None, None, stride)?;
    dense(&taken.f_constant_pad_nd([0, 0, 0, 0, 0, channels - c])?)
}

/// Gradient of [`subsample`] for an input of `shape`.
///
/// # Errors
/// What libtorch says.
pub fn subsample_backward(g: &Tensor, shape: (i64, i64, i64, i64), stride: i64) -> Result<Tensor, TorchError> {
    let (n, c, h, w) = shape;
    let dx = Tensor::f_zeros([n, h, w, c], (g.kind(), g.device()))?.f_permute([0, 3, 1, 2])?;
    let mut places = dx.f_slice(2, None, None, stride)?.f_slice(3, None, None, stride)?;
    places.f_copy_(&g.f_narrow(1, 0, c)?)?;
    Ok(dx)
}

/// Global average pool: NC (32-bit for bf16 input) of NCHW.
///
/// # Errors
/// What libtorch says.
pub fn pool(x: &Tensor) -> Result<Tensor, TorchError> {
    Ok(x.f_mean_dim([2i64, 3].as_slice(), false, compute_kind(x.kind()))?)
}

/// Gradient of [`pool`] for an input of `shape` and `kind`, from `g_nc`.
///
/// # Errors
/// What libtorch says.
pub fn pool_backward(g: &Tensor, shape: (i64, i64, i64, i64), kind: Kind) -> Result<Tensor, TorchError> {
    let (n, c, h, w) = shape;
    let each = g.f_div_scalar((h * w) as f64)?.f_to_kind(kind)?.f_view([n, c, 1, 1])?;
    dense(&each.f_expand([n, c, h, w], false)?)
}

/// A copy in channels-last memory, if it is not that already.
///
/// # Errors
/// What libtorch says.
pub fn dense(x: &Tensor) -> Result<Tensor, TorchError> {
    Ok(x.f_permute([0, 2, 3, 1])?.f_contiguous()?.f_permute([0, 3, 1, 2])?)
}
