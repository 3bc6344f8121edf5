//! The recipe of all runs here: steps of some milliseconds on one core.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// 100 steps an epoch: 2,398 samples in batches of 24, the last of 22; chunks of 8, 8 and 8 (8, 8 and 6).
const BASE: &[(&str, &str)] = &[
    ("checkpoint.every_epochs", "0"),
    ("checkpoint.every_steps", "50"),
    ("checkpoint.keep", "3"),
    ("data.kind", "\"shapes\""),
    ("data.test_size", "40"),
    ("data.train_size", "2_398"),
    ("elastic.join_timeout_s", "120"),
    ("log.tensorboard", "false"),
    ("model.arch", "\"resnet-cifar\""),
    ("model.n", "1"),
    ("model.width", "8"),
    ("name", "\"chaos\""),
    ("optim.momentum", "0.9"),
    ("optim.nesterov", "true"),
    ("optim.solver", "\"sgd\""),
    ("optim.weight_decay", "1e-4"),
    ("schedule.kind", "\"constant\""),
    ("schedule.lr", "0.05"),
    ("train.batch", "24"),
    ("train.chunk", "8"),
    ("train.epochs", "1_000_000"),
    ("train.seed", "7"),
];

/// Keys with their TOML values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe(BTreeMap<String, String>);

impl Recipe {
    /// A run that goes on until it is ended. `sets` are `key=value`, with TOML's values.
    pub fn endless(sets: &[String]) -> Self {
        let pairs = BASE.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let mut recipe = Self(pairs.collect());
        for set in sets {
            if let Some((key, value)) = set.split_once('=') {
                recipe = recipe.with(key, value);
            }
        }
        recipe
    }

    /// The same with another value of one key.
    pub fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.0.insert(key.into(), value.to_string());
        self
    }

    /// The same, ended after so many steps.
    pub fn steps(self, steps: u64) -> Self {
        self.with("train.max_steps", steps)
    }

    /// What an undisturbed run of the same course needs: nothing of membership, and no checkpoint but the last.
    pub fn course_of(&self, steps: u64) -> Self {
        let keys = self.0.iter().filter(|(key, _)| !key.starts_with("elastic.") && !key.starts_with("checkpoint."));
        let keys = keys.map(|(key, value)| (key.clone(), value.clone())).collect();
        Self(keys).with("checkpoint.every_epochs", 0).with("checkpoint.every_steps", 0).steps(steps)
    }

    /// As a file.
    pub fn toml(&self) -> String {
        let mut text = String::new();
        for (key, value) in &self.0 {
            let _ = writeln!(text, "{key} = {value}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recipe_is_one_and_its_reference_has_the_same_course() {
        let ours = Recipe::endless(&["elastic.balance=true".into()]).with("data.train_size", 450);
        let parse = |recipe: &Recipe| lockstep_proto::recipe::Recipe::from_toml(&recipe.toml(), "chaos");
        let (run, reference) = (parse(&ours).unwrap(), parse(&ours.course_of(40)).unwrap());
        assert_eq!(run.sha256(), reference.sha256());
        assert_eq!(reference.train.max_steps, 40);
        assert!(run.elastic.balance && !reference.elastic.balance);
    }
}
