//! Mixup and CutMix: which positions are mixed, with whom, and how. A pure function of seed, epoch, position and global
//! batch, so it does not matter which worker does it.
//!
//! ```text
//! batch      …  p − d  …  p  …        d = data.repeats: the last position before p that has another sample,
//!                 └──────►┘           round the batch at its beginning
//! ```
//! torchvision's training draws once for the batch of each GPU, which makes the draw depend on their number. Here every
//! position draws its own, from the same distributions. Transcendental functions come from `libm`: the same bits everywhere.

use crate::draws::Draws;
use crate::ids::{Epoch, SampleRange};
use crate::recipe::Recipe;

/// What becomes of an image, and of its target: `keep` of its own class and the rest of its partner's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mix {
    /// As it is.
    Alone,
    /// `keep · own + (1 − keep) · partner`.
    Blend {
        /// In `(0, 1)`, or at its ends by rounding.
        keep: f64,
    },
    /// The rectangle is the partner's.
    Paste {
        /// What is the partner's.
        area: Area,
        /// The share of the image that is left.
        keep: f64,
    },
}

/// A rectangle of pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// Its first row.
    pub top: u32,
    /// Its first column.
    pub left: u32,
    /// The row after its last.
    pub bottom: u32,
    /// The column after its last.
    pub right: u32,
}

/// The mixing of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixing {
    seed: u64,
    mixup_alpha: f64,
    cutmix_alpha: f64,
    probability: f64,
    repeats: u64,
}

impl Mixing {
    /// Of a recipe; `None` where nothing is mixed.
    pub fn new(recipe: &Recipe) -> Option<Self> {
        let train = &recipe.train;
        let wanted = (train.mixup_alpha > 0.0 || train.cutmix_alpha > 0.0) && train.mix_probability > 0.0;
        wanted.then(|| Self {
            seed: train.seed,
            mixup_alpha: train.mixup_alpha,
            cutmix_alpha: train.cutmix_alpha,
            probability: train.mix_probability,
            repeats: u64::from(recipe.data.repeats.max(1)),
        })
    }

    /// The position that `position` of the global batch `batch` is mixed with. In a batch that holds one sample only it
    /// may be the position itself.
    pub fn partner(&self, position: u64, batch: SampleRange) -> u64 {
        let back = self.repeats % batch.len.max(1);
        let at = position - batch.start;
        batch.start + if at >= back { at - back } else { at + batch.len - back }
    }

    /// How a position is mixed, of images of so many rows and columns.
    pub fn at(&self, epoch: Epoch, position: u64, [height, width]: [u32; 2]) -> Mix {
        let mut draws = Draws::for_mixing(self.seed, epoch, position);
        let (chance, coin) = (draws.unit(), draws.coin());
        let (row, column) = (draws.below(height), draws.below(width));
        if chance >= self.probability {
            return Mix::Alone;
        }
        let pastes = self.cutmix_alpha > 0.0 && (self.mixup_alpha == 0.0 || coin);
        // Last, because their number varies.
        let keep = beta(if pastes { self.cutmix_alpha } else { self.mixup_alpha }, &mut draws);
        if !pastes {
            return Mix::Blend { keep };
        }
        // Yun et al. 2019, algorithm A1, with torchvision's rounding.
        let half = 0.5 * (1.0 - keep).sqrt();
        let [high, wide] = [height, width].map(|side| (half * f64::from(side)) as u32);
        let area = Area {
            top: row.saturating_sub(high),
            left: column.saturating_sub(wide),
            bottom: (row + high).min(height),
            right: (column + wide).min(width),
        };
        let taken = u64::from(area.bottom - area.top) * u64::from(area.right - area.left);
        let all = u64::from(height) * u64::from(width);
        Mix::Paste { area, keep: 1.0 - taken as f64 / all.max(1) as f64 }
    }
}

