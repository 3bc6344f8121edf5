//! Convolution, and the joins of a residual network.

use std::ptr::{null, null_mut};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::{TorchError, sys};

/// # Safety
/// `raw` must come from a successful call that stored a `new at::Tensor` there.
unsafe fn owned(raw: *mut C_tensor) -> Tensor {
    // SAFETY: by this function's contract; the Tensor takes ownership and deletes it.
    unsafe { Tensor::from_ptr(raw) }
}

/// Convolution `x_nchw * w_oihw (+ b_o)`, channels-last out.
///
/// # Errors
/// Shapes that do not fit.
pub fn conv(x: &Tensor, w: &Tensor, b: Option<&Tensor>, stride: i64, pad: i64) -> Result<Tensor, TorchError> {
    let mut out = null_mut();
    // SAFETY: tensors are alive for the call; `out` is set on success.
    TorchError::check(unsafe {
        sys::ls_conv(&mut out, x.as_ptr(), w.as_ptr(), b.map_or(null(), |b| b.as_ptr()), stride, pad)
    })?;
    // SAFETY: the call succeeded.
    Ok(unsafe { owned(out) })
}

/// Gradients of a convolution.
#[derive(Debug)]
pub struct ConvGradients {
    /// Of the input, when asked for.
    pub dx: Option<Tensor>,
    /// Of the weight, memory in the order of a channels-last weight (O, H, W, I).
    pub dw: Tensor,
    /// Of the bias, when asked for.
    pub db: Option<Tensor>,
}

/// Gradients of [`conv`] for the output's gradient `g`.
///
/// # Errors
/// Shapes that do not fit.
pub fn conv_backward(
    g: &Tensor,
    x: &Tensor,
    w: &Tensor,
    (stride, pad): (i64, i64),
    (need_dx, need_db): (bool, bool),
) -> Result<ConvGradients, TorchError> {
    let (mut dx, mut dw, mut db) = (null_mut(), null_mut(), null_mut());
    // SAFETY: tensors are alive for the call; places asked for are set on success.
    TorchError::check(unsafe {
        sys::ls_conv_backward(
            if need_dx { &mut dx } else { null_mut() },
            &mut dw,
            if need_db { &mut db } else { null_mut() },
            g.as_ptr(),
            x.as_ptr(),
            w.as_ptr(),
            stride,
            pad,
        )
    })?;
    // SAFETY: the call succeeded and set every place that was asked for.
    unsafe { Ok(ConvGradients { dx: need_dx.then(|| owned(dx)), dw: owned(dw), db: need_db.then(|| owned(db)) }) }
}

/// `y = a + b`. `y` may be `a`.
///
/// # Errors
/// Shapes or types that differ.
pub fn join(a: &Tensor, b: &Tensor, y: &mut Tensor) -> Result<(), TorchError> {
    // SAFETY: tensors are alive for the call; element by element, so aliasing of whole tensors is harmless.
    TorchError::check(unsafe { sys::ls_join(a.as_ptr(), b.as_ptr(), y.as_ptr()) })
}

/// Shortcut A: `y` takes every `stride`-th pixel of `x`, zero channels appended.
///
/// # Errors
/// Shapes that do not fit.
pub fn subsample(x: &Tensor, y: &mut Tensor, stride: i64) -> Result<(), TorchError> {
    // SAFETY: tensors are alive for the call.
    TorchError::check(unsafe { sys::ls_subsample(x.as_ptr(), y.as_ptr(), stride) })
}

/// Adds the gradient of [`subsample`] into `dx`.
///
/// # Errors
/// Shapes that do not fit.
pub fn subsample_backward(g: &Tensor, dx: &mut Tensor, stride: i64) -> Result<(), TorchError> {
    // SAFETY: tensors are alive for the call.
    TorchError::check(unsafe { sys::ls_subsample_backward(g.as_ptr(), dx.as_ptr(), stride) })
}

/// Global average pool: `y_nc` (32-bit for bf16 input) of `x_nchw`.
///
/// # Errors
/// Shapes that do not fit.
pub fn pool(x: &Tensor, y: &mut Tensor) -> Result<(), TorchError> {
    // SAFETY: tensors are alive for the call.
    TorchError::check(unsafe { sys::ls_pool(x.as_ptr(), y.as_ptr()) })
}

/// Gradient of [`pool`]: fills `dx_nchw` from `g_nc`.
///
/// # Errors
/// Shapes that do not fit.
pub fn pool_backward(g: &Tensor, dx: &mut Tensor) -> Result<(), TorchError> {
    // SAFETY: tensors are alive for the call.
    TorchError::check(unsafe { sys::ls_pool_backward(g.as_ptr(), dx.as_ptr()) })
}
