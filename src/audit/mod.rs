//! `lockstep audit RUN`: does what the run wrote down say that every position was in exactly one committed step, and
//! that loaders delivered what the recipe asks for?
//!
//! ```text
//! recipe.toml ──► Course, order ─────────┐
//! data set ─────► labels ─► digests ─────┤ course   steps, ledger against the recipe; digests recomputed
//! run.db ───────► steps, ledger, epochs ─┤ skipped  samples that were left out, as events name them
//!                                        │ cover    positions of each epoch, whatever the recipe says
//! metrics.jsonl, epochs.csv ─────────────┘ files    the same steps and epochs, none doubled or lost
//! ```
//! Reads only. What it believes: the recipe, the data set, the hash. What it checks: everything else.

mod course;
mod cover;
mod files;
mod skipped;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use lockstep_coordinator::store::RunReader;
use lockstep_proto::exit::ExitCode;
use lockstep_proto::recipe::Recipe;
use serde::Serialize;

use crate::failure::Failure;
use crate::output;

/// Findings beyond these are counted, not printed.
const MAX_PRINTED: usize = 50;

/// `lockstep audit`
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lockstep audit runs/demo/latest
  lockstep audit runs/demo/latest --set data.path=/elsewhere/cifar-10-batches-bin
  lockstep audit runs/demo/latest --json | jq .findings")]
pub struct Args {
    /// The run directory.
    run: PathBuf,
    /// Where data lies now, when that changed: `data.path=DIR`.
    #[arg(long = "set", value_name = "KEY=VALUE", env = "LOCKSTEP_SET")]
    sets: Vec<String>,
    /// Print the result as JSON.
    #[arg(long, env = "LOCKSTEP_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    json: bool,
}

/// What an audit says.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// The run directory.
    pub run: PathBuf,
    /// Committed steps.
    pub steps: u64,
    /// Epochs with at least one committed step.
    pub epochs: u64,
    /// Samples that counted in committed steps.
    pub samples: u64,
    /// Samples that were left out of them.
    pub skipped: u64,
    /// Everything that is wrong; empty is good.
    pub findings: Vec<String>,
}

/// Audits a run and prints what was found.
///
/// # Errors
/// Anything found (65), or something that cannot be read (66).
pub fn run(args: &Args) -> Result<(), Failure> {
    let report = audit(&args.run, &args.sets)?;
    if args.json {
        output::json(&report);
    } else if report.findings.is_empty() {
        let skipped = match report.skipped {
            0 => String::new(),
            num => format!(" and {num} that were left out"),
        };
        output::line(format!(
            "{}: {} steps in {} epochs, {} samples{skipped}: each position exactly once, digests as recomputed",
            args.run.display(),
            report.steps,
            report.epochs,
            report.samples
        ));
    }
    if report.findings.is_empty() {
        return Ok(());
    }
    let num_more = report.findings.len().saturating_sub(MAX_PRINTED);
    let mut lines: Vec<String> = report.findings.into_iter().take(MAX_PRINTED).collect();
    if num_more > 0 {
        lines.push(format!("and {num_more} more"));
    }
    let reason = format!("{}: the audit failed:\n  {}", args.run.display(), lines.join("\n  "));
    Err(Failure::new(ExitCode::Data, reason))
}

/// Opens the store of a run directory for reading.
///
/// # Errors
/// When there is none (66), or not one of this version.
pub fn open(run: &Path) -> Result<RunReader, Failure> {
    let path = run.join(lockstep_coordinator::store::FILE_NAME);
    if !path.is_file() {
        return Err(Failure::new(ExitCode::NoInput, format!("{}: no such file: not a run directory", path.display())));
    }
    Ok(RunReader::open(run)?)
}

/// Audits a run directory.
///
/// # Errors
/// When recipe, data or database cannot be read. What is wrong with the run is in the report.
pub fn audit(run: &Path, sets: &[String]) -> Result<Report, Failure> {
    let recipe_path = run.join("recipe.toml");
    if !recipe_path.is_file() {
        return Err(Failure::new(ExitCode::NoInput, format!("{}: not a run directory: no recipe.toml", run.display())));
    }
    let before = Recipe::load(&recipe_path.to_string_lossy(), &[])?;
    let recipe = Recipe::load(&recipe_path.to_string_lossy(), sets)?;
    if let Some(key) = before.differences(&recipe).first() {
        let reason = format!("--set {key}: an audit keeps the run's recipe; only where data lies may change");
        return Err(Failure::new(ExitCode::Usage, reason));
    }
    let reader = open(run)?;
    let dataset = lockstep_data::open(&recipe.data, recipe.train.seed)?;
    let mut report = Report { run: run.to_owned(), ..Report::default() };
    let steps = course::check(&reader, &recipe, dataset.as_ref(), &mut report)?;
    files::check(run, &reader, &steps, &mut report)?;
    Ok(report)
}
