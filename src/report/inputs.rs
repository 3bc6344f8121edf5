//! From what stands on the command line to tables: run directories make one, every sweep makes its own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use lockstep_coordinator::run_dir;
use lockstep_proto::exit::ExitCode;
use lockstep_proto::recipe::Recipe;
use serde_json::Value;

use super::model::{Row, Run, Table};
use super::{Args, read};
use crate::audit;
use crate::failure::Failure;
use crate::sweep::file::Reference;
use crate::sweep::plan::{Options, Plan};
use crate::sweep::{builtin, find, identity};

/// Name of the table of run directories.
const RUNS: &str = "runs";

/// Tables, and the folder that a report on them belongs into.
#[derive(Debug)]
pub struct Inputs {
    /// What is reported on.
    pub tables: Vec<Table>,
    /// Where the report goes.
    pub folder: PathBuf,
}

impl Inputs {
    /// Finds and reads everything that is named.
    ///
    /// # Errors
    /// Something that is neither a run nor a sweep, or cannot be read.
    pub fn read(args: &Args) -> Result<Self, Failure> {
        let (mut runs, mut sweeps) = (Vec::new(), Vec::new());
        for name in &args.of {
            let path = Path::new(name);
            let is_sweep = builtin::builtin().iter().any(|known| known.name == name) || path.is_file();
            if is_sweep || is_folder_of_sweeps(path) {
                sweeps.push(name.clone());
            } else if path.exists() {
                runs.push(path.to_owned());
            } else {
                return Err(missing(name));
            }
        }
        let mut tables = Vec::new();
        if !runs.is_empty() {
            tables.push(table_of_runs(&runs, args.smooth)?);
        }
        if !sweeps.is_empty() {
            tables.extend(tables_of_sweeps(&sweeps, args)?);
        }
        let folder = args.to.clone().unwrap_or_else(|| folder(args, &runs, &tables));
        Ok(Self { tables, folder })
    }
}

/// A run's report lies in its directory, a sweep's beside its runs.
fn folder(args: &Args, runs: &[PathBuf], tables: &[Table]) -> PathBuf {
    match (runs, tables) {
        ([run], [_]) => run.join("report"),
        ([], [table]) => args.out.join("report").join(&table.name),
        ([], _) => args.out.join("report").join("sweep"),
        _ => PathBuf::from("report"),
    }
}

/// A run directory has a TOML file too.
fn is_folder_of_sweeps(path: &Path) -> bool {
    let is_toml = |entry: std::fs::DirEntry| entry.path().extension().is_some_and(|ending| ending == "toml");
    !run_dir::holds_run(path) && std::fs::read_dir(path).is_ok_and(|entries| entries.flatten().any(is_toml))
}

fn missing(name: &str) -> Failure {
    let is_path = name.contains(['/', '.']);
    match find::load(&[name.to_owned()]) {
        // It may have meant a built-in sweep.
        Err(failure) if !is_path => failure,
        _ => Failure::new(ExitCode::NoInput, format!("{name}: no such run directory or sweep file")),
    }
}

fn tables_of_sweeps(sweeps: &[String], args: &Args) -> Result<Vec<Table>, Failure> {
    let options =
        Options { out: args.out.clone(), sets: args.sets.clone(), seeds: args.seeds.clone(), only: args.only.clone() };
    let plan = Plan::new(&find::load(sweeps)?, &options)?;
    let mut tables = Vec::new();
    for sweep in &plan.sweeps {
        let row = |row: &crate::sweep::plan::Row| Row {
            label: row.label.clone(),
            reference: row.reference.clone(),
            recipe: plan.configs[row.config].recipe.clone(),
            runs: plan.runs_of(row).map(|run| read::run(&run.dir, run.seed, args.smooth)).collect(),
        };
        let rows = sweep.rows.iter().map(row).collect();
        tables.push(Table { name: sweep.name.clone(), title: sweep.title.clone(), rows });
    }
    Ok(tables)
}

/// Runs whose recipes are equal but for the seed are one row. A seed that comes twice begins another: a mean over seeds
/// has each of them once.
fn table_of_runs(dirs: &[PathBuf], smooth: Option<u64>) -> Result<Table, Failure> {
    let mut rows: Vec<Row> = Vec::new();
    let mut seen: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for dir in dirs {
        audit::open(dir)?;
        let recipe = run_dir::recipe_of(dir)?;
        let run = read::run(dir, recipe.train.seed, smooth);
        let same = seen.entry(identity(&recipe)).or_default();
        let is_free = |row: &&usize| rows[**row].runs.iter().all(|other: &Run| other.seed != run.seed);
        match same.iter().find(is_free).copied() {
            Some(row) => rows[row].runs.push(run),
            None => {
                same.push(rows.len());
                rows.push(Row { label: String::new(), reference: Reference::default(), recipe, runs: vec![run] });
            }
        }
    }
    label(&mut rows);
    let title = match rows.as_slice() {
        [row] => row.recipe.name.clone(),
        _ => "Runs".to_owned(),
    };
    Ok(Table { name: RUNS.to_owned(), title, rows })
}

/// A row is called after its recipe, and after the keys in which it differs from other rows; where that tells nothing,
/// after its directory.
fn label(rows: &mut [Row]) {
    let keys: Vec<BTreeMap<String, String>> = rows.iter().map(|row| flatten(&row.recipe)).collect();
    let differ: BTreeSet<&String> = keys
        .iter()
        .flat_map(BTreeMap::keys)
        .filter(|key| keys.iter().any(|other| other.get(*key) != keys[0].get(*key)))
        .collect();
    let names: BTreeSet<&str> = rows.iter().map(|row| &*row.recipe.name).collect();
    let are_names_enough = names.len() == rows.len();
    let labels: Vec<String> = rows
        .iter()
        .zip(&keys)
        .map(|(row, keys)| {
            let mut parts = vec![row.recipe.name.clone()];
            if !are_names_enough {
                parts.extend(differ.iter().filter_map(|key| Some(format!("{key} = {}", keys.get(*key)?))));
            }
            parts.join(", ")
        })
        .collect();
    for (index, row) in rows.iter_mut().enumerate() {
        let is_unique = labels.iter().filter(|label| **label == labels[index]).count() == 1;
        row.label.clone_from(&labels[index]);
        if let Some(run) = row.runs.first().filter(|_| !is_unique) {
            row.label.push_str(&format!(" ({})", run.dir.display()));
        }
    }
}

/// Keys of a recipe that may tell rows apart.
fn flatten(recipe: &Recipe) -> BTreeMap<String, String> {
    fn enter(value: &Value, prefix: &str, into: &mut BTreeMap<String, String>) {
        match value {
            Value::Object(table) => {
                for (name, value) in table {
                    let dot = if prefix.is_empty() { "" } else { "." };
                    enter(value, &format!("{prefix}{dot}{name}"), into);
                }
            }
            Value::String(text) => {
                into.insert(prefix.to_owned(), text.clone());
            }
            other => {
                into.insert(prefix.to_owned(), other.to_string());
            }
        }
    }
    let mut keys = BTreeMap::new();
    enter(&serde_json::to_value(recipe).unwrap_or_default(), "", &mut keys);
    let is_told = |key: &str| key == "name" || key == "train.seed" || key == "data.path";
    let is_free = |key: &str| ["elastic.", "checkpoint.", "log."].iter().any(|table| key.starts_with(table));
    keys.retain(|key, _| !is_told(key) && !is_free(key));
    keys
}
