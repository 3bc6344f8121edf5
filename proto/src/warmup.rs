//! The warm-up that waits for results: one rate until the training error is low enough.
//!
//! Step k knows committed steps up to k − W only, W being the recipe's plan window, so its rate is a property of the
//! recipe: it does not matter how far a plan ran ahead, who planned it, or whether it was planned twice.
//!
//! ```text
//! steps        1 …        j−m+1 … j              j + W
//! rate         warmup_lr ─────────────────────►  the schedule's own
//! error                   └ mean < threshold, the first such j
//! ```

use crate::ids::Step;
use crate::recipe::{Schedule, Warmup};

/// What is known of committed training errors, and whether the warm-up is over.
#[derive(Clone, Debug, PartialEq)]
pub struct UntilError {
    threshold: f64,
    /// m: so many steps are averaged.
    over: usize,
    /// W
    window: u64,
    /// Wrong predictions and samples of steps 1, 2, … up to `reached`, or as many as are committed.
    errors: Vec<(u64, u64)>,
    /// j
    reached: Option<Step>,
}

impl UntilError {
    /// The rule of a schedule that has one, with a plan window of `window` steps.
    pub fn new(schedule: &Schedule, window: u64) -> Option<Self> {
        (schedule.warmup == Warmup::UntilError).then(|| Self {
            threshold: schedule.warmup_error,
            over: schedule.warmup_over.max(1) as usize,
            window,
            errors: Vec::new(),
            reached: None,
        })
    }

    /// Takes in a committed step. Steps come in order; one that does not follow the last is ignored.
    pub fn observe(&mut self, step: Step, wrong: u64, samples: u64) {
        if self.reached.is_some() || step.0 != self.errors.len() as u64 + 1 {
            return;
        }
        self.errors.push((wrong, samples));
        let Some(from) = self.errors.len().checked_sub(self.over) else { return };
        let (wrong, samples) =
            self.errors[from..].iter().fold((0, 0), |(w, s), (wrong, samples)| (w + wrong, s + samples));
        if (wrong as f64) < self.threshold * samples as f64 {
            self.reached = Some(step);
        }
    }

    /// Steps after `to` never happened.
    pub fn roll_back(&mut self, to: Step) {
        if self.reached.is_none_or(|step| step > to) {
            self.reached = None;
            self.errors.truncate(to.0 as usize);
        }
    }

    /// Whether step `step` is still taken at the warm-up's rate.
    pub fn holds(&self, step: Step) -> bool {
        self.reached.is_none_or(|reached| step.0 < reached.0 + self.window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(over: u64, window: u64) -> UntilError {
        let schedule = Schedule {
            warmup: Warmup::UntilError,
            warmup_error: 0.8,
            warmup_over: over,
            warmup_lr: 0.01,
            ..Schedule::default()
        };
        UntilError::new(&schedule, window).unwrap()
    }

    #[test]
    fn it_ends_a_window_after_the_mean_first_falls_below() {
        let mut rule = rule(2, 4);
        for (step, wrong) in [(1, 9), (2, 7), (3, 8), (4, 0)] {
            rule.observe(Step(step), wrong, 10);
        }
        // means of two: 0.8 (not below), 0.75 at step 3
        assert!(rule.holds(Step(6)));
        assert!(!rule.holds(Step(7)));
    }

    #[test]
    fn too_few_steps_decide_nothing_and_a_later_rise_undoes_nothing() {
        let mut rule = rule(3, 1);
        rule.observe(Step(1), 0, 10);
        rule.observe(Step(2), 0, 10);
        assert!(rule.holds(Step(1_000)));
        rule.observe(Step(3), 0, 10);
        (4..50).for_each(|step| rule.observe(Step(step), 10, 10));
        assert!(rule.holds(Step(3)) && !rule.holds(Step(4)));
    }

    #[test]
    fn after_a_rollback_the_same_steps_decide_the_same() {
        let errors = [9, 9, 9, 7, 3, 2, 1];
        let mut rule = rule(2, 3);
        let feed = |rule: &mut UntilError, from: usize| {
            for (i, wrong) in errors.iter().enumerate().skip(from) {
                rule.observe(Step(i as u64 + 1), *wrong, 10);
            }
        };
        feed(&mut rule, 0);
        let whole = rule.clone();
        for to in 0..=errors.len() {
            rule.roll_back(Step(to as u64));
            feed(&mut rule, to);
            assert_eq!(rule, whole, "rolled back to {to}");
        }
    }

    #[test]
    fn other_warm_ups_have_no_such_rule() {
        assert_eq!(UntilError::new(&Schedule { warmup: Warmup::Held, ..Schedule::default() }, 32), None);
    }
}
