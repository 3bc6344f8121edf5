//! Activations: inside BatchNorm's passes, and on their own.

use std::ffi::c_int;

use tch::Tensor;

use crate::{TorchError, sys};

/// What stands after a sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// max(x, 0); a NaN stays one.
    Relu,
    /// x where x > 0, else slope·x, with 0 ≤ slope < 1.
    LeakyRelu(f64),
}

impl Activation {
    /// Number and slope, as the C++ side knows it.
    pub(crate) fn code(self) -> (c_int, f64) {
        match self {
            Self::Identity => (0, 0.0),
            Self::Relu => (1, 0.0),
            Self::LeakyRelu(slope) => (2, slope),
        }
    }
}

/// `y = act(x)`, both NCHW. `y` may be `x`.
///
/// # Errors
/// Shapes, types or layouts that do not fit.
pub fn rectify(x: &Tensor, y: &mut Tensor, activation: Activation) -> Result<(), TorchError> {
    let (act, slope) = activation.code();
    // SAFETY: tensors are alive for the call; element by element, so aliasing of whole tensors is harmless.
    TorchError::check(unsafe { sys::ls_rectify(x.as_ptr(), y.as_ptr(), act, slope) })
}

/// Gradient of [`rectify`]: `dx = d·act'(x)`, told from its output `y`. `dx` may be `d`.
///
/// # Errors
/// Shapes, types or layouts that do not fit.
pub fn rectify_backward(d: &Tensor, y: &Tensor, dx: &Tensor, activation: Activation) -> Result<(), TorchError> {
    let (act, slope) = activation.code();
    // SAFETY: tensors are alive for the call; each element of `d` is read before that of `dx` is written.
    TorchError::check(unsafe { sys::ls_rectify_backward(d.as_ptr(), y.as_ptr(), dx.as_ptr(), act, slope) })
}
