//! Refuses recipes that are well-formed and make no sense. The first thing wrong is reported.

mod image;
mod training;
mod tuning;

use std::fmt::Display;

use super::error::RecipeError;
use super::types::{BnMomentum, BnPosition, Data, DataKind, Order, Recipe, Sampling, ScheduleKind, Warmup};
use crate::manifest::is_plain_name;

/// The most chunks of one global batch.
const MAX_CHUNKS: u64 = 1 << 20;

impl Recipe {
    /// Whether the values make sense, alone and together.
    ///
    /// # Errors
    /// The first that does not: its key, its value, and what was expected.
    pub fn check(&self) -> Result<(), RecipeError> {
        check(self)
    }
}

pub(super) fn check(recipe: &Recipe) -> Result<(), RecipeError> {
    name(&recipe.name)?;
    data(recipe)?;
    model(recipe)?;
    optim(recipe)?;
    tuning::tuning(recipe)?;
    schedule(recipe)?;
    train(recipe)?;
    training::training(recipe)?;
    membership(recipe)
}

fn require(sense: bool, key: &str, value: impl Display, expected: impl Display) -> Result<(), RecipeError> {
    if sense {
        return Ok(());
    }
    Err(RecipeError::Value { key: key.to_owned(), value: value.to_string(), expected: expected.to_string(), at: None })
}

fn name(name: &str) -> Result<(), RecipeError> {
    let plain = name.is_empty() || is_plain_name(name) && !name.starts_with(['.', '-']);
    require(
        plain,
        "name",
        format!("{name:?}"),
        "a plain name of a folder, without `/` and not starting with `.` or `-`",
    )
}

/// `data.order`, and what is read from stores.
fn order(data: &Data) -> Result<(), RecipeError> {
    let default = Data::default();
    if data.order == Order::Full {
        let only = "nothing: it is for data.order = \"blocks\" only";
        require(data.block == default.block, "data.block", data.block, only)?;
        require(data.block_window == default.block_window, "data.block_window", data.block_window, only)?;
    } else {
        let once = "\"full\": draws with replacement have no order";
        require(data.sampling == Sampling::Once, "data.order", "\"blocks\"", once)?;
        let some = "at least 1 and at most 2^32";
        require((1..=1 << 32).contains(&data.block), "data.block", data.block, some)?;
        require((1..=1 << 32).contains(&data.block_window), "data.block_window", data.block_window, some)?;
    }
    let timeout = data.read_timeout_s;
    require(timeout.is_finite() && timeout > 0.0, "data.read_timeout_s", timeout, "seconds, above 0")
}

fn data(recipe: &Recipe) -> Result<(), RecipeError> {
    let data = &recipe.data;
    let default = super::types::Data::default();
    if data.kind == DataKind::Shapes {
        require(data.train_size >= 1, "data.train_size", data.train_size, "at least 1")?;
        require(data.test_size >= 1, "data.test_size", data.test_size, "at least 1")?;
    } else {
        let only = "nothing: it is for kind = \"shapes\" only (data.limit takes fewer training samples)";
        require(data.train_size == default.train_size, "data.train_size", data.train_size, only)?;
        let only = "nothing: it is for kind = \"shapes\" only (data.test_limit takes fewer test samples)";
        require(data.test_size == default.test_size, "data.test_size", data.test_size, only)?;
    }
    let some = (1..=1024).contains(&data.repeats);
    require(some, "data.repeats", data.repeats, "at least 1 (each sample once) and at most 1024")?;
    let shift = data.augment.shift;
    require(shift <= 32, "data.augment.shift", shift, "at most 32, the size of an image")?;
    order(data)?;
    let few = data.overfit_batches <= 1 << 32;
    require(few, "data.overfit_batches", data.overfit_batches, "at most 4294967296")?;
    image::image(data)
}

