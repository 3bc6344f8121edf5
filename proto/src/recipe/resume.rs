//! Which keys decide the course of a run, and which may differ when it is resumed.
//!
//! | keys | decide the course | may differ on resume |
//! |---|---|---|
//! | `elastic.*`, `checkpoint.*`, `log.*`, `data.path`, `data.cache_*`, `data.read_timeout_s`, `data.image.prefetch`, `data.image.threads` | no | yes |
//! | `train.accumulate` | no: the same bits, in less memory | yes |
//! | `train.epochs`, `train.max_steps` | no: they only end it; yes with a cosine or polynomial schedule, which is stretched over the whole run | if larger; no |
//! | `name` | no | no |
//! | `model.weights` | yes | once the run has begun: they are in its checkpoints; the run keeps the path it began with |
//! | all others | yes | no |
//!
//! A key that a later version added counts in the hash only where it differs from its default, which is what earlier
//! versions did: their runs go on.

use sha2::{Digest, Sha256};
use toml::{Table, Value};

use super::parse::flatten;
use super::types::{Recipe, ScheduleKind};
use crate::manifest::hex;

/// Keys that came after the first version.
const ADDED: &[&str] = &[
    "data.block",
    "data.block_window",
    "data.image.auto_augment",
    "data.image.auto_bins",
    "data.image.auto_interpolation",
    "data.image.auto_magnitude",
    "data.image.auto_ops",
    "data.image.bad",
    "data.image.brightness",
    "data.image.contrast",
    "data.image.crop",
    "data.image.crop_milestones",
    "data.image.crop_sizes",
    "data.image.decode",
    "data.image.erase",
    "data.image.erase_ratio",
    "data.image.erase_scale",
    "data.image.eval_crop",
    "data.image.exif",
    "data.image.hue",
    "data.image.lighting",
    "data.image.mean",
    "data.image.random_crop",
    "data.image.ratio",
    "data.image.resize",
    "data.image.saturation",
    "data.image.scale",
    "data.image.std",
    "data.order",
    "data.overfit_batches",
    "data.repeats",
    "model.activation",
    "model.bn_order",
    "model.bn_precise",
    "model.conv_bias",
    "model.freeze",
    "model.frozen_bn",
    "model.head",
    "model.init",
    "model.leaky_slope",
    "model.stride_on",
    "model.weights",
    "model.zero_gamma",
    "optim.alpha",
    "optim.beta1",
    "optim.beta2",
    "optim.clip_norm",
    "optim.eps",
    "optim.formula",
    "optim.lr_scale.head",
    "optim.lr_scale.layer1",
    "optim.lr_scale.layer2",
    "optim.lr_scale.layer3",
    "optim.lr_scale.layer4",
    "optim.lr_scale.stem",
    "optim.rho",
    "optim.trust",
    "schedule.warmup_error",
    "schedule.warmup_over",
    "train.cutmix_alpha",
    "train.ema_after_epochs",
    "train.ema_decay",
    "train.ema_every",
    "train.evaluate",
    "train.label_smoothing",
    "train.mix_probability",
    "train.mixup_alpha",
    "train.tf32",
];

impl Recipe {
    /// Hash over the keys that decide the course of a run, defaults included: lines `key = value`, keys ascending.
    /// Two runs with the same hash take the same steps, as far as the shorter one goes.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        let defaults = Recipe::default().keys();
        let is_added = |key: &str, value: &Value| ADDED.contains(&key) && defaults.get(key) == Some(value);
        for (key, value) in self.keys() {
            if self.decides(&key) && !is_added(&key, &value) {
                hash.update(format!("{key} = {value}\n"));
            }
        }
        hex(&hash.finalize())
    }

    /// What in `other` forbids to resume a run of `self` with it: `train.batch: 128 → 64`. Empty when it may.
    pub fn differences(&self, other: &Recipe) -> Vec<String> {
        let theirs = other.keys();
        let mut differences = Vec::new();
        for (key, ours) in self.keys() {
            let Some(theirs) = theirs.get(&key) else { continue };
            if ours == *theirs || is_free(&key) {
                continue;
            }
            let remark = if !is_end(&key) {
                ""
            } else if self.stretches() {
                " (it stretches the schedule, so every rate would change)"
            } else if grows(&ours, theirs) {
                continue;
            } else {
                " (it may only grow)"
            };
            differences.push(format!("{key}: {ours} → {theirs}{remark}"));
        }
        differences
    }

    fn keys(&self) -> std::collections::BTreeMap<String, Value> {
        // invariant: a recipe is a table
        flatten(&Table::try_from(self).unwrap_or_default())
    }

    fn decides(&self, key: &str) -> bool {
        key != "name" && !is_free(key) && (!is_end(key) || self.stretches())
    }

    /// Whether the rate of a step depends on the length of the run.
    pub fn stretches(&self) -> bool {
        match self.schedule.kind {
            ScheduleKind::Constant | ScheduleKind::Step => false,
            ScheduleKind::Cosine | ScheduleKind::Polynomial => true,
        }
    }
}

fn is_free(key: &str) -> bool {
    let prefixes = ["elastic.", "checkpoint.", "log.", "data.cache_"];
    let keys = ["data.path", "data.read_timeout_s", "data.image.prefetch", "data.image.threads", "train.accumulate"];
    keys.contains(&key) || prefixes.iter().any(|table| key.starts_with(table))
}

fn is_end(key: &str) -> bool {
    key == "train.epochs" || key == "train.max_steps"
}

/// 0 is no limit, so larger than any other.
fn grows(ours: &Value, theirs: &Value) -> bool {
    match (ours.as_integer(), theirs.as_integer()) {
        (_, Some(0)) => true,
        (Some(0), _) => false,
        (Some(ours), Some(theirs)) => theirs >= ours,
        _ => false,
    }
}
