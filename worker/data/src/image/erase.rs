//! Random erasing (Zhong et al. 2020) as torchvision's `RandomErasing` does it: a rectangle of a normalised image becomes 0,
//! the mean colour.

use lockstep_proto::draws::Draws;
use lockstep_proto::recipe;

/// How often a rectangle is tried.
const ATTEMPTS: usize = 10;

/// A rectangle, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Erased {
    /// First row.
    pub top: usize,
    /// First column.
    pub left: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Erased {
    /// Draws for a square of `side` pixels, from a sequence of its own: whether at all; then for each of up to ten attempts area and shape, both as
    /// for a random part but height ÷ width, and for the first that is smaller than the square its row and column. If none
    /// is, nothing is erased.
    pub fn draw(image: &recipe::Image, side: u32, draws: &mut Draws) -> Option<Self> {
        if image.erase <= 0.0 || draws.unit() >= image.erase {
            return None;
        }
        let pixels = f64::from(side);
        let logs = image.erase_ratio.map(libm::log);
        let between = |[low, high]: [f64; 2], draws: &mut Draws| low + (high - low) * draws.unit();
        for _ in 0..ATTEMPTS {
            let area = pixels * pixels * between(image.erase_scale, draws);
            let aspect = libm::exp(between(logs, draws));
            let height = (area * aspect).sqrt().round_ties_even();
            let width = (area / aspect).sqrt().round_ties_even();
            if height < pixels && width < pixels {
                // invariant: both are whole, not negative and below the side
                let (height, width) = (height as u32, width as u32);
                let top = draws.below(side - height + 1) as usize;
                let left = draws.below(side - width + 1) as usize;
                return Some(Self { top, left, height: height as usize, width: width as usize });
            }
        }
        None
    }

    /// Erases it from side × side × 3 floats.
    pub fn apply(self, side: usize, out: &mut [f32]) {
        for row in out.chunks_exact_mut(side * 3).skip(self.top).take(self.height) {
            row[self.left * 3..(self.left + self.width) * 3].fill(0.0);
        }
    }
}
