//! From sweep files to runs: which configurations there are, with which seeds, and where each run lies.
//!
//! ```text
//! files ─► rows ─► recipes ─► configurations (equal recipes are one) × seeds ─► runs: OUT/<slug>/seed-<k>/
//! ```
//! A row that stands in several tables is one configuration and is run once; its slug depends on the recipe alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lockstep_proto::exit::ExitCode;
use lockstep_proto::recipe::{DataKind, Recipe};

use super::file::{FileRow, Reference, SweepFile, check_seeds};
use super::slug::{Slugs, identity};
use crate::failure::Failure;

/// What the command line says about all sweeps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// Runs lie below it.
    pub out: PathBuf,
    /// Keys of every recipe, over those of the files: `a.b=c`.
    pub sets: Vec<String>,
    /// In place of the seeds of every row.
    pub seeds: Option<Vec<u64>>,
    /// Only rows with this in label or slug, in any case.
    pub only: Option<String>,
}

/// Everything that is to be run, and for which rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// One a table, in the order given.
    pub sweeps: Vec<Sweep>,
    /// Each once, in the order of its first row.
    pub configs: Vec<Config>,
    /// In the order of execution: the first seed of every configuration, then the second, so that every row has a figure
    /// early.
    pub runs: Vec<Run>,
}

/// One table.
#[derive(Clone, Debug, PartialEq)]
pub struct Sweep {
    /// Its name: the file's, without `.toml`.
    pub name: String,
    /// Its heading.
    pub title: String,
    /// Rows, in order.
    pub rows: Vec<Row>,
}

/// One row of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What the table calls it.
    pub label: String,
    /// Published figures.
    pub reference: Reference,
    /// Index in [`Plan::configs`].
    pub config: usize,
    /// Its seeds. Rows of other tables may ask for more seeds of the same configuration.
    pub seeds: Vec<u64>,
}

/// What is run, whatever the seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Its folder, and the name of its runs' recipes.
    pub slug: String,
    /// Resolved, with `train.seed = 0`.
    pub recipe: Recipe,
    /// Work of one run, in arbitrary units that suit comparisons.
    pub cost: f64,
}

/// One run.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Index in [`Plan::configs`].
    pub config: usize,
    /// `train.seed`
    pub seed: u64,
    /// Its run directory.
    pub dir: PathBuf,
    /// Its recipe.
    pub recipe: Recipe,
}

impl Plan {
    /// Resolves every row and finds which are the same.
    ///
    /// # Errors
    /// A recipe that is not there (66) or wrong (64), named with file and row; `--only` that leaves nothing (64).
    pub fn new(files: &[SweepFile], options: &Options) -> Result<Self, Failure> {
        check_options(options)?;
        let slugs = Slugs::new()?;
        let mut by_identity: BTreeMap<String, usize> = BTreeMap::new();
        let (mut sweeps, mut configs) = (Vec::new(), Vec::new());
        let mut seeds_of: Vec<Vec<u64>> = Vec::new();
        for file in files {
            let mut rows = Vec::new();
            for row in &file.rows {
                let mut recipe = resolve(file, row, options)?;
                let slug = slugs.of(&recipe);
                if !is_wanted(options.only.as_deref(), &[&row.label, &slug]) {
                    continue;
                }
                let config = *by_identity.entry(identity(&recipe)).or_insert_with(|| {
                    recipe.name.clone_from(&slug);
                    configs.push(Config { slug, cost: cost(&recipe), recipe });
                    seeds_of.push(Vec::new());
                    configs.len() - 1
                });
                let seeds = options.seeds.clone().unwrap_or_else(|| row.seeds.clone());
                for seed in &seeds {
                    if !seeds_of[config].contains(seed) {
                        seeds_of[config].push(*seed);
                    }
                }
                rows.push(Row { label: row.label.clone(), reference: row.reference.clone(), config, seeds });
            }
            if !rows.is_empty() {
                sweeps.push(Sweep { name: file.name.clone(), title: file.title.clone(), rows });
            }
        }
        if sweeps.is_empty() {
            let only = options.only.as_deref().unwrap_or_default();
            let reason = format!("--only {only}: no row has that in its label or slug; --list without it shows them");
            return Err(Failure::new(ExitCode::Usage, reason));
        }
        let runs = runs(&configs, &seeds_of, &options.out);
        Ok(Self { sweeps, configs, runs })
    }