/// A draw from Beta(α, α): a share of two draws from Gamma(α), in logarithms so that a small α does not end in 0 ÷ 0.
fn beta(alpha: f64, draws: &mut Draws) -> f64 {
    let (a, b) = (log_gamma_draw(alpha, draws), log_gamma_draw(alpha, draws));
    1.0 / (1.0 + libm::exp(b - a))
}

/// The logarithm of a draw from Gamma(α, 1): Marsaglia & Tsang 2000, section 6 for α < 1.
fn log_gamma_draw(alpha: f64, draws: &mut Draws) -> f64 {
    // Never 0, so that its logarithm is finite.
    let positive = |draws: &mut Draws| 1.0 - draws.unit();
    let (shape, boost) = if alpha < 1.0 { (alpha + 1.0, libm::log(positive(draws)) / alpha) } else { (alpha, 0.0) };
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        // Box and Muller 1958.
        let radius = (-2.0 * libm::log(positive(draws))).sqrt();
        let x = radius * libm::cos(std::f64::consts::TAU * draws.unit());
        let root = 1.0 + c * x;
        if root <= 0.0 {
            continue;
        }
        let v = root * root * root;
        if libm::log(positive(draws)) < 0.5 * x * x + d - d * v + d * libm::log(v) {
            return libm::log(d * v) + boost;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mixing(mixup_alpha: f64, cutmix_alpha: f64, probability: f64) -> Mixing {
        let mut recipe = Recipe::default();
        (recipe.train.mixup_alpha, recipe.train.cutmix_alpha) = (mixup_alpha, cutmix_alpha);
        recipe.train.mix_probability = probability;
        Mixing::new(&recipe).unwrap()
    }

    /// Kolmogorov's distance between what is drawn and a distribution.
    fn distance(mut drawn: Vec<f64>, cdf: impl Fn(f64) -> f64) -> f64 {
        drawn.sort_by(f64::total_cmp);
        let n = drawn.len() as f64;
        let off = |(i, x): (usize, &f64)| (cdf(*x) - i as f64 / n).abs().max((cdf(*x) - (i + 1) as f64 / n).abs());
        drawn.iter().enumerate().map(off).fold(0.0, f64::max)
    }

    fn shares(alpha: f64) -> Vec<f64> {
        let mixing = mixing(alpha, 0.0, 1.0);
        let keep = |position| match mixing.at(Epoch(1), position, [8, 8]) {
            Mix::Blend { keep } => keep,
            other => panic!("{other:?}"),
        };
        (0..20_000).map(keep).collect()
    }

    #[test]
    fn shares_are_beta_distributed() {
        // Distribution functions that have a closed form. 1.95 / √n is passed by one honest sample in a thousand.
        let bound = 1.95 / 20_000f64.sqrt();
        let arcsine = distance(shares(0.5), |x| 2.0 / std::f64::consts::PI * x.sqrt().asin());
        assert!(arcsine < bound, "α = 1/2: {arcsine}");
        let uniform = distance(shares(1.0), |x| x);
        assert!(uniform < bound, "α = 1: {uniform}");
        let cubic = distance(shares(2.0), |x| x * x * (3.0 - 2.0 * x));
        assert!(cubic < bound, "α = 2: {cubic}");
        assert!(distance(shares(2.0), |x| x) > 4.0 * bound, "the distance can tell");
    }

    #[test]
    fn small_and_large_alphas_have_the_variance_that_they_should() {
        for alpha in [0.001, 0.2, 50.0] {
            let drawn = shares(alpha);
            assert!(drawn.iter().all(|keep| (0.0..=1.0).contains(keep)), "α = {alpha}");
            let mean = drawn.iter().sum::<f64>() / drawn.len() as f64;
            let variance = drawn.iter().map(|keep| (keep - 0.5).powi(2)).sum::<f64>() / drawn.len() as f64;
            let expected = 1.0 / (4.0 * (2.0 * alpha + 1.0));
            assert!((mean - 0.5).abs() < 6.0 * (expected / drawn.len() as f64).sqrt(), "α = {alpha}: mean {mean}");
            assert!((variance / expected - 1.0).abs() < 0.06, "α = {alpha}: variance {variance}, not {expected}");
        }
    }

    #[test]
    fn what_is_pasted_is_what_the_target_says() {
        let mixing = mixing(0.0, 1.0, 1.0);
        let (mut sum, num) = (0.0, 20_000);
        for position in 0..num {
            let Mix::Paste { area, keep } = mixing.at(Epoch(3), position, [24, 32]) else { panic!("pasted") };
            assert!(area.top <= area.bottom && area.bottom <= 24 && area.left <= area.right && area.right <= 32);
            let pixels = (area.bottom - area.top) * (area.right - area.left);
            assert_eq!(keep, 1.0 - f64::from(pixels) / 768.0);
            sum += 1.0 - keep;
        }
        // Before clipping and rounding down, one half of the area on average; what is clipped is seen.
        let mean = sum / num as f64;
        assert!((0.25..0.4).contains(&mean), "{mean}");
    }

    #[test]
    fn kinds_and_chances_are_as_asked_for() {
        let both = mixing(0.2, 1.0, 0.75);
        let (mut alone, mut blended, mut pasted) = (0_i32, 0_i32, 0_i32);
        for position in 0..10_000 {
            match both.at(Epoch(1), position, [32, 32]) {
                Mix::Alone => alone += 1,
                Mix::Blend { .. } => blended += 1,
                Mix::Paste { .. } => pasted += 1,
            }
        }
        // Six deviations.
        assert!((alone - 2_500).abs() < 260, "{alone}");
        assert!((blended - pasted).abs() < 520, "{blended} and {pasted}");
        let mut none = Recipe::default();
        assert_eq!(Mixing::new(&none), None);
        (none.train.mixup_alpha, none.train.mix_probability) = (0.2, 0.0);
        assert_eq!(Mixing::new(&none), None);
    }

    #[test]
    fn partners_are_a_rotation_of_the_batch_by_whole_samples() {
        for (repeats, start, len) in [(1, 0, 8), (1, 40, 7), (4, 64, 32), (4, 0, 10), (3, 5, 2), (1, 9, 1)] {
            let mut recipe = Recipe::default();
            (recipe.train.mixup_alpha, recipe.data.repeats) = (0.2, repeats);
            let mixing = Mixing::new(&recipe).unwrap();
            let batch = SampleRange { start, len };
            let mut partners: Vec<u64> = (start..start + len).map(|at| mixing.partner(at, batch)).collect();
            if len > u64::from(repeats) {
                for (at, partner) in (start..).zip(&partners) {
                    assert_ne!(at / u64::from(repeats), partner / u64::from(repeats), "{at} and {partner}");
                }
            }
            partners.sort_unstable();
            assert_eq!(partners, (start..start + len).collect::<Vec<_>>(), "repeats {repeats}, batch {batch}");
        }
    }

    /// If this fails, every run that mixes takes another course than before: do it knowingly.
    #[test]
    fn mixing_never_changes_by_accident() {
        let bits = |keep: f64| keep.to_bits();
        let of = |mixing: &Mixing, position| match mixing.at(Epoch(7), position, [224, 224]) {
            Mix::Alone => (0, 0, 0, 0, 0),
            Mix::Blend { keep } => (bits(keep), 0, 0, 0, 0),
            Mix::Paste { area: Area { top, left, bottom, right }, keep } => (bits(keep), top, left, bottom, right),
        };
        let both = mixing(0.2, 1.0, 1.0);
        assert_eq!([0, 1, 2, 3].map(|position| of(&both, position)), GOLDEN);
    }

    const GOLDEN: [(u64, u32, u32, u32, u32); 4] = [
        (4603616231371870793, 95, 70, 224, 224),
        (4606615873677871940, 0, 0, 0, 0),
        (4603034971183995089, 8, 62, 160, 214),
        (4605114439379286058, 75, 0, 203, 90),
    ];
}
