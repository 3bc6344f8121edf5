//! Where runs came from: what several have in common is told once.

use std::path::Path;

use super::model::{Run, Table};
use crate::train::quoted;

/// What several runs have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Names with values, in order.
    pub facts: Vec<(&'static str, String)>,
    /// Whose it is: label and seed.
    pub runs: Vec<String>,
}

/// Origins of a table's runs, each once.
pub fn origins(table: &Table) -> Vec<Origin> {
    let mut origins: Vec<Origin> = Vec::new();
    for row in &table.rows {
        for run in &row.runs {
            let Some(facts) = facts(run) else { continue };
            let name = run_name(table, &row.label, run);
            match origins.iter_mut().find(|origin| origin.facts == facts) {
                Some(origin) => origin.runs.push(name),
                None => origins.push(Origin { facts, runs: vec![name] }),
            }
        }
    }
    origins
}

/// A run's name in lists.
pub fn run_name(table: &Table, label: &str, run: &Run) -> String {
    if table.rows.len() == 1 { format!("seed {}", run.seed) } else { format!("{label}, seed {}", run.seed) }
}

/// The command that repeats a run.
pub fn command(run: &Run) -> String {
    format!("lockstep train {}", quoted(&recipe_of(&run.dir)))
}

fn recipe_of(dir: &Path) -> std::path::PathBuf {
    dir.join("recipe.toml")
}

fn facts(run: &Run) -> Option<Vec<(&'static str, String)>> {
    let details = run.details.as_ref()?;
    let from = &details.provenance;
    let unknown = || "unknown".to_owned();
    let commit = match (&from.commit, from.diff.as_deref().unwrap_or_default()) {
        (None, _) => "none: not started in a git checkout".to_owned(),
        (Some(commit), "") => commit.clone(),
        (Some(commit), _) => format!("{commit} with local changes (in provenance.json)"),
    };
    let mut devices: Vec<&str> = from.devices.values().flatten().map(String::as_str).collect();
    devices.sort_unstable();
    devices.dedup();
    let host = match &from.host.cpu {
        Some(cpu) => format!("{cpu}, {} threads, {}", from.host.cores, from.host.system),
        None => format!("{} threads, {}", from.host.cores, from.host.system),
    };
    let data = details.data.as_ref().or(from.data.as_ref());
    Some(vec![
        ("commit", commit),
        ("build", if from.build.is_empty() { unknown() } else { from.build.clone() }),
        ("host", host),
        ("devices", if devices.is_empty() { unknown() } else { devices.join(", ") }),
        ("instruction set", from.instruction_set.clone().unwrap_or_else(unknown)),
        ("data", data.map_or_else(unknown, |data| format!("{}, sha256 {}", data.name, data.fingerprint))),
    ])
}