    /// The first row of a configuration: its table's name and its label.
    pub fn title_of(&self, config: usize) -> (&str, &str) {
        let rows = self.sweeps.iter().flat_map(|sweep| sweep.rows.iter().map(move |row| (sweep, row)));
        let mut rows = rows.filter(|(_, row)| row.config == config);
        rows.next().map_or(("", ""), |(sweep, row)| (&sweep.name, &row.label))
    }

    /// The runs of a row, in the order of its seeds.
    pub fn runs_of<'a>(&'a self, row: &'a Row) -> impl Iterator<Item = &'a Run> {
        row.seeds.iter().filter_map(|seed| self.runs.iter().find(|run| run.config == row.config && run.seed == *seed))
    }
}

impl Config {
    /// Depth of its network.
    pub fn layers(&self) -> u32 {
        self.recipe.model.depth()
    }
}

fn check_options(options: &Options) -> Result<(), Failure> {
    if let Some(seeds) = &options.seeds {
        check_seeds(seeds).map_err(|what| Failure::new(ExitCode::Usage, format!("--seeds: {what}")))?;
    }
    for set in &options.sets {
        let key = set.split('=').next().unwrap_or_default().trim();
        if let Some(remedy) = refused(key) {
            return Err(Failure::new(ExitCode::Usage, format!("--set {set}: {remedy}")));
        }
    }
    Ok(())
}

/// Why a sweep may not set a key, if it may not.
fn refused(key: &str) -> Option<&'static str> {
    match key {
        "train.seed" => Some("a sweep runs several seeds: use --seeds, or `seeds` in the sweep file"),
        "name" => Some("a sweep names its runs after what is in them"),
        _ => None,
    }
}

fn resolve(file: &SweepFile, row: &FileRow, options: &Options) -> Result<Recipe, Failure> {
    let at = format!("{}, line {}: row {:?}", file.source, row.line, row.label);
    if let Some((key, remedy)) = row.sets.keys().find_map(|key| refused(key).map(|remedy| (key, remedy))) {
        return Err(Failure::new(ExitCode::Usage, format!("{at}: `set.{key}`: {remedy}")));
    }
    let mut sets: Vec<String> = row.sets.iter().map(|(key, value)| format!("{key}={value}")).collect();
    sets.extend(options.sets.iter().cloned());
    let mut recipe =
        Recipe::load(&row.recipe, &sets).map_err(|error| Failure::new(error.exit_code(), format!("{at}: {error}")))?;
    recipe.train.seed = 0;
    Ok(recipe)
}

fn is_wanted(only: Option<&str>, texts: &[&str]) -> bool {
    let Some(only) = only.map(str::to_lowercase) else { return true };
    texts.iter().any(|text| text.to_lowercase().contains(&only))
}

/// The first seed of every configuration, then the second, …
fn runs(configs: &[Config], seeds_of: &[Vec<u64>], out: &Path) -> Vec<Run> {
    let most = seeds_of.iter().map(Vec::len).max().unwrap_or(0);
    let mut runs = Vec::new();
    for turn in 0..most {
        for (config, (of, seeds)) in configs.iter().zip(seeds_of).enumerate() {
            let Some(&seed) = seeds.get(turn) else { continue };
            let mut recipe = of.recipe.clone();
            recipe.train.seed = seed;
            let dir = out.join(&of.slug).join(format!("seed-{seed}"));
            runs.push(Run { config, seed, dir, recipe });
        }
    }
    runs
}

/// Images × layers × the square of the width: what the convolutions take. Only ratios matter.
fn cost(recipe: &Recipe) -> f64 {
    let by_epochs = match recipe.train.epochs {
        0 => f64::INFINITY,
        epochs => epochs as f64 * num_train(recipe) as f64 * f64::from(recipe.data.repeats),
    };
    let by_steps = match recipe.train.max_steps {
        0 => f64::INFINITY,
        steps => steps as f64 * recipe.train.batch as f64,
    };
    let width = f64::from(recipe.model.width) / 16.0;
    by_epochs.min(by_steps) * f64::from(recipe.model.depth()) * width * width
}

