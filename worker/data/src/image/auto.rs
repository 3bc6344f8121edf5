//! RandAugment (Cubuk et al. 2020) and TrivialAugmentWide (Müller & Hutter 2021), with the operations, magnitudes and
//! bins of torchvision 0.26 (`transforms/autoaugment.py`) on Pillow images. `tests/augment.rs` compares operation by
//! operation.

use lockstep_proto::draws::Draws;
use lockstep_proto::recipe::{self, AutoAugment, Interpolation};

use super::warp::Affine;
use super::{Room, tone};

/// One of torchvision's operations, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "torchvision's names")]
pub enum Op {
    Identity,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    Brightness,
    Color,
    Contrast,
    Sharpness,
    Posterize,
    Solarize,
    AutoContrast,
    Equalize,
}

impl Op {
    /// All of them: each is as likely as the others.
    pub const ALL: [Self; 14] = [
        Self::Identity,
        Self::ShearX,
        Self::ShearY,
        Self::TranslateX,
        Self::TranslateY,
        Self::Rotate,
        Self::Brightness,
        Self::Color,
        Self::Contrast,
        Self::Sharpness,
        Self::Posterize,
        Self::Solarize,
        Self::AutoContrast,
        Self::Equalize,
    ];

    /// Whether its magnitude is negative half of the time.
    pub fn is_signed(self) -> bool {
        (Self::ShearX..=Self::Sharpness).contains(&self)
    }

    /// Its magnitude in `bin` of `num_bins` ≥ 2: a tangent, pixels, degrees, what is added to a factor of 1, bits, a
    /// threshold. `side` is the square's, pixels.
    pub fn magnitude(self, policy: AutoAugment, (bin, num_bins): (u32, u32), side: usize) -> f64 {
        let wide = policy == AutoAugment::TrivialAugmentWide;
        let pick = |narrow: f64, broad: f64| linspace(0.0, if wide { broad } else { narrow }, bin, num_bins);
        match self {
            Self::Identity | Self::AutoContrast | Self::Equalize => 0.0,
            Self::ShearX | Self::ShearY => pick(0.3, 0.99),
            Self::TranslateX | Self::TranslateY => pick(150.0 / 331.0 * side as f64, 32.0),
            Self::Rotate => pick(30.0, 135.0),
            Self::Brightness | Self::Color | Self::Contrast | Self::Sharpness => pick(0.9, 0.99),
            Self::Posterize => {
                let most = if wide { 6.0 } else { 4.0 };
                let lost = bin as f32 / (f64::from(num_bins - 1) / most) as f32;
                8.0 - f64::from(lost.round_ties_even())
            }
            Self::Solarize => linspace(255.0, 0.0, bin, num_bins),
        }
    }

    /// Does it to a square of RGB bytes.
    pub fn apply(self, magnitude: f64, interpolation: Interpolation, rgb: &mut [u8], room: &mut Room) {
        let side = (rgb.len() / 3).isqrt();
        // translations are by whole pixels, cut off towards zero
        let (whole, factor, room) = (magnitude.trunc(), (1.0 + magnitude) as f32, &mut room.0);
        match self {
            Self::Identity => (),
            Self::ShearX => Affine::shear_x(magnitude).apply(interpolation, side, rgb, room),
            Self::ShearY => Affine::shear_y(magnitude).apply(interpolation, side, rgb, room),
            Self::TranslateX => Affine::shift(whole, 0.0).apply(interpolation, side, rgb, room),
            Self::TranslateY => Affine::shift(0.0, whole).apply(interpolation, side, rgb, room),
            Self::Rotate if magnitude == 0.0 => (),
            Self::Rotate => Affine::rotation(magnitude, side).apply(interpolation, side, rgb, room),
            Self::Brightness => tone::brightness(rgb, factor),
            Self::Color => tone::saturation(rgb, factor),
            Self::Contrast => tone::contrast(rgb, factor),
            Self::Sharpness => tone::sharpness(rgb, factor, side, room),
            // invariant: bits are 2 … 8
            Self::Posterize => tone::posterize(rgb, magnitude as u32),
            Self::Solarize => tone::solarize(rgb, magnitude),
            Self::AutoContrast => tone::autocontrast(rgb),
            Self::Equalize => tone::equalize(rgb),
        }
    }
}

