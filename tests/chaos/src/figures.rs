//! Samples of a figure, and what is said of them.

/// Seconds, or steps, of all trials.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// One more.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The least value that so great a fraction does not exceed; 0 of nothing.
    pub fn quantile(&self, fraction: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (fraction * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.max(1) - 1).copied().unwrap_or(0.0)
    }

    /// The greatest; 0 of nothing.
    pub fn max(&self) -> f64 {
        self.quantile(1.0)
    }

    /// `p50 0.12 s, p99 0.50 s`.
    pub fn seconds(&self) -> String {
        if self.0.is_empty() {
            return "no figure".into();
        }
        format!("p50 {:.2} s, p99 {:.2} s", self.quantile(0.5), self.quantile(0.99))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_seen() {
        let mut samples = Samples::default();
        assert_eq!(samples.seconds(), "no figure");
        (1..=200).for_each(|value| samples.push(f64::from(value)));
        assert_eq!([samples.quantile(0.5), samples.quantile(0.99), samples.max()], [100.0, 198.0, 200.0]);
    }
}
