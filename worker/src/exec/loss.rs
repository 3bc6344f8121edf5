//! Softmax cross-entropy over a chunk's logits: f64 inside, whatever the number type outside.

use lockstep_data::Partner;

use crate::number::Number;

/// What the samples of a chunk are to be told as.
#[derive(Clone, Copy, Debug)]
pub struct Targets<'a> {
    /// The class of each.
    pub labels: &'a [i64],
    /// Its share, and the class of the rest; empty where nothing is mixed.
    pub partners: &'a [Partner],
    /// Share of all classes alike, ε: a class's target is `(1 − ε)·t + ε / classes`.
    pub smoothing: f64,
}

impl<'a> Targets<'a> {
    /// One class each.
    pub fn plain(labels: &'a [i64]) -> Self {
        Self { labels, partners: &[], smoothing: 0.0 }
    }
}

/// Sums over samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    /// Σ cross-entropy.
    pub loss: f64,
    /// Samples whose best class is not the label; of a mixed one, the label with the larger share.
    pub wrong: u64,
    /// The same for the five best classes.
    pub wrong_top5: u64,
}

/// Sums the loss of `logits` (n × classes, row by row) and writes its gradient divided by `batch` (the samples of the
/// global batch) into `gradient`, same shape, when given. A tie goes to the lower class.
pub fn cross_entropy<A: Number>(logits: &[A], targets: Targets<'_>, batch: f64, gradient: Option<&mut [A]>) -> Counts {
    let Targets { labels, partners, smoothing } = targets;
    let classes = logits.len() / labels.len().max(1);
    let even = smoothing / classes.max(1) as f64;
    let mut counts = Counts::default();
    let mut gradient = gradient;
    let mut exps = vec![0.0; classes];
    for (i, (row, &label)) in logits.chunks_exact(classes.max(1)).zip(labels).enumerate() {
        let partner = partners.get(i).copied().unwrap_or(Partner { label, keep: 1.0 });
        let (label, other, keep) = (label as usize, partner.label as usize, partner.keep);
        let judged = if keep >= 0.5 { label } else { other };
        let own = row[judged].to_f64();
        let largest = row.iter().fold(f64::NEG_INFINITY, |m, x| if x.to_f64() > m { x.to_f64() } else { m });
        let mut sum = 0.0;
        for (e, x) in exps.iter_mut().zip(row) {
            *e = (x.to_f64() - largest).exp();
            sum += *e;
        }
        let above = |class: usize| row[class].to_f64() - largest;
        // What has no share is left out, and not multiplied by 0: it may be infinite.
        let mut told = above(label);
        if keep < 1.0 {
            told = keep * told + (1.0 - keep) * above(other);
        }
        if smoothing > 0.0 {
            told = (1.0 - smoothing) * told + even * (0..classes).map(above).sum::<f64>();
        }
        counts.loss += sum.ln() - told;
        let ahead =
            row.iter().enumerate().filter(|(c, x)| x.to_f64() > own || (x.to_f64() == own && *c < judged)).count();
        let lost = own.is_nan();
        counts.wrong += u64::from(lost || ahead > 0);
        counts.wrong_top5 += u64::from(lost || ahead > 4);
        if let Some(gradient) = gradient.as_deref_mut() {
            for (c, (g, e)) in gradient[i * classes..(i + 1) * classes].iter_mut().zip(&exps).enumerate() {
                let share = |class: usize, share: f64| if c == class { share } else { 0.0 };
                let target = (1.0 - smoothing) * (share(label, keep) + share(other, 1.0 - keep)) + even;
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
        let logits = [0.0f64, 0.0, 3f64.ln(), 0.0];
        let counts = cross_entropy(&logits, Targets::plain(&[1, 0]), 2.0, Some(&mut gradient));
        assert!((counts.loss - (2f64.ln() + (4.0f64 / 3.0).ln())).abs() < 1e-15);
        assert_eq!((counts.wrong, counts.wrong_top5), (1, 0));
        for (have, want) in gradient.iter().zip([0.25, -0.25, -0.125, 0.125]) {
            assert!((have - want).abs() < 1e-15);
        }
    }

    #[test]
    fn a_nan_is_wrong_and_stays_one() {
        let counts = cross_entropy(&[f32::NAN, 1.0], Targets::plain(&[0]), 1.0, None);
        assert!(counts.loss.is_nan());
        assert_eq!(counts.wrong, 1);
    }

    /// PyTorch's `cross_entropy` with targets that are distributions, which is how it smooths labels too.
    #[test]
    fn mixed_and_smoothed_targets_equal_autograd_over_distributions() {
        use tch::{Kind, Tensor};
        let (n, classes, batch) = (5_i64, 7_i64, 20.0);
        let values: Vec<f64> = (0..n * classes).map(|i| f64::from((i * 37 % 23) as i32) / 4.0 - 2.0).collect();
        let labels = [3, 0, 6, 2, 2];
        let keeps = [1.0, 0.3, 0.75, 0.5, 0.0];
        let partners: Vec<Partner> =
            [0, 5, 6, 1, 4].into_iter().zip(keeps).map(|(label, keep)| Partner { label, keep }).collect();
        for (partners, smoothing) in [(&[][..], 0.0), (&[][..], 0.1), (&partners[..], 0.0), (&partners[..], 0.1)] {
            let mut gradient = vec![0.0; values.len()];
            let targets = Targets { labels: &labels, partners, smoothing };
            let counts = cross_entropy(&values, targets, batch, Some(&mut gradient));

            let hot = |labels: &[i64]| Tensor::from_slice(labels).one_hot(classes).to_kind(Kind::Double);
            let mut target = hot(&labels);
            if !partners.is_empty() {
                let keep = Tensor::from_slice(&keeps).view([n, 1]);
                let others: Vec<i64> = partners.iter().map(|partner| partner.label).collect();
                target = &target * &keep + hot(&others) * (1.0 - keep);
            }
            target = target * (1.0 - smoothing) + smoothing / classes as f64;
            let logits = Tensor::from_slice(&values).view([n, classes]).set_requires_grad(true);
            let loss = -(target * logits.log_softmax(-1, Kind::Double)).sum(Kind::Double);
            assert!((counts.loss - loss.double_value(&[])).abs() < 1e-12, "smoothing {smoothing}");
            (loss / batch).backward();
            let want: Vec<f64> = Vec::try_from(logits.grad().reshape([-1])).unwrap();
            for (have, want) in gradient.iter().zip(want) {
                assert!((have - want).abs() < 1e-15, "{have} and {want}, smoothing {smoothing}");
            }
        }
    }

    #[test]
    fn a_mixed_sample_is_judged_by_its_larger_share() {
        let wrong = |keep: f64| {
            let partners = [Partner { label: 1, keep }];
            let targets = Targets { labels: &[0], partners: &partners, smoothing: 0.0 };
            cross_entropy(&[2.0f32, 1.0, 0.0], targets, 1.0, None).wrong
        };
        assert_eq!([1.0, 0.6, 0.5, 0.4, 0.0].map(wrong), [0, 0, 0, 1, 1]);
    }
}
