//! `[optim]` and `[schedule]`

use serde::{Deserialize, Serialize};

use super::LrScale;

/// `[optim]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Optim {
    /// Which rule.
    pub solver: Solver,
    /// `sgd`, `lars`: momentum (0: none).
    pub momentum: f64,
    /// `sgd`, `lars`: Nesterov's form.
    pub nesterov: bool,
    /// `sgd`, `lars`: dampening of classical momentum; must be 0 with Nesterov.
    pub dampening: f64,
    /// L2 penalty added to the gradient; `adamw`, `lamb`: taken from the weights themselves.
    pub weight_decay: f64,
    /// Whether decay (and the trust ratio of `lars` and `lamb`) applies to BatchNorm's γ, β and to biases too.
    pub decay_vectors: bool,
    /// `rmsprop`: share of the old mean square.
    pub alpha: f64,
    /// `adadelta`: share of the old mean squares.
    pub rho: f64,
    /// `adam`, `adamw`, `lamb`: share of the old mean.
    pub beta1: f64,
    /// `adam`, `adamw`, `lamb`: share of the old mean square.
    pub beta2: f64,
    /// Keeps denominators from 0. 0: the solver's own (`rmsprop`, `adam`, `adamw` 1e-8; `adagrad` 1e-10; `adadelta`,
    /// `lamb` 1e-6; `lars` none).
    pub eps: f64,
    /// `lars`: trust coefficient.
    pub trust: f64,
    /// A gradient whose norm over all parameters is larger is scaled to this norm, before anything else is done with it
    /// (0: none).
    pub clip_norm: f64,
    /// Whose formula, where two differ: `adam` adds `eps` to the corrected root (`pytorch`) or to the plain one
    /// (`torch7`).
    pub formula: Formula,
    /// `[optim.lr_scale]`: factors of the learning rate by part of the network.
    pub lr_scale: LrScale,
}

impl Optim {
    /// `eps`, or the solver's own.
    pub fn eps(&self) -> f64 {
        if self.eps > 0.0 {
            return self.eps;
        }
        match self.solver {
            Solver::Sgd | Solver::Lars => 0.0,
            Solver::Rmsprop | Solver::Adam | Solver::Adamw => 1e-8,
            Solver::Adagrad => 1e-10,
            Solver::Adadelta | Solver::Lamb => 1e-6,
        }
    }
}

/// `optim.solver`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Solver {
    /// Stochastic gradient descent: plain, with momentum, with Nesterov's.
    #[default]
    Sgd,
    /// Tieleman & Hinton 2012: gradient over the root of its mean square.
    Rmsprop,
    /// Duchi et al. 2011: gradient over the root of its sum of squares.
    Adagrad,
    /// Zeiler 2012; `schedule.lr` multiplies its update (1: as published).
    Adadelta,
    /// Kingma & Ba 2015.
    Adam,
    /// Loshchilov & Hutter 2019: Adam, with decay taken from the weights.
    Adamw,
    /// You et al. 2017: SGD with a rate of its own for each matrix.
    Lars,
    /// You et al. 2020: Adam with a rate of its own for each matrix.
    Lamb,
}

/// `optim.formula`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Formula {
    /// PyTorch's.
    #[default]
    Pytorch,
    /// Torch7's.
    Torch7,
}

/// `[schedule]`: the learning rate as a pure function of the step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// Shape after warm-up.
    pub kind: ScheduleKind,
    /// The base rate.
    pub lr: f64,
    /// `step`: epochs ≤ m keep the old rate, epoch m + 1 has the new one. Ascending.
    pub milestones: Vec<u64>,
    /// `step`: factor at each milestone.
    pub gamma: f64,
    /// `polynomial`: exponent.
    pub power: f64,
    /// `cosine`, `polynomial`: the rate at the end.
    pub final_lr: f64,
    /// How the first steps differ.
    pub warmup: Warmup,
    /// Length of the warm-up in steps (0: use `warmup_epochs`).
    pub warmup_steps: u64,
    /// Length of the warm-up in epochs, may be a fraction (0: none).
    pub warmup_epochs: f64,
    /// `linear`: the ramp's value at step 0; step `warmup_steps` has the schedule's own rate. `held`, `until_error`:
    /// the rate of every warm-up step.
    pub warmup_lr: f64,
    /// `until_error`: the warm-up ends once the training error is below this.
    pub warmup_error: f64,
    /// `until_error`: over so many steps is the training error averaged.
    pub warmup_over: u64,
}

/// `schedule.kind`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// The base rate throughout.
    Constant,
    /// Multiplied by `gamma` after each milestone.
    #[default]
    Step,
    /// Half a cosine from the base rate to `final_lr` over the run, after warm-up.
    Cosine,
    /// `(1 − t)^power` from the base rate to `final_lr`, after warm-up.
    Polynomial,
}

/// `schedule.warmup`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Warmup {
    /// None.
    #[default]
    None,
    /// A ramp from `warmup_lr` to the schedule's own rate.
    Linear,
    /// `warmup_lr` held for every warm-up step.
    Held,
    /// `warmup_lr` until the training error of committed steps is below `warmup_error`; step k knows those up to
    /// k − `train.window`. He et al. 2015, section 4.2, for 110 layers.
    UntilError,
}

impl Default for Optim {
    fn default() -> Self {
        Self {
            solver: Solver::default(),
            momentum: 0.9,
            nesterov: true,
            dampening: 0.0,
            weight_decay: 1e-4,
            decay_vectors: true,
            alpha: 0.9,
            rho: 0.3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 0.0,
            trust: 0.001,
            clip_norm: 0.0,
            formula: Formula::default(),
            lr_scale: LrScale::default(),
        }
    }
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            kind: ScheduleKind::default(),
            lr: 0.1,
            milestones: Vec::new(),
            gamma: 0.1,
            power: 1.0,
            final_lr: 0.0,
            warmup: Warmup::default(),
            warmup_steps: 0,
            warmup_epochs: 0.0,
            warmup_lr: 0.0,
            warmup_error: 0.8,
            warmup_over: 20,
        }
    }
}
