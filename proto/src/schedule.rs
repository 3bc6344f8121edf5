//! The learning rate, a pure function of the step.
//!
//! ```text
//! step      warm-up: 1 … W          W + 1 … T
//! linear    warmup_lr ↗ own rate    own rate          own(s) on the ramp is what the schedule would give at s
//! held      warmup_lr               own rate
//! cosine, polynomial: own rate falls with t = (s − 1 − W) / (T − W): whole at W + 1, `final_lr` just after T
//! ```
//! Transcendental functions come from `libm`, in Rust, and not from the system: the same bits on every machine.

use crate::ids::Step;
use crate::recipe::{Schedule, ScheduleKind, Warmup};

/// The learning rate of every step of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct LearningRate {
    schedule: Schedule,
    steps_per_epoch: u64,
    total_steps: u64,
    warmup_steps: u64,
}

impl LearningRate {
    /// For a run of `total_steps`, `steps_per_epoch` an epoch.
    pub fn new(schedule: &Schedule, steps_per_epoch: u64, total_steps: u64) -> Self {
        let warmup_steps = match schedule.warmup {
            // `until_error` is decided by results: see `warmup`.
            Warmup::None | Warmup::UntilError => 0,
            Warmup::Linear | Warmup::Held if schedule.warmup_steps > 0 => schedule.warmup_steps,
            Warmup::Linear | Warmup::Held => (schedule.warmup_epochs * steps_per_epoch as f64).round() as u64,
        };
        Self { schedule: schedule.clone(), steps_per_epoch: steps_per_epoch.max(1), total_steps, warmup_steps }
    }

    /// Length of the warm-up, in steps.
    pub fn warmup_steps(&self) -> u64 {
        self.warmup_steps
    }

    /// The rate that step `step` (from 1) is taken with. Step 0 takes none; it gives the rate of step 1.
    pub fn at(&self, step: Step) -> f64 {
        let step = step.0.max(1);
        let own = self.own(step);
        if step > self.warmup_steps {
            return own;
        }
        match self.schedule.warmup {
            Warmup::None | Warmup::UntilError => own,
            Warmup::Held => self.schedule.warmup_lr,
            Warmup::Linear if step == self.warmup_steps => own,
            Warmup::Linear => {
                let from = self.schedule.warmup_lr;
                from + (own - from) * (step as f64 / self.warmup_steps as f64)
            }
        }
    }

    /// The schedule's own rate, without warm-up.
    fn own(&self, step: u64) -> f64 {
        let Schedule { lr, final_lr, gamma, power, .. } = self.schedule;
        match self.schedule.kind {
            ScheduleKind::Constant => lr,
            ScheduleKind::Step => {
                let epoch = (step - 1) / self.steps_per_epoch + 1;
                let passed = self.schedule.milestones.iter().filter(|&&milestone| epoch > milestone).count();
                (0..passed).fold(lr, |rate, _| rate * gamma)
            }
            ScheduleKind::Cosine => {
                let turn = std::f64::consts::PI * self.progress(step);
                final_lr + (lr - final_lr) * (0.5 * (1.0 + libm::cos(turn)))
            }
            ScheduleKind::Polynomial => final_lr + (lr - final_lr) * libm::pow(1.0 - self.progress(step), power),
        }
    }

