//! Affine changes of a square of RGB bytes, as Pillow's `Image.transform` and `Image.rotate` compute them; what comes from
//! outside the square is black.

use lockstep_proto::recipe::Interpolation;

/// From a pixel of the result to a place in the source: `x' = a·x + b·y + c`, `y' = d·x + e·y + f`, in pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Affine(pub [f64; 6]);

impl Affine {
    /// Rows are moved sideways by the tangent times their number: torchvision's `affine` with `shear` and a centre of 0.
    pub(super) fn shear_x(tangent: f64) -> Self {
        // there and back through degrees, as torchvision does
        let tangent = libm::tan(libm::atan(tangent).to_degrees().to_radians());
        Self([1.0, tangent, 0.0, 0.0, 1.0, 0.0])
    }

    /// The same for columns.
    pub(super) fn shear_y(tangent: f64) -> Self {
        let angle = libm::atan(tangent).to_degrees().to_radians();
        let (sin, cos) = (libm::sin(-angle), libm::cos(-angle));
        Self([1.0, 0.0, 0.0, -(sin / libm::cos(angle)), cos / libm::cos(angle), 0.0])
    }

    /// The picture moves to the right and down by so many pixels.
    pub(super) fn shift(right: f64, down: f64) -> Self {
        Self([1.0, 0.0, -right, 0.0, 1.0, -down])
    }

    /// Counter-clockwise around the middle of a square of `side` pixels.
    pub(super) fn rotation(degrees: f64, side: usize) -> Self {
        // Python's `%`: never negative
        let angle = -(degrees - 360.0 * (degrees / 360.0).floor()).to_radians();
        // Python's `round(value, 15)` rounds the exact decimal number, and no product comes as close.
        // invariant: what was just printed is a number
        let rounded = |value: f64| format!("{value:.15}").parse().unwrap_or(value);
        let (cos, sin) = (rounded(libm::cos(angle)), rounded(libm::sin(angle)));
        let middle = side as f64 / 2.0;
        let c = cos * -middle + sin * -middle + middle;
        let f = -sin * -middle + cos * -middle + middle;
        Self([cos, sin, c, -sin, cos, f])
    }

    /// Writes the changed picture over `rgb`; `room` is for the source.
    pub(super) fn apply(self, interpolation: Interpolation, side: usize, rgb: &mut [u8], room: &mut Vec<u8>) {
        room.clear();
        room.extend_from_slice(rgb);
        rgb.fill(0);
        match interpolation {
            Interpolation::Nearest => self.nearest(side, room, rgb),
            Interpolation::Bilinear => self.bilinear(side, room, rgb),
        }
    }

    /// Pillow's `affine_fixed`: places in 16.16 fixed point. Whole shifts, for which it has another way, come out the same.
    fn nearest(self, side: usize, source: &[u8], out: &mut [u8]) {
        let [a, b, c, d, e, f] = self.0;
        let fix = |value: f64| (value * 65536.0 + 0.5).floor() as i64;
        let steps = [fix(a), fix(b), fix(d), fix(e)];
        let (mut row_x, mut row_y) = (fix(c + a * 0.5 + b * 0.5), fix(f + d * 0.5 + e * 0.5));
        let inside = 0..side as i64;
        for row in out.chunks_exact_mut(side * 3) {
            let (mut x, mut y) = (row_x, row_y);
            for pixel in row.chunks_exact_mut(3) {
                let (column, line) = (x >> 16, y >> 16);
                if inside.contains(&column) && inside.contains(&line) {
                    let at = (line as usize * side + column as usize) * 3;
                    pixel.copy_from_slice(&source[at..at + 3]);
                }
                x += steps[0];
                y += steps[2];
            }
            row_x += steps[1];
            row_y += steps[3];
        }
    }

    /// Pillow's `bilinear_filter32RGB`: from the middles of pixels, cut off towards zero.
    fn bilinear(self, side: usize, source: &[u8], out: &mut [u8]) {
        let [a, b, c, d, e, f] = self.0;
        let size = side as f64;
        let last = side as i64 - 1;
        for (line, row) in out.chunks_exact_mut(side * 3).enumerate() {
            let y_out = line as f64 + 0.5;
            for (column, pixel) in row.chunks_exact_mut(3).enumerate() {
                let x_out = column as f64 + 0.5;
                let (x, y) = (a * x_out + b * y_out + c, d * x_out + e * y_out + f);
                if !(x >= 0.0 && x < size && y >= 0.0 && y < size) {
                    continue;
                }
                let (x, y) = (x - 0.5, y - 0.5);
                let (left, top) = (x.floor(), y.floor());
                let (dx, dy) = (x - left, y - top);
                let clip = |place: f64, more: i64| (place as i64 + more).clamp(0, last) as usize;
                let (x0, x1) = (clip(left, 0) * 3, clip(left, 1) * 3);
                let (y0, y1) = (clip(top, 0) * side * 3, clip(top, 1) * side * 3);
                for (channel, value) in pixel.iter_mut().enumerate() {
                    let at = |row: usize, column: usize| f64::from(source[row + column + channel]);
                    let mix = |from: f64, to: f64, share: f64| from + (to - from) * share;
                    let (upper, lower) = (mix(at(y0, x0), at(y0, x1), dx), mix(at(y1, x0), at(y1, x1), dx));
                    *value = mix(upper, lower, dy) as u8;
                }
            }
        }
    }
}
