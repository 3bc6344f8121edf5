//! From bytes to floats: `(value − offset) · scale`, two roundings to nearest in f32, so the same bits everywhere.
//!
//! Sums over the training set (after `data.limit`) are exact integers; each statistic is rounded once to f64 and once
//! to f32. Both splits use the training set's.

use lockstep_proto::recipe::Normalize;

use crate::samples::Samples;

/// One offset and one scale for each value of an image.
#[derive(Clone, Debug, PartialEq)]
pub struct Normalizer {
    offset: Vec<f32>,
    scale: Vec<f32>,
}

impl Normalizer {
    /// From the statistics of a training set.
    ///
    /// - `pixel_mean`: the offset is the mean image, the scale one over the population standard deviation of every
    ///   value of the set around their one mean.
    /// - `channel`: mean and population standard deviation of each channel.
    /// - `none`: offset 0, scale 1/255.
    ///
    /// A deviation of zero counts as 1, in units of a byte.
    pub fn new(kind: Normalize, train: &Samples) -> Self {
        let (num_values, channels) = (train.num_values(), train.shape()[2]);
        let (offset, scale): (Vec<f64>, Vec<f64>) = match kind {
            Normalize::None => (vec![0.0; num_values], vec![1.0 / 255.0; num_values]),
            Normalize::PixelMean => {
                let moments = moments(train, num_values);
                let whole = moments.iter().fold(Moments::default(), |sum, part| sum.plus(part));
                (moments.iter().map(Moments::mean).collect(), vec![1.0 / whole.deviation(); num_values])
            }
            Normalize::Channel => {
                let moments = moments(train, channels);
                let cycled = |f: fn(&Moments) -> f64| moments.iter().map(f).cycle().take(num_values).collect();
                (cycled(Moments::mean), cycled(|m| 1.0 / m.deviation()))
            }
        };
        let rounded = |values: Vec<f64>| values.into_iter().map(|value| value as f32).collect();
        Self { offset: rounded(offset), scale: rounded(scale) }
    }

    /// What is subtracted, one number for each value of an image.
    pub fn offset(&self) -> &[f32] {
        &self.offset
    }

    /// What is then multiplied by.
    pub fn scale(&self) -> &[f32] {
        &self.scale
    }

    /// Writes the values `first …` of an image, as many as there are bytes.
    pub fn apply(&self, bytes: &[u8], first: usize, out: &mut [f32]) {
        let offset = &self.offset[first..first + bytes.len()];
        let scale = &self.scale[first..first + bytes.len()];
        for (((out, &byte), offset), scale) in out.iter_mut().zip(bytes).zip(offset).zip(scale) {
            *out = (f32::from(byte) - offset) * scale;
        }
    }
}

/// Exact sums over some of a set's values.
#[derive(Clone, Copy, Debug, Default)]
struct Moments {
    count: u64,
    sum: u64,
    squares: u64,
}

impl Moments {
    fn plus(&self, other: &Self) -> Self {
        Self { count: self.count + other.count, sum: self.sum + other.sum, squares: self.squares + other.squares }
    }

    fn mean(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum as f64 / self.count as f64 }
    }

    /// √(n·Σv² − (Σv)²) / n, the radicand exact.
    fn deviation(&self) -> f64 {
        let radicand = u128::from(self.count) * u128::from(self.squares) - u128::from(self.sum) * u128::from(self.sum);
        if radicand == 0 { 1.0 } else { (radicand as f64).sqrt() / self.count as f64 }
    }
}

/// Of each of `period` interleaved series of values: every place of an image, or every channel.
fn moments(train: &Samples, period: usize) -> Vec<Moments> {
    let mut moments = vec![Moments { count: (train.pixels().len() / period) as u64, ..Moments::default() }; period];
    for run in train.pixels().chunks_exact(period) {
        for (moment, &byte) in moments.iter_mut().zip(run) {
            moment.sum += u64::from(byte);
            moment.squares += u64::from(byte) * u64::from(byte);
        }
    }
    moments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Samples {
        let mut samples = Samples::with_capacity([2, 3, 3], 50);
        let mut state = 1_u32;
        for _ in 0..50 {
            let mut draw = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            };
            let image: [u8; 18] = std::array::from_fn(|place| draw() / (1 + place as u8 % 4));
            samples.push(&image, 0);
        }
        samples
    }

    fn mean_and_deviation(values: impl Iterator<Item = u8> + Clone) -> (f64, f64) {
        let count = values.clone().count() as f64;
        let mean = values.clone().map(f64::from).sum::<f64>() / count;
        (mean, (values.map(|v| (f64::from(v) - mean).powi(2)).sum::<f64>() / count).sqrt())
    }

    fn assert_near(found: f32, expected: f64) {
        assert!((f64::from(found) - expected).abs() <= 1e-6 * (1.0 + expected.abs()), "{found} for {expected}");
    }

    #[test]
    fn pixel_mean_is_the_mean_image_and_the_deviation_of_all_values() {
        let samples = samples();
        let normalizer = Normalizer::new(Normalize::PixelMean, &samples);
        let (_, deviation) = mean_and_deviation(samples.pixels().iter().copied());
        let mut out = [0.0; 18];
        normalizer.apply(samples.image(7), 0, &mut out);
        for (place, &value) in out.iter().enumerate() {
            let (mean, _) = mean_and_deviation((0..50).map(|s| samples.image(s)[place]));
            assert_near(value, (f64::from(samples.image(7)[place]) - mean) / deviation);
        }
    }

    #[test]
    fn channel_is_mean_and_deviation_of_each_channel() {
        let samples = samples();
        let normalizer = Normalizer::new(Normalize::Channel, &samples);
        let mut out = [0.0; 9];
        normalizer.apply(&samples.image(3)[9..], 9, &mut out);
        for (place, &value) in out.iter().enumerate() {
            let (mean, deviation) = mean_and_deviation(samples.pixels().iter().copied().skip(place % 3).step_by(3));
            assert_near(value, (f64::from(samples.image(3)[9 + place]) - mean) / deviation);
        }
    }

    #[test]
    fn none_keeps_zero_to_one() {
        let samples = samples();
        let mut out = [9.0; 3];
        Normalizer::new(Normalize::None, &samples).apply(&[0, 51, 255], 0, &mut out);
        assert!(out.iter().zip([0.0, 0.2, 1.0]).all(|(out, expected)| (out - expected).abs() < 1e-7), "{out:?}");
    }

    #[test]
    fn a_constant_set_becomes_zero_and_not_nan() {
        let mut samples = Samples::with_capacity([1, 1, 3], 2);
        samples.push(&[5, 6, 7], 0);
        samples.push(&[5, 6, 7], 0);
        let mut out = [9.0; 3];
        Normalizer::new(Normalize::Channel, &samples).apply(&[5, 6, 8], 0, &mut out);
        assert_eq!(out, [0.0, 0.0, 1.0]);
    }
}
