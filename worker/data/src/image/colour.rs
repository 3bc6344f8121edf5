//! Colour jitter, as Pillow's `ImageEnhance` and torchvision's `ColorJitter` compute it on bytes, and lighting noise
//! (Krizhevsky et al. 2012, section 4.1).

use lockstep_proto::draws::Draws;
use lockstep_proto::recipe;

use super::tone;

/// Square roots of the eigenvalues of the covariance of ImageNet's colours, as fractions of full light.
const EIGENVALUES: [f64; 3] = [0.2175, 0.0188, 0.0045];
/// Its eigenvectors: rows are red, green, blue, columns belong to the values above.
const EIGENVECTORS: [[f64; 3]; 3] =
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]];

/// What happens to the colours of one image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Jitter {
    brightness: Option<f32>,
    contrast: Option<f32>,
    saturation: Option<f32>,
    /// 256ths of the circle.
    hue: Option<u8>,
    /// A permutation of the four, by its number.
    order: u32,
    /// Added to red, green, blue: fractions of full light.
    pub light: [f32; 3],
}

impl Jitter {
    /// Eleven draws, always: four factors, each uniform in its range; the order of the four; three normal weights, two
    /// draws each. What the recipe does not ask for is thrown away.
    pub fn draw(image: &recipe::Image, draws: &mut Draws) -> Self {
        let mut factor = |strength: f64| {
            let (low, high) = ((1.0 - strength).max(0.0), 1.0 + strength);
            let drawn = low + (high - low) * draws.unit();
            (strength > 0.0).then_some(drawn as f32)
        };
        let (brightness, contrast, saturation) =
            (factor(image.brightness), factor(image.contrast), factor(image.saturation));
        let turn = (2.0 * draws.unit() - 1.0) * image.hue;
        let order = draws.below(24);
        let weights = EIGENVALUES.map(|value| value * image.lighting * normal(draws));
        let along = |row: [f64; 3]| row.iter().zip(weights).map(|(v, weight)| v * weight).sum::<f64>() as f32;
        // towards zero, then round the circle
        let hue = (image.hue > 0.0).then_some((turn * 255.0) as i32 as u8);
        Self { brightness, contrast, saturation, hue, order, light: EIGENVECTORS.map(along) }
    }

    /// Whether bytes change at all.
    pub fn is_wanted(&self) -> bool {
        self.brightness.is_some() || self.contrast.is_some() || self.saturation.is_some() || self.hue.is_some()
    }

    /// Changes RGB bytes; `light` is for whoever makes floats of them.
    pub fn apply(&self, rgb: &mut [u8]) {
        let mut left = vec![0, 1, 2, 3];
        let mut number = self.order as usize;
        for base in [6, 2, 1, 1] {
            let which = left.remove(number / base);
            number %= base;
            match which {
                0 => self.brightness.iter().for_each(|&factor| tone::brightness(rgb, factor)),
                1 => self.contrast.iter().for_each(|&factor| tone::contrast(rgb, factor)),
                2 => self.saturation.iter().for_each(|&factor| tone::saturation(rgb, factor)),
                _ => self.hue.iter().for_each(|&turn| rgb.chunks_exact_mut(3).for_each(|pixel| rotate(pixel, turn))),
            }
        }
    }
}

/// Box and Muller's; `libm`, so the same bits everywhere.
fn normal(draws: &mut Draws) -> f64 {
    let (radius, angle) = (1.0 - draws.unit(), draws.unit());
    (-2.0 * libm::log(radius)).sqrt() * libm::cos(2.0 * std::f64::consts::PI * angle)
}

/// ITU-R 601 in 16-bit fixed point.
pub(super) fn gray(pixel: &[u8]) -> u8 {
    let [red, green, blue] = [pixel[0], pixel[1], pixel[2]].map(u32::from);
    ((red * 19_595 + green * 38_470 + blue * 7_471 + 0x8000) >> 16) as u8
}

/// From `base` (factor 0) through the pixel (factor 1) and beyond, cut off towards zero.
pub(super) fn blend(rgb: &mut [u8], factor: f32, base: impl Fn(&[u8]) -> u8) {
    for pixel in rgb.chunks_exact_mut(3) {
        let base = f32::from(base(pixel));
        // `as` saturates
        pixel.iter_mut().for_each(|value| *value = (base + factor * (f32::from(*value) - base)) as u8);
    }
}