    /// 0 at the first step after warm-up, 1 just after the last step.
    fn progress(&self, step: u64) -> f64 {
        let done = (step - 1).saturating_sub(self.warmup_steps);
        let length = self.total_steps.saturating_sub(self.warmup_steps);
        if length == 0 { 0.0 } else { (done as f64 / length as f64).min(1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stepped() -> Schedule {
        Schedule { milestones: vec![80, 120], ..Schedule::default() }
    }

    #[test]
    fn a_milestone_is_the_last_epoch_of_the_old_rate() {
        let rate = LearningRate::new(&stepped(), 391, 391 * 200);
        let first_of = |epoch: u64| rate.at(Step((epoch - 1) * 391 + 1));
        let last_of = |epoch: u64| rate.at(Step(epoch * 391));
        assert_eq!((first_of(1), last_of(80)), (0.1, 0.1));
        assert_eq!((first_of(81), last_of(120)), (0.1 * 0.1, 0.1 * 0.1));
        assert_eq!((first_of(121), last_of(200)), (0.1 * 0.1 * 0.1, 0.1 * 0.1 * 0.1));
    }

    #[test]
    fn a_held_warm_up_is_one_rate_and_then_the_schedule() {
        let schedule = Schedule { warmup: Warmup::Held, warmup_steps: 400, warmup_lr: 0.001, ..stepped() };
        let rate = LearningRate::new(&schedule, 391, 391 * 200);
        assert_eq!([1, 400, 401].map(|step| rate.at(Step(step))), [0.001, 0.001, 0.1]);
    }

    #[test]
    fn a_linear_warm_up_climbs_to_the_schedule() {
        let schedule = Schedule {
            kind: ScheduleKind::Constant,
            warmup: Warmup::Linear,
            warmup_epochs: 0.5,
            warmup_lr: 0.02,
            ..Schedule::default()
        };
        let rate = LearningRate::new(&schedule, 8, 80);
        assert_eq!(rate.warmup_steps(), 4);
        for (step, expected) in [(1, 0.04), (2, 0.06), (3, 0.08), (4, 0.1), (5, 0.1)] {
            assert!((rate.at(Step(step)) - expected).abs() < 1e-15, "step {step}: {}", rate.at(Step(step)));
        }
        assert_eq!(rate.at(Step(4)), 0.1);
    }

    #[test]
    fn a_cosine_is_whole_at_first_half_in_the_middle_and_final_after_the_end() {
        let schedule = Schedule { kind: ScheduleKind::Cosine, final_lr: 0.02, ..Schedule::default() };
        let rate = LearningRate::new(&schedule, 10, 100);
        assert_eq!(rate.at(Step(1)), 0.1);
        assert!((rate.at(Step(51)) - 0.06).abs() < 1e-15);
        assert!(rate.at(Step(100)) > 0.02 && rate.at(Step(100)) < 0.0201);
        assert_eq!(rate.at(Step(101)), 0.02);
        assert_eq!(rate.at(Step(1_000)), 0.02);
    }

    #[test]
    fn a_polynomial_of_power_one_is_a_line() {
        let schedule = Schedule { kind: ScheduleKind::Polynomial, ..Schedule::default() };
        let rate = LearningRate::new(&schedule, 10, 100);
        for step in 1..=100u64 {
            let expected = 0.1 * (1.0 - (step - 1) as f64 / 100.0);
            assert!((rate.at(Step(step)) - expected).abs() < 1e-15);
        }
        let squared = Schedule { power: 2.0, ..schedule };
        assert!((LearningRate::new(&squared, 10, 100).at(Step(51)) - 0.025).abs() < 1e-15);
    }

    /// If this fails, runs with these schedules take another course than before: do it knowingly.
    #[test]
    fn rates_never_change_by_accident() {
        let cosine =
            Schedule { kind: ScheduleKind::Cosine, warmup: Warmup::Linear, warmup_steps: 5, ..Schedule::default() };
        let rate = LearningRate::new(&cosine, 7, 50);
        assert_eq!([1, 5, 6, 20, 50].map(|step| rate.at(Step(step)).to_bits()), GOLDEN_COSINE);
        let polynomial = Schedule { kind: ScheduleKind::Polynomial, power: 0.9, ..Schedule::default() };
        let rate = LearningRate::new(&polynomial, 7, 50);
        assert_eq!([1, 6, 20, 50].map(|step| rate.at(Step(step)).to_bits()), GOLDEN_POLYNOMIAL);
    }

    const GOLDEN_COSINE: [u64; 5] =
        [4581421828931458172, 4591870180066957722, 4591870180066957722, 4590282005126420590, 4548615492676148429];
    const GOLDEN_POLYNOMIAL: [u64; 4] =
        [4591870180066957722, 4591218293576330618, 4589350744301299323, 4568965988443793976];

    proptest! {
        #[test]
        fn a_rate_is_finite_and_between_its_ends(
            kind in prop_oneof![
                Just(ScheduleKind::Constant), Just(ScheduleKind::Step), Just(ScheduleKind::Cosine), Just(ScheduleKind::Polynomial),
            ],
            warmup in prop_oneof![Just(Warmup::None), Just(Warmup::Linear), Just(Warmup::Held)],
            (per_epoch, total) in (0u64..100, 0u64..10_000),
            warmup_steps in 1u64..200,
            warmup_lr in 0.0f64..0.1,
            step in 0u64..20_000,
        ) {
            let schedule = Schedule { kind, warmup, warmup_steps, warmup_lr, milestones: vec![2, 5, 9], ..Schedule::default() };
            let rate = LearningRate::new(&schedule, per_epoch, total);
            let value = rate.at(Step(step));
            prop_assert!((0.0..=0.1).contains(&value), "{}", value);
            prop_assert_eq!(value.to_bits(), LearningRate::new(&schedule, per_epoch, total).at(Step(step)).to_bits());
        }

        #[test]
        fn after_warm_up_a_falling_schedule_never_rises(
            kind in prop_oneof![Just(ScheduleKind::Step), Just(ScheduleKind::Cosine), Just(ScheduleKind::Polynomial)],
            power in 0.1f64..4.0,
            total in 1u64..2_000,
        ) {
            let schedule = Schedule { kind, power, milestones: vec![1, 4], ..Schedule::default() };
            let rate = LearningRate::new(&schedule, 50, total);
            for step in 1..total {
                prop_assert!(rate.at(Step(step + 1)) <= rate.at(Step(step)));
            }
        }
    }
}
