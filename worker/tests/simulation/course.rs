//! What a run must do, told without the product's own plan: which positions each step takes, and what the parameters,
//! one integer, are after it.

use lockstep_proto::ids::{Epoch, SampleRange, Step};
use lockstep_proto::recipe::{DataKind, Recipe};

use crate::random::{Random, mix};

/// Parameters before training.
pub const INITIAL: u64 = 0x5eed;

/// A run's arithmetic.
#[derive(Clone, Debug)]
pub struct Course {
    pub num_train: u64,
    pub batch: u64,
    pub epochs: u64,
    /// After each step, from step 0.
    parameters: Vec<u64>,
}

impl Course {
    pub fn new(recipe: &Recipe) -> Self {
        let (num_train, batch, epochs) = (recipe.data.train_size, recipe.train.batch, recipe.train.epochs);
        let mut course = Self { num_train, batch, epochs, parameters: vec![INITIAL] };
        for step in 1..=course.num_steps() {
            let before = course.parameters(Step(step - 1));
            let (epoch, range) = course.at(Step(step));
            course.parameters.push(advance(before, contribution(before, epoch, range)));
        }
        course
    }

    pub fn steps_per_epoch(&self) -> u64 {
        self.num_train.div_ceil(self.batch)
    }

    pub fn num_steps(&self) -> u64 {
        self.epochs * self.steps_per_epoch()
    }

    /// Epoch and positions of a step: batches tile the epoch, the last one is short.
    pub fn at(&self, step: Step) -> (Epoch, SampleRange) {
        let index = step.0 - 1;
        let start = index % self.steps_per_epoch() * self.batch;
        let len = self.batch.min(self.num_train - start);
        (Epoch(index / self.steps_per_epoch() + 1), SampleRange { start, len })
    }

    pub fn parameters(&self, step: Step) -> u64 {
        self.parameters[step.0 as usize]
    }
}

/// What some positions add to a step. Sums of this over a rank's shards, wrapping, are as good as over the batch.
pub fn contribution(parameters: u64, epoch: Epoch, positions: SampleRange) -> u64 {
    let of = |at: u64| mix(parameters ^ mix(epoch.0 << 32 | at));
    (positions.start..positions.end()).fold(0, |sum: u64, at| sum.wrapping_add(of(at)))
}

/// Positions whose samples turn out to be broken.
pub fn left_out(epoch: Epoch, positions: SampleRange) -> Vec<u64> {
    (positions.start..positions.end()).filter(|at| mix(epoch.0 << 32 ^ *at).is_multiple_of(23)).collect()
}

/// The next parameters.
pub fn advance(parameters: u64, contributions: u64) -> u64 {
    mix(parameters.wrapping_add(contributions).wrapping_add(1))
}

pub fn loss(parameters: u64) -> f64 {
    (parameters % 1000) as f64 / 100.0
}

pub fn sha256(parameters: u64) -> String {
    format!("{parameters:064x}")
}

/// A small run with everything in it that makes one differ from another. Every epoch ends with a short batch.
pub fn recipe(seed: u64) -> Recipe {
    let mut random = Random::new(seed ^ 0x7ec1_be00);
    let mut recipe = Recipe { name: "simulated".into(), ..Recipe::default() };
    let (train_size, batch, chunk) = [(70, 16, 2), (50, 16, 3), (45, 20, 4)][random.below(3) as usize];
    recipe.data.kind = DataKind::Shapes;
    recipe.data.train_size = train_size;
    recipe.train.batch = batch;
    recipe.train.chunk = chunk;
    recipe.train.epochs = 3 + random.below(5);
    recipe.train.window = 1 + random.below(7);
    recipe.train.evaluate_first = random.below(2) == 0;
    recipe.checkpoint.every_steps = random.below(5);
    recipe.checkpoint.keep = random.below(4) as u32;
    recipe.elastic.min_workers = 1 + random.below(3) as u32;
    recipe.elastic.join_timeout_s = 60.0;
    recipe.elastic.step_timeout_s = 10.0;
    recipe.elastic.collective_timeout_s = 5.0;
    recipe.elastic.reconnect_timeout_s = 40.0;
    recipe.log.tensorboard = false;
    recipe
}
