//! What can be summed.

use std::fmt::Debug;
use std::ops::{Add, AddAssign};

use bytemuck::Pod;

/// A number that collectives add: `f32` or `f64`.
pub trait Element: Pod + Add<Output = Self> + AddAssign + PartialEq + Debug + Send + Sync {
    /// The sum of nothing.
    const ZERO: Self;
    /// Bytes of one.
    const BYTES: usize = size_of::<Self>();
}

impl Element for f32 {
    const ZERO: Self = 0.0;
}

impl Element for f64 {
    const ZERO: Self = 0.0;
}
