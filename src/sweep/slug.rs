//! The name of a configuration: readable, and a function of its recipe alone, so that a run is found again whichever
//! table asks for it.
//!
//! `cifar10-resnet20-init=seed-solver=rmsprop-weight_decay=0-lr=0.001-1a2b3c4d`: data and depth, the keys in which it
//! differs from the built-in recipe `cifar10/resnet20`, and a hash of what decides it.

use std::collections::BTreeMap;

use lockstep_proto::manifest::hex;
use lockstep_proto::recipe::Recipe;
use sha2::{Digest, Sha256};
use toml::Table;

use super::file::flatten;
use crate::failure::Failure;

/// What names are told from. Changing it renames every run.
const REFERENCE: &str = "cifar10/resnet20";
/// No name is longer: there are file systems and terminals.
const MAX_LENGTH: usize = 120;
/// Tables that decide nothing.
const FREE: [&str; 4] = ["elastic.", "checkpoint.", "log.", "data.cache_"];
/// Keys that decide nothing or are in the name anyway.
const UNNAMED: [&str; 6] = ["name", "data.kind", "data.path", "data.read_timeout_s", "model.n", "train.seed"];

/// Equal for recipes that are the same run but for the seed: the course, and where it ends.
pub fn identity(recipe: &Recipe) -> String {
    let recipe = unseeded(recipe);
    format!("{} {} {}", recipe.sha256(), recipe.train.epochs, recipe.train.max_steps)
}

/// Gives names.
pub(super) struct Slugs {
    reference: BTreeMap<String, String>,
}

impl Slugs {
    /// # Errors
    /// Never with a build that passed its tests.
    pub(super) fn new() -> Result<Self, Failure> {
        Ok(Self { reference: keys(&Recipe::load(REFERENCE, &[])?) })
    }

    /// The name of a recipe's configuration.
    pub(super) fn of(&self, recipe: &Recipe) -> String {
        let keys = keys(recipe);
        let kind = keys.get("data.kind").map(|kind| plain(kind)).unwrap_or_default();
        let mut slug = format!("{kind}-resnet{}", recipe.model.depth());
        let hash = hex(&Sha256::digest(identity(recipe)));
        let hash = hash.get(..8).unwrap_or(&hash);
        for (key, value) in &keys {
            let is_free = UNNAMED.contains(&&**key) || FREE.iter().any(|table| key.starts_with(table));
            // Only `schedule.kind = "step"` has milestones, and the kind is told.
            let is_told = key == "schedule.milestones" && value == "[]";
            if is_free || is_told || self.reference.get(key) == Some(value) {
                continue;
            }
            let part = format!("-{}={}", short(key), plain(value));
            if slug.len() + part.len() + "-more-".len() + hash.len() > MAX_LENGTH {
                slug.push_str("-more");
                break;
            }
            slug.push_str(&part);
        }
        format!("{slug}-{hash}")
    }
}

fn unseeded(recipe: &Recipe) -> Recipe {
    let mut recipe = recipe.clone();
    recipe.train.seed = 0;
    recipe
}

fn keys(recipe: &Recipe) -> BTreeMap<String, String> {
    // invariant: a recipe is a table
    flatten(&Table::try_from(recipe).unwrap_or_default())
}

/// The last part of a key; of `schedule.kind` the first.
fn short(key: &str) -> &str {
    match key.rsplit_once('.') {
        Some((table, "kind")) => table,
        Some((_, last)) => last,
        None => key,
    }
}

/// A value without what a file name should not have.
fn plain(value: &str) -> String {
    let value = value.trim_matches(['"', '[', ']']);
    let value = value.strip_suffix(".0").unwrap_or(value);
    let value: String = value.replace(", ", "+");
    value.chars().map(|c| if c.is_ascii_alphanumeric() || "._+-".contains(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slug(base: &str, sets: &[&str]) -> String {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        Slugs::new().unwrap().of(&Recipe::load(base, &sets).unwrap())
    }

    #[track_caller]
    fn begins(slug: &str, expected: &str) {
        let (readable, hash) = slug.rsplit_once('-').unwrap();
        assert_eq!(readable, expected);
        assert!(hash.len() == 8 && hash.chars().all(|c| c.is_ascii_hexdigit()), "{slug}");
    }

    #[test]
    fn a_name_says_what_is_different() {
        begins(&slug("cifar10/resnet20", &[]), "cifar10-resnet20");
        begins(&slug("cifar10/resnet110", &[]), "cifar10-resnet110-warmup=held-warmup_lr=0.001-warmup_steps=400");
        let sets =
            ["optim.solver=adadelta", "optim.weight_decay=0", "schedule.kind=constant", "schedule.milestones=[]"];
        begins(&slug("cifar10/resnet20", &sets), "cifar10-resnet20-solver=adadelta-weight_decay=0-schedule=constant");
        begins(&slug("cifar10/resnet20", &["schedule.milestones=[80,160]"]), "cifar10-resnet20-milestones=80+160");
        let long = slug("demo", &["train.batch=32", "train.chunk=8", "train.epochs=3", "model.bn_momentum=dynamic"]);
        assert!(long.len() <= MAX_LENGTH && long.contains("bn_momentum=dynamic"), "{long}");
    }

    /// If this fails, runs of earlier versions are no longer found: do it knowingly.
    #[test]
    fn names_never_change_by_accident() {
        let golden = ["cifar10/resnet20", "cifar10/resnet110", "demo"].map(|base| slug(base, &[]));
        assert_eq!(golden, GOLDEN);
    }

    const GOLDEN: [&str; 3] = [
        "cifar10-resnet20-175646b4",
        "cifar10-resnet110-warmup=held-warmup_lr=0.001-warmup_steps=400-363f71d3",
        "shapes-resnet8-schedule=cosine-batch=64-epochs=4-c8ca439f",
    ];

    #[test]
    fn the_hash_knows_the_length_of_a_run_and_no_seed() {
        let plain = slug("cifar10/resnet20", &[]);
        assert_eq!(slug("cifar10/resnet20", &["train.seed=4", "data.path=x", "log.every_s=1", "name=y"]), plain);
        let (readable, hash) = plain.rsplit_once('-').unwrap();
        let longer = slug("cifar10/resnet20", &["train.max_steps=100"]);
        assert!(longer.starts_with(&format!("{readable}-max_steps=100-")) && !longer.ends_with(hash), "{longer}");
    }
}
