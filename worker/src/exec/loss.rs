//! Softmax cross-entropy over a chunk's logits: f64 inside, whatever the number type outside.

use crate::number::Number;

/// Sums over samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    /// Σ cross-entropy.
    pub loss: f64,
    /// Samples whose best class is not the label.
    pub wrong: u64,
    /// Samples whose label is not among the five best classes.
    pub wrong_top5: u64,
}

/// Sums the loss of `logits` (n × classes, row by row) and writes its gradient divided by `batch` (the samples of the
/// global batch) into `gradient`, same shape, when given. A tie goes to the lower class.
pub fn cross_entropy<A: Number>(logits: &[A], labels: &[i64], batch: f64, gradient: Option<&mut [A]>) -> Counts {
    let classes = logits.len() / labels.len().max(1);
    let mut counts = Counts::default();
    let mut gradient = gradient;
    let mut exps = vec![0.0; classes];
    for (i, (row, &label)) in logits.chunks_exact(classes.max(1)).zip(labels).enumerate() {
        let label = label as usize;
        let own = row[label].to_f64();
        let largest = row.iter().fold(f64::NEG_INFINITY, |m, x| if x.to_f64() > m { x.to_f64() } else { m });
        let mut sum = 0.0;
        for (e, x) in exps.iter_mut().zip(row) {
            *e = (x.to_f64() - largest).exp();
            sum += *e;
        }
        counts.loss += sum.ln() - (own - largest);
        let ahead =
            row.iter().enumerate().filter(|(c, x)| x.to_f64() > own || (x.to_f64() == own && *c < label)).count();
        let lost = own.is_nan();
        counts.wrong += u64::from(lost || ahead > 0);
        counts.wrong_top5 += u64::from(lost || ahead > 4);
        if let Some(gradient) = gradient.as_deref_mut() {
            for (c, (g, e)) in gradient[i * classes..(i + 1) * classes].iter_mut().zip(&exps).enumerate() {
                let target = if c == label { 1.0 } else { 0.0 };
                *g = A::from_f64((e / sum - target) / batch);
            }
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        let mut gradient = [0.0f64; 4];
        let counts = cross_entropy(&[0.0f64, 0.0, 3f64.ln(), 0.0], &[1, 0], 2.0, Some(&mut gradient));
        assert!((counts.loss - (2f64.ln() + (4.0f64 / 3.0).ln())).abs() < 1e-15);
        assert_eq!((counts.wrong, counts.wrong_top5), (1, 0));
        for (have, want) in gradient.iter().zip([0.25, -0.25, -0.125, 0.125]) {
            assert!((have - want).abs() < 1e-15);
        }
    }

    #[test]
    fn a_nan_is_wrong_and_stays_one() {
        let counts = cross_entropy(&[f32::NAN, 1.0], &[0], 1.0, None);
        assert!(counts.loss.is_nan());
        assert_eq!(counts.wrong, 1);
    }
}
