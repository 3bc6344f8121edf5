//! The number type of weights, gradients and coefficients: `f32`, or `f64` for proofs.

use lockstep_collective::{Collective, CollectiveError, Layout, Op};

/// What the mathematics asks of a number.
pub trait Number: lockstep_torch::Real + lockstep_torch::Element + lockstep_collective::Element {
    /// The collective's sum for this type.
    ///
    /// # Errors
    /// As the collective's.
    fn reduce(
        collective: &dyn Collective,
        op: &Op,
        layout: &Layout,
        partials: &[&[Self]],
        out: &mut [Self],
    ) -> Result<(), CollectiveError>;
}

impl Number for f32 {
    fn reduce(
        collective: &dyn Collective,
        op: &Op,
        layout: &Layout,
        partials: &[&[Self]],
        out: &mut [Self],
    ) -> Result<(), CollectiveError> {
        collective.reduce_f32(op, layout, partials, out)
    }
}

impl Number for f64 {
    fn reduce(
        collective: &dyn Collective,
        op: &Op,
        layout: &Layout,
        partials: &[&[Self]],
        out: &mut [Self],
    ) -> Result<(), CollectiveError> {
        collective.reduce_f64(op, layout, partials, out)
    }
}
