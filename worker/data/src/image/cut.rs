//! Which part of an image is used, in pixels of its full size.

use lockstep_proto::draws::Draws;

/// A part of an image; borders need not lie between pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cut {
    /// Left border.
    pub x: f64,
    /// Upper border.
    pub y: f64,
    /// Columns.
    pub width: f64,
    /// Rows.
    pub height: f64,
}

/// How often a random part is tried.
const ATTEMPTS: usize = 10;

/// A random part of `width` × `height` pixels (Szegedy et al. 2015, with the details of torchvision's
/// RandomResizedCrop): its area is uniform in `scale` of the image's, the logarithm of its width ÷ height uniform in that
/// of `ratio`, whole numbers rounded half to even, its place uniform. What does not fit is drawn anew; after ten times
/// the largest central part whose ratio is allowed. Each attempt takes two draws, and the one that fits two more.
pub fn random((width, height): (u32, u32), scale: [f64; 2], ratio: [f64; 2], draws: &mut Draws) -> Cut {
    let area = f64::from(width) * f64::from(height);
    // `libm`, not the system's: the same bits everywhere
    let logs = ratio.map(libm::log);
    let between = |[low, high]: [f64; 2], draws: &mut Draws| low + (high - low) * draws.unit();
    for _ in 0..ATTEMPTS {
        let target = area * between(scale, draws);
        let aspect = libm::exp(between(logs, draws));
        let columns = (target * aspect).sqrt().round_ties_even();
        let rows = (target / aspect).sqrt().round_ties_even();
        if columns >= 1.0 && columns <= f64::from(width) && rows >= 1.0 && rows <= f64::from(height) {
            // invariant: both are whole and at most 32 bits wide
            let y = draws.below(height - rows as u32 + 1);
            let x = draws.below(width - columns as u32 + 1);
            return Cut { x: x.into(), y: y.into(), width: columns, height: rows };
        }
    }
    let (w, h) = (f64::from(width), f64::from(height));
    let (columns, rows) = if w / h < ratio[0] {
        (w, (w / ratio[0]).round_ties_even())
    } else if w / h > ratio[1] {
        ((h * ratio[1]).round_ties_even(), h)
    } else {
        (w, h)
    };
    let (columns, rows) = (columns.clamp(1.0, w), rows.clamp(1.0, h));
    Cut { x: ((w - columns) / 2.0).floor(), y: ((h - rows) / 2.0).floor(), width: columns, height: rows }
}

/// What becomes the central square of `crop` pixels when the short side is scaled to `resize` ≥ `crop` pixels, with
/// torchvision's roundings: the long side is rounded down, the square's place to the nearest pixel, half to even.
pub fn centre((width, height): (u32, u32), resize: u32, crop: u32) -> Cut {
    let long = |long: u32, short: u32| (u64::from(resize) * u64::from(long) / u64::from(short.max(1))) as f64;
    let (columns, rows) = if width <= height {
        (f64::from(resize), long(height, width))
    } else {
        (long(width, height), f64::from(resize))
    };
    let place = |length: f64| ((length - f64::from(crop)) / 2.0).round_ties_even();
    let (per_column, per_row) = (f64::from(width) / columns, f64::from(height) / rows);
    Cut {
        x: place(columns) * per_column,
        y: place(rows) * per_row,
        width: f64::from(crop) * per_column,
        height: f64::from(crop) * per_row,
    }
}

#[cfg(test)]
mod tests {
    use lockstep_proto::ids::Epoch;

    use super::*;

    fn drawn(size: (u32, u32), scale: [f64; 2], ratio: [f64; 2]) -> impl Iterator<Item = Cut> {
        (0..20_000).map(move |position| random(size, scale, ratio, &mut Draws::new(5, Epoch(2), position)))
    }

    const RATIO: [f64; 2] = [0.75, 4.0 / 3.0];

    #[test]
    fn parts_lie_inside_have_whole_pixels_and_an_allowed_shape() {
        for size in [(500, 375), (375, 500), (1, 1), (9, 400), (3000, 17)] {
            for cut in drawn(size, [0.08, 1.0], RATIO).take(2_000) {
                assert!([cut.x, cut.y, cut.width, cut.height].iter().all(|v| v.fract() == 0.0 && *v >= 0.0), "{cut:?}");
                assert!(cut.width >= 1.0 && cut.x + cut.width <= size.0.into(), "{cut:?} of {size:?}");
                assert!(cut.height >= 1.0 && cut.y + cut.height <= size.1.into(), "{cut:?} of {size:?}");
            }
        }
    }

    #[test]
    fn what_nothing_fits_in_gets_the_largest_central_part() {
        let wide = drawn((3000, 17), [0.08, 1.0], RATIO).last().unwrap();
        assert_eq!(wide, Cut { x: 1488.0, y: 0.0, width: 23.0, height: 17.0 });
        let tall = drawn((9, 400), [0.9, 1.0], RATIO).last().unwrap();
        assert_eq!(tall, Cut { x: 0.0, y: 194.0, width: 9.0, height: 12.0 });
        let whole = drawn((40, 40), [1.0, 1.0], [1.0, 1.0]).last().unwrap();
        assert_eq!(whole, Cut { x: 0.0, y: 0.0, width: 40.0, height: 40.0 });
    }

    #[test]
    fn the_centre_is_rounded_as_torchvision_does() {
        // 500 × 375: scaled to 341 × 256; (341 − 224) / 2 = 58.5 goes to 58
        let cut = centre((500, 375), 256, 224);
        assert!((cut.x - 58.0 * 500.0 / 341.0).abs() < 1e-12 && (cut.y - 16.0 * 375.0 / 256.0).abs() < 1e-12);
        assert!((cut.width - 224.0 * 500.0 / 341.0).abs() < 1e-12);
        // 3 × 5: 256 × 426; (426 − 224) / 2 = 101
        assert!((centre((3, 5), 256, 224).y - 101.0 * 5.0 / 426.0).abs() < 1e-12);
        assert_eq!(centre((64, 64), 64, 64), Cut { x: 0.0, y: 0.0, width: 64.0, height: 64.0 });
    }
}