fn model(recipe: &Recipe) -> Result<(), RecipeError> {
    let model = &recipe.model;
    require((1..=1000).contains(&model.n), "model.n", model.n, "at least 1 (depth is 6n + 2) and at most 1000")?;
    require((1..=4096).contains(&model.width), "model.width", model.width, "at least 1 and at most 4096")?;
    let share = match model.bn_momentum {
        BnMomentum::Constant(weight) => weight > 0.0 && weight <= 1.0,
        BnMomentum::Rule(_) => true,
    };
    require(share, "model.bn_momentum", model.bn_momentum, "a number above 0 and at most 1, or \"dynamic\"")?;
    let slope = (0.0..1.0).contains(&model.leaky_slope);
    require(slope, "model.leaky_slope", model.leaky_slope, "at least 0 and below 1")?;
    let begins = !model.zero_gamma || model.bn_position == BnPosition::BeforeAdd;
    let last = "false, or model.bn_position = \"before_add\": after the addition it would silence the whole block";
    require(begins, "model.zero_gamma", true, last)?;
    let positive = model.bn_eps.is_finite() && model.bn_eps > 0.0;
    require(positive, "model.bn_eps", model.bn_eps, "a finite number above 0")
}

fn optim(recipe: &Recipe) -> Result<(), RecipeError> {
    let optim = &recipe.optim;
    let below_one = "at least 0 and below 1";
    require((0.0..1.0).contains(&optim.momentum), "optim.momentum", optim.momentum, below_one)?;
    require((0.0..1.0).contains(&optim.dampening), "optim.dampening", optim.dampening, below_one)?;
    let decay = optim.weight_decay.is_finite() && optim.weight_decay >= 0.0;
    require(decay, "optim.weight_decay", optim.weight_decay, "a finite number that is not negative")?;
    if optim.nesterov {
        let moving = optim.momentum > 0.0;
        require(moving, "optim.nesterov", true, "false, or an optim.momentum above 0")?;
        require(optim.dampening == 0.0, "optim.dampening", optim.dampening, "0 with optim.nesterov = true")?;
    }
    for (key, share) in [
        ("optim.alpha", optim.alpha),
        ("optim.rho", optim.rho),
        ("optim.beta1", optim.beta1),
        ("optim.beta2", optim.beta2),
    ] {
        require((0.0..1.0).contains(&share), key, share, below_one)?;
    }
    let small = optim.eps.is_finite() && optim.eps >= 0.0;
    require(small, "optim.eps", optim.eps, "a finite number that is not negative (0: the solver's own)")?;
    let trust = optim.trust.is_finite() && optim.trust > 0.0;
    require(trust, "optim.trust", optim.trust, "a finite number above 0")?;
    let norm = optim.clip_norm.is_finite() && optim.clip_norm >= 0.0;
    require(norm, "optim.clip_norm", optim.clip_norm, "a finite number that is not negative (0: none)")
}

fn schedule(recipe: &Recipe) -> Result<(), RecipeError> {
    let schedule = &recipe.schedule;
    let at_least_zero = |value: f64| value.is_finite() && value >= 0.0;
    let positive = |value: f64| value.is_finite() && value > 0.0;
    let not_negative = "a finite number that is not negative";
    require(positive(schedule.lr), "schedule.lr", schedule.lr, "a finite number above 0")?;
    require(at_least_zero(schedule.final_lr), "schedule.final_lr", schedule.final_lr, not_negative)?;
    require(positive(schedule.gamma), "schedule.gamma", schedule.gamma, "a finite number above 0")?;
    require(positive(schedule.power), "schedule.power", schedule.power, "a finite number above 0")?;

    let milestones = &schedule.milestones;
    let listed = format!("{milestones:?}");
    let ascending = milestones.windows(2).all(|pair| pair[0] < pair[1]) && milestones.first() != Some(&0);
    require(ascending, "schedule.milestones", &listed, "epochs from 1, ascending")?;
    let used = schedule.kind == ScheduleKind::Step || milestones.is_empty();
    require(used, "schedule.milestones", &listed, "none, or schedule.kind = \"step\"")?;

    require(at_least_zero(schedule.warmup_epochs), "schedule.warmup_epochs", schedule.warmup_epochs, not_negative)?;
    require(at_least_zero(schedule.warmup_lr), "schedule.warmup_lr", schedule.warmup_lr, not_negative)?;
    let long = schedule.warmup_steps > 0 || schedule.warmup_epochs > 0.0;
    match schedule.warmup {
        Warmup::None => {
            let unused = "0, or schedule.warmup = \"linear\" or \"held\"";
            require(schedule.warmup_steps == 0, "schedule.warmup_steps", schedule.warmup_steps, unused)?;
            require(schedule.warmup_epochs == 0.0, "schedule.warmup_epochs", schedule.warmup_epochs, unused)
        }
        Warmup::Linear => {
            let length = "\"none\", or a length: schedule.warmup_steps or schedule.warmup_epochs";
            require(long, "schedule.warmup", "\"linear\"", length)
        }
        Warmup::Held => {
            let length = "\"none\", or a length: schedule.warmup_steps or schedule.warmup_epochs";
            require(long, "schedule.warmup", "\"held\"", length)?;
            let rate = "above 0 with schedule.warmup = \"held\"";
            require(schedule.warmup_lr > 0.0, "schedule.warmup_lr", schedule.warmup_lr, rate)
        }
        Warmup::UntilError => {
            let unused = "0 with schedule.warmup = \"until_error\": its length depends on results";
            require(schedule.warmup_steps == 0, "schedule.warmup_steps", schedule.warmup_steps, unused)?;
            require(schedule.warmup_epochs == 0.0, "schedule.warmup_epochs", schedule.warmup_epochs, unused)?;
            let rate = "above 0 with schedule.warmup = \"until_error\"";
            require(schedule.warmup_lr > 0.0, "schedule.warmup_lr", schedule.warmup_lr, rate)?;
            let fraction = schedule.warmup_error > 0.0 && schedule.warmup_error <= 1.0;
            require(fraction, "schedule.warmup_error", schedule.warmup_error, "a fraction above 0 and at most 1")?;
            let over = (1..=1_000_000).contains(&schedule.warmup_over);
            require(over, "schedule.warmup_over", schedule.warmup_over, "at least 1 step and at most 1000000")
        }
    }
}

