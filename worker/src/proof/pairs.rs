//! A B A B …: contenders in turn, round after round, so that what drifts drifts for all of them.

use std::time::{Duration, Instant};

use super::child::Spec;
use super::lab::{Lab, Reason};
use super::read;

/// Somebody who takes part.
#[derive(Clone, Debug)]
pub struct Contender {
    /// What it runs, or why it cannot.
    pub spec: Result<Spec, Reason>,
    /// The figure is under this key of the last line of JSON that it prints.
    pub key: &'static str,
    /// A run before, which does not count: compilers fill their caches in it.
    pub warm_up: bool,
}

impl Contender {
    /// Who needs no run before.
    pub fn new(spec: Result<Spec, Reason>, key: &'static str) -> Self {
        Self { spec, key, warm_up: false }
    }
}

/// What one of them showed, round by round.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// Absent where it did not run.
    pub values: Vec<Option<f64>>,
    /// The last that it printed.
    pub last: String,
    /// Why it does not take part any more.
    pub out: Option<Reason>,
}

impl Series {
    /// What there is.
    pub fn present(&self) -> Vec<f64> {
        self.values.iter().copied().flatten().collect()
    }

    /// This ÷ the other, in rounds that both have.
    pub fn over(&self, other: &Self) -> Vec<f64> {
        let both = self.values.iter().zip(&other.values).filter_map(|(a, b)| Some((*a)? / (*b)?));
        both.filter(|ratio| ratio.is_finite()).collect()
    }

    /// Why there are not more.
    pub fn why<'a>(&'a self, other: &'a Self) -> &'a str {
        [&self.out, &other.out].into_iter().find_map(Option::as_deref).unwrap_or_default()
    }
}

/// Lets them run in turn, as often as was asked or as there is time for. Who fails is out, the others go on; without the
/// first there is nothing to compare, so only the round is finished.
pub async fn interleave<const N: usize>(lab: &mut Lab, contenders: [Contender; N], until: Instant) -> [Series; N] {
    let mut series: [Series; N] = std::array::from_fn(|_| Series::default());
    let left = |until: Instant| until.saturating_duration_since(Instant::now());
    for (contender, series) in contenders.iter().zip(&mut series) {
        match &contender.spec {
            Err(why) => series.out = Some(why.clone()),
            Ok(spec) if contender.warm_up => {
                // What takes all the time to get warm would leave none to be measured in.
                let mut warm = spec.clone();
                warm.name.push_str("-warm-up");
                series.out = lab.run_within(&warm, left(until) / 2).await.err();
            }
            Ok(_) => {}
        }
    }
    let mut longest = Duration::ZERO;
    for round in 0..lab.config.pairs {
        if left(until) < longest || (round > 0 && series.first().is_some_and(|first| first.out.is_some())) {
            break;
        }
        let began = Instant::now();
        for (contender, series) in contenders.iter().zip(&mut series) {
            let value = match (&contender.spec, &series.out) {
                (Ok(spec), None) => {
                    let printed = lab.run_within(spec, left(until)).await;
                    let value = printed.and_then(|stdout| {
                        series.last = stdout;
                        read::number(&series.last, contender.key).map_err(|why| format!("{}: {why}", spec.name))
                    });
                    value.map_err(|why| series.out = Some(why)).ok()
                }
                _ => None,
            };
            series.values.push(value);
        }
        longest = longest.max(began.elapsed());
        if series.iter().all(|series| series.out.is_some()) || lab.interrupted {
            break;
        }
    }
    series
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_the_same_round() {
        let series = |values: &[Option<f64>]| Series { values: values.to_vec(), ..Series::default() };
        let ours = series(&[Some(8.0), None, Some(6.0)]);
        let peer = series(&[Some(4.0), Some(1.0), Some(2.0)]);
        assert_eq!(ours.over(&peer), [2.0, 3.0]);
        assert_eq!(ours.over(&series(&[None])), [0.0; 0]);
        assert_eq!(ours.over(&series(&[Some(0.0)])), [0.0; 0], "a rate of nothing is no measurement");
    }
}
