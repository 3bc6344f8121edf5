//! Whether processes that live long grow.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::figures::Samples;
use crate::process::{Process, resident_kib};
use crate::table::{Line, Verdict};

/// A process that lived shorter says nothing about growth.
const LIFE_S: f64 = 300.0;
const BOUND: f64 = 0.05;

/// Sizes of every process, over its life.
#[derive(Debug, Default)]
pub struct Memory {
    seen: BTreeMap<u32, Life>,
}

#[derive(Debug)]
struct Life {
    name: String,
    begun: Instant,
    sizes: Vec<(f64, f64)>,
}

impl Memory {
    /// Looks at each once.
    pub fn sample<'a>(&mut self, processes: impl Iterator<Item = &'a Process>) {
        for process in processes {
            let Some(kib) = resident_kib(process.pid()) else { continue };
            let life = self.seen.entry(process.pid()).or_insert_with(|| Life {
                name: process.name().to_owned(),
                begun: Instant::now(),
                sizes: Vec::new(),
            });
            life.sizes.push((life.begun.elapsed().as_secs_f64(), kib as f64));
        }
    }

    /// What is said of it.
    pub fn line(&self) -> Line {
        let mut figures = Vec::new();
        let mut worst: f64 = 0.0;
        for life in self.seen.values() {
            let Some((from, to)) = life.growth(LIFE_S) else { continue };
            worst = worst.max(to / from - 1.0);
            let seconds = life.sizes.last().map_or(0.0, |last| last.0);
            figures.push(format!("{} {:.1} → {:.1} MB in {seconds:.0} s", life.name, from / 1024.0, to / 1024.0));
        }
        let is_left_out = figures.is_empty();
        Line {
            promise: "14".into(),
            what: "memory of the coordinator and of workers that survive".into(),
            count: figures.len().to_string(),
            figures: if is_left_out {
                String::new()
            } else {
                format!("{:+.1} %: {}", 100.0 * worst, figures.join("; "))
            },
            bound: "grows < 5 %".into(),
            verdict: match is_left_out {
                true => Verdict::LeftOut,
                false if worst < BOUND => Verdict::Pass,
                false => Verdict::Miss,
            },
            notes: if is_left_out {
                vec![format!("no process lived for {LIFE_S} s; give more --minutes")]
            } else {
                vec![]
            },
        }
    }
}

impl Life {
    /// Medians of the second and the last fifth of a life.
    fn growth(&self, least_s: f64) -> Option<(f64, f64)> {
        let end = self.sizes.last()?.0;
        if end < least_s {
            return None;
        }
        let median = |from: f64, to: f64| {
            let mut samples = Samples::default();
            let within = self.sizes.iter().filter(|(at, _)| (from * end..=to * end).contains(at));
            within.for_each(|(_, size)| samples.push(*size));
            (samples.len() > 0).then(|| samples.quantile(0.5))
        };
        Some((median(0.2, 0.4)?, median(0.8, 1.0)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_seen_and_warming_up_is_none() {
        let life = |size: fn(f64) -> f64| Life {
            name: "w".into(),
            begun: Instant::now(),
            sizes: (0..=100).map(|at| (f64::from(at), size(f64::from(at)))).collect(),
        };
        let flat = life(|at| if at < 15.0 { at } else { 15.0 }).growth(50.0).unwrap();
        assert_eq!(flat.0, flat.1);
        let growing = life(|at| 100.0 + at).growth(50.0).unwrap();
        assert_eq!(growing, (130.0, 190.0));
        assert!(life(|at| at).growth(1000.0).is_none());
    }
}
