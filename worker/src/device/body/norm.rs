//! BatchNorm's passes: our kernels where the device has them, else libtorch's operations.

use lockstep_cuda::{Fused, Saved};
use lockstep_torch::{Activation, TorchError, composed};
use tch::{Kind, Tensor};

/// Who does them.
pub struct Norms(Option<Fused>);

/// Statistics of a layer between forward and backward.
pub enum Statistics {
    /// For libtorch's operations.
    Composed(composed::Statistics),
    /// For the kernels.
    Fused(Saved),
}

/// A sum of messages, and over how much it was taken.
pub struct Sums<'a> {
    /// f64 `[2·C]`
    pub sums: &'a Tensor,
    /// Samples.
    pub samples: u64,
    /// Pixels of the layer.
    pub pixels: u64,
}

/// Parameters of a layer.
pub struct Affine<'a> {
    /// γ
    pub gamma: &'a Tensor,
    /// β
    pub beta: &'a Tensor,
    /// Added to the variance.
    pub eps: f64,
}

impl Norms {
    /// By these kernels, if they know this number type.
    pub fn new(fused: Option<Fused>, kind: Kind) -> Self {
        Self(fused.filter(|_| Fused::knows(kind)))
    }

    /// The message of `x`; see [`composed::stats`].
    ///
    /// # Errors
    /// What the device says.
    pub fn stats(&self, x: &Tensor, message: &mut Tensor) -> Result<(), TorchError> {
        match &self.0 {
            Some(fused) => fused.stats(x, message),
            None => composed::stats(x, message),
        }
    }

    /// Statistics from a sum of messages.
    ///
    /// # Errors
    /// What the device says.
    pub fn statistics(&self, of: &Sums<'_>, affine: &Affine<'_>) -> Result<Statistics, TorchError> {
        let Some(fused) = &self.0 else {
            let (count, kind) = ((of.samples * of.pixels) as f64, affine.gamma.kind());
            return Ok(Statistics::Composed(composed::Statistics::from_sums(of.sums, count, affine.eps, kind)?));
        };
        let affine_of = (affine.gamma, affine.beta);
        Ok(Statistics::Fused(fused.forward(of.sums, (of.samples, of.pixels), affine_of, affine.eps)?))
    }

    fn fused(&self) -> Result<&Fused, TorchError> {
        self.0.as_ref().ok_or_else(|| TorchError::new("statistics of kernels that are not here"))
    }

    /// `act(norm(x) + add)`
    ///
    /// # Errors
    /// What the device says.
    pub fn apply(
        &self,
        (x, add): (&Tensor, Option<&Tensor>),
        act: Activation,
        statistics: &Statistics,
        affine: &Affine<'_>,
    ) -> Result<Tensor, TorchError> {
        match statistics {
            Statistics::Composed(of) => composed::apply(x, add, act, &of.forward(affine.gamma, affine.beta)?),
            Statistics::Fused(saved) => self.fused()?.apply(x, add, act, saved),
        }
    }

    /// The gated gradient, and its message.
    ///
    /// # Errors
    /// What the device says.
    pub fn gate(
        &self,
        arriving: (&Tensor, Option<&Tensor>),
        left: (&Tensor, Activation),
        (x, statistics): (&Tensor, &Statistics),
        message: &mut Tensor,
    ) -> Result<Tensor, TorchError> {
        match statistics {
            Statistics::Composed(of) => composed::gate(arriving, left, (x, &of.rounded), message),
            Statistics::Fused(saved) => self.fused()?.gate(arriving, left, (x, saved), message),
        }
    }

    /// A shard's part of the gradients of γ and β, from its own message, into `out`.
    ///
    /// # Errors
    /// What the device says.
    pub fn parameter_gradients(
        &self,
        message: &Tensor,
        (gamma, statistics): (&Tensor, &Statistics),
        out: [&mut Tensor; 2],
    ) -> Result<(), TorchError> {
        match statistics {
            Statistics::Composed(of) => {
                for (to, from) in out.into_iter().zip(of.parameter_gradients(message)?) {
                    to.f_copy_(&from)?;
                }
            }
            Statistics::Fused(saved) => {
                let [d_gamma, d_beta] = out;
                let _ = self.fused()?.backward((message, message), gamma, saved, (d_gamma, d_beta))?;
            }
        }
        Ok(())
    }

    /// The gradient of `x` from the gated one and the sum of its messages.
    ///
    /// # Errors
    /// What the device says.
    pub fn gradient(
        &self,
        (gated, x): (&Tensor, &Tensor),
        sums: &Tensor,
        (gamma, statistics): (&Tensor, &Statistics),
    ) -> Result<Tensor, TorchError> {
        match statistics {
            Statistics::Composed(of) => composed::gradient(gated, x, &of.backward(gamma, sums)?),
            Statistics::Fused(saved) => {
                let fused = self.fused()?;
                // Of the sum over all nobody wants these.
                let (d_gamma, d_beta) = (gamma.f_empty_like()?, gamma.f_empty_like()?);
                let coefficients = fused.backward((sums, sums), gamma, saved, (&d_gamma, &d_beta))?;
                fused.gradient(gated, (x, saved), &coefficients)
            }
        }
    }
}

impl Statistics {
    /// What running statistics take in: mean and unbiased variance, f64 `[2·C]`.
    ///
    /// # Errors
    /// What the device says.
    pub fn taken(&self) -> Result<Tensor, TorchError> {
        match self {
            Self::Composed(of) => Ok(Tensor::f_cat(&[of.mean.shallow_clone(), of.unbiased()?], 0)?),
            Self::Fused(saved) => Ok(saved.pending.shallow_clone()),
        }
    }
}
