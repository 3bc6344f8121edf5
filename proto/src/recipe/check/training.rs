//! Keys of `[train]` that change targets, inputs or weights: smoothing, mixing, averaging, accumulation.

use super::require;
use crate::recipe::error::RecipeError;
use crate::recipe::types::{BatchNorm, Evaluate, Recipe, Train};

pub(super) fn training(recipe: &Recipe) -> Result<(), RecipeError> {
    let train = &recipe.train;
    let share = (0.0..1.0).contains(&train.label_smoothing);
    require(share, "train.label_smoothing", train.label_smoothing, "at least 0 and below 1")?;
    for (key, alpha) in [("train.mixup_alpha", train.mixup_alpha), ("train.cutmix_alpha", train.cutmix_alpha)] {
        // Below a thousandth the draws are 0 or 1 to the last bit; above a million, one half.
        let sense = alpha == 0.0 || (1e-3..=1e6).contains(&alpha);
        require(sense, key, alpha, "0 (none) or at least 0.001 and at most 1000000")?;
    }
    let chance = (0.0..=1.0).contains(&train.mix_probability);
    require(chance, "train.mix_probability", train.mix_probability, "at least 0 and at most 1")?;
    average(train)?;
    let parts = (1..=65_536).contains(&train.accumulate);
    require(parts, "train.accumulate", train.accumulate, "at least 1 (the shard at once) and at most 65536")?;
    let own = train.accumulate == 1 || train.batch_norm == BatchNorm::Chunk;
    let together = "1, or train.batch_norm = \"chunk\": other statistics are over samples of several parts, which are never \
                    in memory together";
    require(own, "train.accumulate", train.accumulate, together)?;
    let precise = recipe.model.bn_precise == 0 || recipe.data.image.crop_sizes.is_empty();
    let sized = "0 with data.image.crop_sizes: its batches would have another size than the images of an evaluation";
    require(precise, "model.bn_precise", recipe.model.bn_precise, sized)
}

fn average(train: &Train) -> Result<(), RecipeError> {
    let share = (0.0..1.0).contains(&train.ema_decay);
    require(share, "train.ema_decay", train.ema_decay, "at least 0 (none) and below 1")?;
    require(train.ema_every >= 1, "train.ema_every", train.ema_every, "at least 1 step")?;
    if train.ema_decay == 0.0 {
        let unused = "1, or a train.ema_decay above 0";
        require(train.ema_every == 1, "train.ema_every", train.ema_every, unused)?;
        let unused = "0, or a train.ema_decay above 0";
        require(train.ema_after_epochs == 0, "train.ema_after_epochs", train.ema_after_epochs, unused)?;
    }
    let there = train.evaluate == Evaluate::Model || train.ema_decay > 0.0;
    require(there, "train.evaluate", "\"ema\"", "\"model\", or a train.ema_decay above 0")
}