/// Turns the hue by 256ths of the circle, through eight bits of hue, saturation and value.
fn rotate(pixel: &mut [u8], turn: u8) {
    let (greatest, least) = (pixel[0].max(pixel[1]).max(pixel[2]), pixel[0].min(pixel[1]).min(pixel[2]));
    if greatest == least {
        return;
    }
    let range = f32::from(greatest - least);
    let [red, green, blue] = [pixel[0], pixel[1], pixel[2]].map(|value| f32::from(greatest - value) / range);
    let sixths = if pixel[0] == greatest {
        blue - green
    } else if pixel[1] == greatest {
        2.0 + red - blue
    } else {
        4.0 + green - red
    };
    let hue = (f64::from(sixths) / 6.0 + 1.0).fract();
    let hue = ((hue * 255.0) as u8).wrapping_add(turn);
    let saturation = (range / f32::from(greatest) * 255.0) as u8;
    let (value, saturation) = (f32::from(greatest), f32::from(saturation) / 255.0);
    let place = f32::from(hue) * 6.0 / 255.0;
    let part = place.fract();
    let level = |share: f32| (value * (1.0 - saturation * share)).round() as u8;
    let (low, falling, rising) = (level(1.0), level(part), level(1.0 - part));
    let colour = match place as u32 % 6 {
        0 => [greatest, rising, low],
        1 => [falling, greatest, low],
        2 => [low, greatest, rising],
        3 => [low, falling, greatest],
        4 => [rising, low, greatest],
        _ => [greatest, low, falling],
    };
    pixel.copy_from_slice(&colour);
}

#[cfg(test)]
mod tests {
    use lockstep_proto::ids::Epoch;

    use super::*;

    fn draws(position: u64) -> Draws {
        Draws::new(4, Epoch(1), position)
    }

    #[test]
    fn a_switch_leaves_the_other_draws_as_they_are() {
        let all = recipe::Image {
            brightness: 0.4,
            contrast: 0.4,
            saturation: 0.4,
            hue: 0.1,
            lighting: 0.1,
            ..recipe::Image::default()
        };
        for position in 0..50 {
            let both = Jitter::draw(&all, &mut draws(position));
            let one = Jitter::draw(&recipe::Image { contrast: 0.0, ..all.clone() }, &mut draws(position));
            assert_eq!(one, Jitter { contrast: None, ..both });
            let mut used = draws(position);
            Jitter::draw(&recipe::Image::default(), &mut used);
            let mut counted = draws(position);
            for _ in 0..11 {
                counted.next_u64();
            }
            assert_eq!(used, counted);
        }
    }

    #[test]
    fn factors_of_one_change_nothing_and_of_zero_everything() {
        let rgb: Vec<u8> = (0..=255).flat_map(|v: u8| [v, v.wrapping_mul(3), 255 - v]).collect();
        let with = |brightness, contrast, saturation| {
            let mut out = rgb.clone();
            let jitter = Jitter { brightness, contrast, saturation, hue: None, order: 0, light: [0.0; 3] };
            jitter.apply(&mut out);
            out
        };
        assert_eq!(with(Some(1.0), Some(1.0), Some(1.0)), rgb);
        assert!(with(Some(0.0), None, None).iter().all(|&v| v == 0));
        assert!(with(None, None, Some(0.0)).chunks_exact(3).all(|p| p[0] == p[1] && p[1] == p[2]));
        let flat = with(None, Some(0.0), None);
        assert!(flat.iter().all(|&v| v == flat[0]));
    }

    #[test]
    fn a_third_of_the_circle_changes_red_to_green() {
        let mut pixel = [200, 10, 10];
        rotate(&mut pixel, 85);
        assert!(pixel[1] == 200 && pixel[0] < 14 && pixel[2] < 14, "{pixel:?}");
    }

    #[test]
    fn every_order_of_the_four_comes() {
        let rgb: Vec<u8> = (0..=255).flat_map(|v: u8| [v, v.wrapping_mul(5), 255 - v]).collect();
        let results = (0..24).map(|order| {
            let mut out = rgb.clone();
            let (b, c, s) = (Some(1.4), Some(0.5), Some(1.7));
            Jitter { brightness: b, contrast: c, saturation: s, hue: Some(20), order, light: [0.0; 3] }.apply(&mut out);
            out
        });
        assert!(results.collect::<std::collections::BTreeSet<_>>().len() > 20);
    }

    #[test]
    fn lighting_has_the_covariance_of_the_eigenvectors() {
        let image = recipe::Image { lighting: 0.1, ..recipe::Image::default() };
        let num = 40_000;
        let mut squares = [0.0; 3];
        for position in 0..num {
            let light = Jitter::draw(&image, &mut draws(position)).light;
            squares.iter_mut().zip(light).for_each(|(sum, value)| *sum += f64::from(value).powi(2));
        }
        for (sum, row) in squares.iter().zip(EIGENVECTORS) {
            let expected: f64 = row.iter().zip(EIGENVALUES).map(|(v, e)| (0.1 * v * e).powi(2)).sum();
            assert!((sum / num as f64 / expected - 1.0).abs() < 0.04, "{sum} {expected}");
        }
    }
}
