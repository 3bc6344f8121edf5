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
            Warmup::None => 0,
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
            Warmup::None => own,
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
