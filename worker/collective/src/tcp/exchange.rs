//! What an operation sends to whom and expects from whom, without a socket in sight.

use std::ops::Range;

use super::frame::Frame;

/// Bytes of one segment: what is received, added and sent on while it is in cache.
pub(crate) const SEGMENT: usize = 256 << 10;

/// One rank's side of one operation. `drive` moves the bytes.
pub(crate) trait Exchange {
    /// Takes the next payload for `peer`, if one is ready.
    fn next_frame(&mut self, peer: usize) -> Option<Frame>;

    /// The bytes of a payload that was taken.
    fn payload(&self, peer: usize, frame: &Frame) -> &[u8];

    /// Whether more is to come from `peer`.
    fn expects(&self, peer: usize) -> bool;

    /// Whether there is room for a payload that `peer` announces. An error says why it cannot be right.
    fn accept(&mut self, peer: usize, frame: &Frame) -> Result<bool, String>;

    /// Room for the whole of a payload that was accepted.
    fn buffer(&mut self, peer: usize, frame: &Frame) -> &mut [u8];

    /// The payload is complete.
    fn received(&mut self, peer: usize, frame: &Frame);

    /// Computes what can be computed; whether there was anything.
    fn advance(&mut self) -> bool {
        false
    }

    /// The peer that holds everything up, as far as can be told from here.
    fn laggard(&self) -> Option<usize>;
}

/// A range cut into segments of equal length, the last one shorter.
#[derive(Clone, Debug)]
pub(crate) struct Segments {
    range: Range<usize>,
    len: usize,
}

impl Segments {
    pub(crate) fn new(range: Range<usize>, len: usize) -> Self {
        Self { range, len }
    }

    /// Number of them.
    pub(crate) fn count(&self) -> usize {
        self.range.len().div_ceil(self.len)
    }

    /// The range of one.
    pub(crate) fn get(&self, index: usize) -> Range<usize> {
        let start = self.range.start + index * self.len;
        start..(start + self.len).min(self.range.end)
    }
}

/// `[0, len)` cut into `parts` contiguous slices whose borders are multiples of `align`.
pub(crate) fn slices(len: usize, parts: usize, align: usize) -> Vec<Range<usize>> {
    let each = len.div_ceil(parts.max(1)).next_multiple_of(align);
    (0..parts).map(|part| (part * each).min(len)..((part + 1) * each).min(len)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_and_segments_tile() {
        for (len, parts) in [(0, 3), (1, 4), (64, 2), (1000, 3), (4097, 7)] {
            let mut at = 0;
            for slice in slices(len, parts, 64) {
                assert_eq!(slice.start, at);
                assert!(slice.start == len || slice.start % 64 == 0);
                at = slice.end;
                let segments = Segments::new(slice.clone(), 100);
                assert_eq!((0..segments.count()).map(|i| segments.get(i).len()).sum::<usize>(), slice.len());
            }
            assert_eq!(at, len);
        }
    }
}