/// torch.linspace in f32: from whichever end is nearer, each operation rounded. What torch computes eight at a time may be
/// off by a unit in the last place, which depends on the processor.
fn linspace(start: f64, end: f64, at: u32, num: u32) -> f64 {
    let (start, end) = (start as f32, end as f32);
    let step = (end - start) / (num - 1) as f32;
    f64::from(if at < num / 2 { start + step * at as f32 } else { end - step * (num - 1 - at) as f32 })
}

/// The operations on one square of `side` pixels, with their magnitudes. Three draws for each, always, from a sequence of their own: the
/// operation; the bin, which RandAugment throws away; the sign.
pub fn draw(image: &recipe::Image, side: usize, draws: &mut Draws) -> Vec<(Op, f64)> {
    let num_ops = match image.auto_augment {
        AutoAugment::None => 0,
        AutoAugment::RandAugment => image.auto_ops,
        AutoAugment::TrivialAugmentWide => 1,
    };
    let one = |_| {
        let op = Op::ALL[draws.below(Op::ALL.len() as u32) as usize];
        let drawn = draws.below(image.auto_bins);
        let bin = if image.auto_augment == AutoAugment::RandAugment { image.auto_magnitude } else { drawn };
        let magnitude = op.magnitude(image.auto_augment, (bin, image.auto_bins), side);
        (op, if draws.coin() && op.is_signed() { -magnitude } else { magnitude })
    };
    (0..num_ops).map(one).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lockstep_proto::ids::Epoch;

    use super::*;

    #[test]
    fn operations_bins_and_signs_are_uniform() {
        let image = recipe::Image { auto_augment: AutoAugment::TrivialAugmentWide, ..recipe::Image::default() };
        let mut counts = BTreeMap::new();
        let num = 60_000;
        let (mut negative, mut signed) = (0, 0);
        let mut bins = BTreeMap::new();
        for position in 0..num {
            let drawn = draw(&image, 224, &mut Draws::new(1, Epoch(2), position));
            let [(op, magnitude)] = drawn[..] else { panic!("{drawn:?}") };
            *counts.entry(op).or_insert(0_u64) += 1;
            if op == Op::ShearX {
                *bins.entry((magnitude.abs() * 1000.0).round() as u64).or_insert(0_u64) += 1;
            }
            if op.is_signed() && magnitude != 0.0 {
                (signed, negative) = (signed + 1, negative + u64::from(magnitude < 0.0));
            }
            assert!(op.is_signed() || magnitude >= 0.0);
        }
        assert_eq!((counts.len(), bins.len()), (14, 31));
        let near = |count: u64, of: u64, share: f64| {
            let (of, count) = (of as f64, count as f64);
            (count - of * share).abs() < 5.0 * (of * share).sqrt()
        };
        assert!(counts.values().all(|count| near(*count, num, 1.0 / 14.0)), "{counts:?}");
        assert!(bins.values().all(|count| near(*count, num / 14, 1.0 / 31.0)), "{bins:?}");
        assert!(near(negative, signed, 0.5), "{negative} of {signed}");
    }

    #[test]
    fn rand_augment_has_so_many_operations_of_one_magnitude() {
        let image = recipe::Image {
            auto_augment: AutoAugment::RandAugment,
            auto_ops: 3,
            auto_magnitude: 30,
            ..recipe::Image::default()
        };
        let drawn: Vec<_> = (0..500).flat_map(|at| draw(&image, 224, &mut Draws::new(1, Epoch(1), at))).collect();
        assert_eq!(drawn.len(), 1500);
        let of = |op: Op| drawn.iter().filter(move |(found, _)| *found == op).map(|(_, magnitude)| magnitude.abs());
        assert!(of(Op::Rotate).all(|magnitude| magnitude == 30.0) && of(Op::Rotate).count() > 50);
        assert!(of(Op::Posterize).all(|magnitude| magnitude == 4.0));
        assert!(of(Op::TranslateX).all(|magnitude| (magnitude - 150.0 / 331.0 * 224.0).abs() < 1e-4));
    }
}
