//! BatchNorm as fused passes over NHWC rows, with addition and activation. Between two passes the caller adds the messages of
//! all chunks and ranks; these functions know only one chunk.

use std::ptr::null;

use tch::{Kind, Tensor};

use crate::{Activation, TorchError, sys};

/// The number type that coefficients have: `f32` for f32 and bf16 tensors, `f64` for f64 tensors.
pub trait Real: Copy + Send + Sync + 'static {
    /// Whether coefficients of this type fit tensors of that kind.
    fn fits(kind: Kind) -> bool;
    /// Rounded from f64.
    fn from_f64(x: f64) -> Self;
    /// Exact.
    fn to_f64(self) -> f64;
}

impl Real for f32 {
    fn fits(kind: Kind) -> bool {
        matches!(kind, Kind::Float | Kind::BFloat16)
    }
    fn from_f64(x: f64) -> Self {
        x as f32
    }
    fn to_f64(self) -> f64 {
        self.into()
    }
}

impl Real for f64 {
    fn fits(kind: Kind) -> bool {
        kind == Kind::Double
    }
    fn from_f64(x: f64) -> Self {
        x
    }
    fn to_f64(self) -> f64 {
        self
    }
}

fn channels_of(x: &Tensor) -> Result<usize, TorchError> {
    match x.size().as_slice() {
        [_, c, _, _] => Ok(*c as usize),
        other => Err(TorchError::new(format!("expected a 4-d tensor, got shape {other:?}"))),
    }
}

fn check<A: Real>(x: &Tensor, coefficients: &[A], sets: usize) -> Result<(), TorchError> {
    let want = channels_of(x)? * sets;
    if coefficients.len() != want || !A::fits(x.kind()) {
        let have = coefficients.len();
        return Err(TorchError::new(format!("{have} coefficients where {want} of the tensor's type are needed")));
    }
    Ok(())
}

fn check_message(x: &Tensor, message: &[f64]) -> Result<(), TorchError> {
    let want = channels_of(x)? * 2;
    if message.len() != want {
        return Err(TorchError::new(format!("a message of {} numbers where {want} are needed", message.len())));
    }
    Ok(())
}

/// Writes `[n·mean, M2 + n·mean²]` of each channel of `x_nchw` (n = its pixels) into `message` (2·C). M2 is taken around
/// the chunk's own mean in f64, so that plain sums of messages lose nothing. No rows: zeros.
///
/// # Errors
/// Memory that is not channels-last.
pub fn stats(x: &Tensor, message: &mut [f64]) -> Result<(), TorchError> {
    check_message(x, message)?;
    // SAFETY: `message` has 2·C places, checked above.
    TorchError::check(unsafe { sys::ls_stats(x.as_ptr(), message.as_mut_ptr()) })
}

/// `y = act((x − mean)·scale + bias + add)` with coefficients `[mean, scale, bias]` (3·C). `y` may be `x` or `add`.
///
/// # Errors
/// Shapes, types or layouts that do not fit.
pub fn apply<A: Real>(
    x: &Tensor,
    add: Option<&Tensor>,
    y: &mut Tensor,
    activation: Activation,
    coefficients: &[A],
) -> Result<(), TorchError> {
    check(x, coefficients, 3)?;
    let (act, slope) = activation.code();
    // SAFETY: 3·C coefficients of the right type, checked above; tensors are alive for the call.
    TorchError::check(unsafe {
        sys::ls_apply(
            x.as_ptr(),
            add.map_or(null(), |a| a.as_ptr()),
            y.as_ptr(),
            act,
            slope,
            coefficients.as_ptr().cast(),
        )
    })
}

/// First half of the gradient. `g = (d1 + d2)·act'`, told from the output `y`; writes `[Σ g, Σ g·(x − mean)]` into
/// `message` (2·C; `mean` has C). `g` may be `d1`; without `d2` and an activation nothing is written to it, so it must be
/// `d1` then.
///
/// # Errors
/// Shapes, types or layouts that do not fit.
pub fn gate<A: Real>(
    (d1, d2): (&Tensor, Option<&Tensor>),
    (y, activation): (&Tensor, Activation),
    (x, mean): (&Tensor, &[A]),
    g: &Tensor,
    message: &mut [f64],
) -> Result<(), TorchError> {
    check(x, mean, 1)?;
    check_message(x, message)?;
    let (act, slope) = activation.code();
    // SAFETY: sizes checked above; tensors are alive for the call; `g` is written element by element after it was read.
    TorchError::check(unsafe {
        sys::ls_gate(
            d1.as_ptr(),
            d2.map_or(null(), |d| d.as_ptr()),
            y.as_ptr(),
            x.as_ptr(),
            g.as_ptr(),
            act,
            slope,
            mean.as_ptr().cast(),
            message.as_mut_ptr(),
        )
    })
}

/// Second half: `dx = scale·g + slope·(x − mean) + offset` with coefficients `[mean, scale, slope, offset]` (4·C).
/// `dx` may be `g`.
///
/// # Errors
/// Shapes, types or layouts that do not fit.
pub fn gradient<A: Real>(g: &Tensor, x: &Tensor, dx: &Tensor, coefficients: &[A]) -> Result<(), TorchError> {
    check(x, coefficients, 4)?;
    // SAFETY: 4·C coefficients of the right type, checked above; tensors are alive for the call.
    TorchError::check(unsafe { sys::ls_gradient(g.as_ptr(), x.as_ptr(), dx.as_ptr(), coefficients.as_ptr().cast()) })
}
