//! Memory that a lane keeps from one operation to the next.

use crate::element::Element;

/// Grows to what the largest operation needed.
#[derive(Debug, Default)]
pub(crate) struct Scratch(Vec<u64>);

impl Scratch {
    /// `len` elements of whatever was there before.
    pub(crate) fn take<T: Element>(&mut self, len: usize) -> &mut [T] {
        let words = (len * T::BYTES).div_ceil(size_of::<u64>());
        if self.0.len() < words {
            self.0.resize(words, 0);
        }
        &mut bytemuck::cast_slice_mut(&mut self.0[..words])[..len]
    }
}
