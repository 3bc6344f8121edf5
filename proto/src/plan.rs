//! The course of a run: which batch a step takes, at which rate, and what comes after it. A property of the recipe
//! and the number of samples; the world does not appear. Where the recipe lets a rate depend on results, the course is
//! told of committed steps by [`Course::observe`].

use crate::ids::{Epoch, SampleRange, Step};
use crate::order::SampleOrder;
use crate::recipe::Recipe;
use crate::schedule::LearningRate;
use crate::warmup::UntilError;

/// The course of a whole run.
#[derive(Clone, Debug, PartialEq)]
pub struct Course {
    num_positions: u64,
    batch: u64,
    steps_per_epoch: u64,
    total_steps: u64,
    rate: LearningRate,
    /// The rate of a warm-up that waits for results, and what it knows of them.
    until: Option<(f64, UntilError)>,
    evaluate_every_epochs: u64,
    evaluate_first: bool,
    checkpoint_every_steps: u64,
    checkpoint_every_epochs: u64,
}

/// One step of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CourseStep {
    /// From 1.
    pub epoch: Epoch,
    /// Positions of the global batch; the last of an epoch may be short.
    pub batch: SampleRange,
    /// Learning rate.
    pub lr: f64,
    /// Whether it is the last step of its epoch.
    pub ends_epoch: bool,
}

/// What is to be done between two steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boundary {
    /// Evaluate the state, as this epoch.
    Evaluate {
        /// 0 before training; that of the last step if the run ends inside an epoch.
        epoch: Epoch,
    },
    /// Save the state.
    Checkpoint {
        /// Epoch of its step; 0 for step 0.
        epoch: Epoch,
    },
}

impl Course {
    /// For a checked recipe and the number of training samples after `data.limit`.
    pub fn new(recipe: &Recipe, num_train: u64) -> Self {
        let batch = recipe.train.batch.max(1);
        let num_positions = SampleOrder::of(recipe, num_train).num_positions();
        let steps_per_epoch = num_positions.div_ceil(batch);
        let total_steps = match (recipe.train.epochs.saturating_mul(steps_per_epoch), recipe.train.max_steps) {
            (_, limit) if recipe.train.epochs == 0 && steps_per_epoch > 0 => limit,
            (all, 0) => all,
            (all, limit) => all.min(limit),
        };
        Self {
            num_positions,
            batch,
            steps_per_epoch,
            total_steps,
            rate: LearningRate::new(&recipe.schedule, steps_per_epoch, total_steps),
            until: UntilError::new(&recipe.schedule, recipe.train.window)
                .map(|until| (recipe.schedule.warmup_lr, until)),
            evaluate_every_epochs: recipe.train.evaluate_every_epochs,
            evaluate_first: recipe.train.evaluate_first,
            checkpoint_every_steps: recipe.checkpoint.every_steps,
            checkpoint_every_epochs: recipe.checkpoint.every_epochs,
        }
    }

    /// Positions of an epoch.
    pub fn num_positions(&self) -> u64 {
        self.num_positions
    }

    /// Steps of an epoch: ⌈positions / batch⌉.
    pub fn steps_per_epoch(&self) -> u64 {
        self.steps_per_epoch
    }

    /// Steps of the run; 0 when there is no sample.
    pub fn total_steps(&self) -> u64 {
        self.total_steps
    }

    /// Epochs of the run, an incomplete last one included.
    pub fn total_epochs(&self) -> u64 {
        self.total_steps.div_ceil(self.steps_per_epoch.max(1))
    }

    /// Epoch of a step; 0 for step 0.
    pub fn epoch_of(&self, step: Step) -> Epoch {
        Epoch(step.0.div_ceil(self.steps_per_epoch.max(1)))
    }

    /// Takes in the training error of a committed step, for rates that depend on it. Steps come in order.
    pub fn observe(&mut self, step: Step, wrong: u64, samples: u64) {
        if let Some((_, until)) = &mut self.until {
            until.observe(step, wrong, samples);
        }
    }

    /// Steps after `to` never happened.
    pub fn roll_back(&mut self, to: Step) {
        if let Some((_, until)) = &mut self.until {
            until.roll_back(to);
        }
    }

    /// Step `step`, from 1. Step 0 is no step; it gives step 1. Its rate is final once the committed steps up to
    /// `step` − `train.window` were observed.
    pub fn at(&self, step: Step) -> CourseStep {
        let step = Step(step.0.max(1));
        let index = (step.0 - 1) % self.steps_per_epoch.max(1);
        let start = (index * self.batch).min(self.num_positions);
        let len = self.batch.min(self.num_positions - start);
        CourseStep {
            epoch: self.epoch_of(step),
            batch: SampleRange { start, len },
            lr: match &self.until {
                Some((lr, until)) if until.holds(step) => *lr,
                _ => self.rate.at(step),
            },
            ends_epoch: index + 1 >= self.steps_per_epoch,
        }
    }

    /// Position of the first sample of the step after `step`, in its epoch's order.
    pub fn next_position(&self, step: Step) -> u64 {
        self.at(step.next()).batch.start
    }

    /// What is to be done after step `step`, in this order: evaluation first, so that a checkpoint knows its error.
    /// Empty past the last step. With `evaluate_every_epochs = 0` nothing is ever evaluated.
    pub fn after(&self, step: Step) -> Vec<Boundary> {
        if step.0 > self.total_steps {
            return Vec::new();
        }
        let first = step.0 == 0;
        let last = step.0 == self.total_steps;
        let epoch = self.epoch_of(step);
        let ends_epoch = !first && self.at(step).ends_epoch;
        let every = |period: u64, count: u64| period > 0 && count.is_multiple_of(period);

        let mut boundaries = Vec::new();
        let due = if first {
            self.evaluate_first || last
        } else {
            last || ends_epoch && every(self.evaluate_every_epochs, epoch.0)
        };
        if due && self.evaluate_every_epochs > 0 {
            boundaries.push(Boundary::Evaluate { epoch });
        }
        if first
            || last
            || every(self.checkpoint_every_steps, step.0)
            || ends_epoch && every(self.checkpoint_every_epochs, epoch.0)
        {
            boundaries.push(Boundary::Checkpoint { epoch });
        }
        boundaries
    }
}