fn train(recipe: &Recipe) -> Result<(), RecipeError> {
    let train = &recipe.train;
    require(train.batch >= 1, "train.batch", train.batch, "at least 1 sample")?;
    require(train.chunk >= 1, "train.chunk", train.chunk, "at least 1 sample")?;
    let fits = u64::from(train.chunk) <= train.batch;
    require(fits, "train.chunk", train.chunk, format!("at most train.batch = {}", train.batch))?;
    let few = train.batch.div_ceil(u64::from(train.chunk)) <= MAX_CHUNKS;
    require(few, "train.batch", train.batch, format!("at most {MAX_CHUNKS} chunks; raise train.chunk"))?;
    require(train.eval_chunk >= 1, "train.eval_chunk", train.eval_chunk, "at least 1 sample")?;
    let ends = train.epochs > 0 || train.max_steps > 0;
    require(ends, "train.epochs", train.epochs, "at least 1, or a train.max_steps above 0: a run must end")?;
    require(train.window >= 1, "train.window", train.window, "at least 1 step")?;
    require(train.bucket_bytes >= 1024, "train.bucket_bytes", train.bucket_bytes, "at least 1024")?;
    // TOML's numbers have 63 bits: a larger one could not be written into the run directory.
    let fits = |value: u64| i64::try_from(value).is_ok();
    require(fits(train.seed), "train.seed", train.seed, "at most 9223372036854775807")
}

fn membership(recipe: &Recipe) -> Result<(), RecipeError> {
    let elastic = &recipe.elastic;
    require(elastic.min_workers >= 1, "elastic.min_workers", elastic.min_workers, "at least 1")?;
    let room = elastic.max_workers == 0 || elastic.max_workers >= elastic.min_workers;
    let least = format!("0 (no limit) or at least elastic.min_workers = {}", elastic.min_workers);
    require(room, "elastic.max_workers", elastic.max_workers, least)?;
    let whole = elastic.max_shard == 0 || elastic.max_shard >= u64::from(recipe.train.chunk);
    let least = format!("0 (no limit) or at least train.chunk = {}", recipe.train.chunk);
    require(whole, "elastic.max_shard", elastic.max_shard, least)?;
    for (key, value) in [
        ("elastic.join_timeout_s", elastic.join_timeout_s),
        ("elastic.stall_timeout_s", elastic.stall_timeout_s),
        ("elastic.step_timeout_s", elastic.step_timeout_s),
        ("elastic.collective_timeout_s", elastic.collective_timeout_s),
        ("elastic.reconnect_timeout_s", elastic.reconnect_timeout_s),
        ("log.every_s", recipe.log.every_s),
    ] {
        // The bound keeps durations and deadlines far from overflow.
        require(value > 0.0 && value <= 1e9, key, value, "seconds, above 0 and at most 1e9")?;
    }
    Ok(())
}