/// Training samples, before the data are there to be counted.
pub fn num_train(recipe: &Recipe) -> u64 {
    let of_kind = match recipe.data.kind {
        DataKind::Cifar10 | DataKind::Cifar100 => 50_000,
        DataKind::Shapes => recipe.data.train_size,
        DataKind::ImageFolder | DataKind::Webdataset => 1_281_167, // ImageNet's, which is what such sets are mostly
    };
    if recipe.data.limit > 0 { of_kind.min(recipe.data.limit) } else { of_kind }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::find::load;
    use super::*;

    fn plan(text: &str, options: &Options) -> Result<Plan, String> {
        let file = SweepFile::parse(text, "t.toml", None).map_err(|failure| failure.reason)?;
        Plan::new(&[file], options).map_err(|failure| failure.reason)
    }

    fn options(sets: &[&str]) -> Options {
        let sets = sets.iter().map(|set| (*set).to_owned()).collect();
        Options { out: "out".into(), sets, ..Options::default() }
    }

    #[test]
    fn the_reference_row_of_five_tables_is_one_configuration() {
        let files = load(&[]).unwrap();
        let plan = Plan::new(&files, &options(&[])).unwrap();
        let of = |table: &str, label: &str| {
            let sweep = plan.sweeps.iter().find(|sweep| sweep.name == table).unwrap();
            sweep.rows.iter().find(|row| row.label == label).unwrap().config
        };
        let reference = of("model_size", "Nsize=3, 20 layers");
        for (table, label) in [
            ("arch_shallow", "ReLU, BN before add (ORIG PAPER reimplementation)"),
            ("solver_shallow", "Original paper: SGD + Nesterov momentum, 1e-1"),
            ("bn_momentum", "Original paper: BN momentum = 0.1"),
            ("init_nninit", "Original (before PR #3)"),
            ("schedule", "Drops at 80 and 120, each image once an epoch"),
        ] {
            assert_eq!(of(table, label), reference, "{table}");
        }
        let deep = of("model_size", "Nsize=18, 110 layers, fancy policy");
        assert_eq!(of("arch_deep", "ReLU, BN before add (ORIG PAPER reimplementation)"), deep);
        assert_eq!(of("solver_deep", "Nsize=18, Original paper: Nesterov, 1e-1"), deep);
        let slugs: BTreeSet<_> = plan.configs.iter().map(|config| &config.slug).collect();
        assert_eq!(slugs.len(), plan.configs.len());
        let dirs: BTreeSet<_> = plan.runs.iter().map(|run| &run.dir).collect();
        assert_eq!(dirs.len(), plan.runs.len());
        assert!(slugs.iter().all(|slug| !slug.contains("-more-")), "every built-in one is told in full: {slugs:?}");
    }

    #[test]
    fn where_a_run_lies_does_not_depend_on_the_tables_that_are_named() {
        let dirs = |names: &[&str]| -> BTreeSet<PathBuf> {
            let files = load(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
            Plan::new(&files, &options(&[])).unwrap().runs.into_iter().map(|run| run.dir).collect()
        };
        let both = dirs(&["bn_momentum", "arch_shallow"]);
        assert_eq!(both, &dirs(&["arch_shallow"]) | &dirs(&["bn_momentum"]));
        assert_eq!(both.len(), 7 * 5);
    }

    #[test]
    fn free_keys_make_no_other_configuration_and_epochs_do() {
        let text = "recipe = \"demo\"\n[[row]]\nlabel = \"a\"\n\
                    [[row]]\nlabel = \"b\"\nset.log.every_s = 1\nset.checkpoint.keep = 1\nset.elastic.max_workers = 3\n\
                    [[row]]\nlabel = \"c\"\nset.train.epochs = 9\n\
                    [[row]]\nlabel = \"d\"\nrecipe = \"cifar10/resnet20\"\n\
                    [[row]]\nlabel = \"e\"\nrecipe = \"cifar10/resnet20\"\nset.train.epochs = 9\n\
                    [[row]]\nlabel = \"f\"\nrecipe = \"cifar10/resnet32\"\nset.model.n = 3\nset.data.path = \"x\"\n";
        let plan = plan(text, &options(&[])).unwrap();
        let configs: Vec<_> = plan.sweeps[0].rows.iter().map(|row| row.config).collect();
        assert_eq!(configs, [0, 0, 1, 2, 3, 2]);
        assert!(plan.configs[3].slug.starts_with("cifar10-resnet20-epochs=9-"), "{}", plan.configs[3].slug);
        assert_eq!(plan.runs[0].recipe.name, plan.configs[0].slug);
    }

    #[test]
    fn every_row_has_its_first_seed_before_any_has_its_second() {
        let text = "recipe = \"demo\"\nseeds = [5, 6]\n[[row]]\nlabel = \"a\"\n\
                    [[row]]\nlabel = \"b\"\nset.model.n = 2\nseeds = [7]\n\
                    [[row]]\nlabel = \"a again\"\nseeds = [6, 8]\n";
        let planned = plan(text, &options(&[])).unwrap();
        let runs: Vec<_> = planned.runs.iter().map(|run| (run.config, run.seed, run.recipe.train.seed)).collect();
        assert_eq!(runs, [(0, 5, 5), (1, 7, 7), (0, 6, 6), (0, 8, 8)]);
        let of_row: Vec<_> = planned.runs_of(&planned.sweeps[0].rows[2]).map(|run| run.seed).collect();
        assert_eq!(of_row, [6, 8]);
        let fewer = Options { seeds: Some(vec![1]), only: Some("AGAIN".into()), ..options(&["model.width=8"]) };
        let fewer = plan(text, &fewer).unwrap();
        assert_eq!((fewer.runs.len(), fewer.runs[0].seed, fewer.runs[0].recipe.model.width), (1, 1, 8));
        assert_eq!(fewer.runs[0].dir, Path::new("out").join(&fewer.configs[0].slug).join("seed-1"));
    }

    #[test]
    fn what_is_wrong_names_file_and_row() {
        let row = "recipe = \"demo\"\n[[row]]\nlabel = \"a\"\n";
        let wrong = |line: &str, sets: &[&str]| plan(&format!("{row}{line}\n"), &options(sets)).unwrap_err();
        assert_eq!(
            wrong("set.model.bn_postion = \"after_add\"", &[]),
            "t.toml, line 2: row \"a\": --set model.bn_postion=\"after_add\": unknown key `model.bn_postion`; did you \
             mean `model.bn_position`?"
        );
        let remedy = "a sweep runs several seeds: use --seeds, or `seeds` in the sweep file";
        assert_eq!(wrong("set.train.seed = 1", &[]), format!("t.toml, line 2: row \"a\": `set.train.seed`: {remedy}"));
        assert_eq!(wrong("", &["train.seed=1"]), format!("--set train.seed=1: {remedy}"));
        let only = Options { only: Some("zzz".into()), ..options(&[]) };
        let expected = "--only zzz: no row has that in its label or slug; --list without it shows them";
        assert_eq!(plan(row, &only).unwrap_err(), expected);
        let twice = Options { seeds: Some(vec![1, 1]), ..options(&[]) };
        assert!(plan(row, &twice).unwrap_err().starts_with("--seeds: `seeds` has 1 twice"));
    }

    #[test]
    fn deeper_and_longer_costs_more() {
        let cost = |sets: &[&str]| {
            plan("recipe = \"demo\"\n[[row]]\nlabel = \"a\"\n", &options(sets)).unwrap().configs[0].cost
        };
        assert_eq!(cost(&[]), 4.0 * 10_000.0 * 8.0);
        assert_eq!(cost(&["model.n=2"]), 4.0 * 10_000.0 * 14.0);
        assert_eq!(cost(&["train.max_steps=10"]), 640.0 * 8.0);
    }
}
