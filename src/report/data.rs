//! The table for programs: CSV and JSON. Errors are fractions, as everywhere in a run directory.

use lockstep_proto::exit::ExitCode;
use serde::Serialize;

use super::model::{Run, State};
use super::{Report, Section};
use crate::failure::Failure;

/// Columns of `report.csv`; others may only be added at the end.
pub const COLUMNS: [&str; 13] = [
    "table",
    "label",
    "n_seeds",
    "test_error_mean",
    "test_error_sd",
    "seed_test_error",
    "paper_test_error",
    "difference_seed",
    "difference_paper",
    "other_schedule",
    "seeds",
    "test_errors",
    "note",
];

/// A row as JSON.
#[derive(Debug, Serialize)]
pub struct Object<'a> {
    table: &'a str,
    title: &'a str,
    label: &'a str,
    n_seeds: usize,
    test_error_mean: Option<f64>,
    test_error_sd: Option<f64>,
    seed_test_error: Option<f64>,
    paper_test_error: Option<f64>,
    difference_seed: Option<f64>,
    difference_paper: Option<f64>,
    other_schedule: &'a [String],
    note: Option<&'a str>,
    runs: Vec<RunObject<'a>>,
}

#[derive(Debug, Serialize)]
struct RunObject<'a> {
    seed: u64,
    dir: &'a std::path::Path,
    state: &'static str,
    test_error: Option<f64>,
    remark: Option<String>,
    recipe_sha256: Option<&'a str>,
    state_sha256: Option<&'a str>,
}

/// Rows of a table.
pub(super) fn rows(section: &Section) -> Vec<Object<'_>> {
    let table = &section.table;
    table
        .rows
        .iter()
        .zip(&section.cells)
        .map(|(row, cells)| {
            let stats = row.stats();
            let difference =
                |published: Option<f64>| Some(stats?.mean - published?).filter(|_| cells.departures.is_empty());
            let reference = &row.reference;
            Object {
                table: &table.name,
                title: &table.title,
                label: &row.label,
                n_seeds: stats.map_or(0, |stats| stats.num),
                test_error_mean: stats.map(|stats| stats.mean),
                test_error_sd: stats.and_then(|stats| stats.sd),
                seed_test_error: reference.seed_test_error,
                paper_test_error: reference.paper_test_error,
                difference_seed: difference(reference.seed_test_error),
                difference_paper: difference(reference.paper_test_error),
                other_schedule: &cells.departures,
                note: reference.note.as_deref(),
                runs: row.runs.iter().map(run).collect(),
            }
        })
        .collect()
}

fn run(run: &Run) -> RunObject<'_> {
    RunObject {
        seed: run.seed,
        dir: &run.dir,
        state: match run.state {
            State::NotRun => "not_run",
            State::Unfinished { .. } => "unfinished",
            State::Failed { .. } => "failed",
            State::Done => "done",
        },
        test_error: run.test_error(),
        remark: run.remark(),
        recipe_sha256: run.details.as_ref().map(|details| &*details.recipe_sha256),
        state_sha256: run.details.as_ref().and_then(|details| details.state_sha256.as_deref()),
    }
}

/// All tables as one CSV, a line a row. Values over seeds stand in one field, separated by blanks, in the order of
/// `seeds`.
///
/// # Errors
/// Never: writing to memory.
pub(super) fn csv(report: &Report) -> Result<String, Failure> {
    let failed = |error: String| Failure::new(ExitCode::Software, format!("report.csv: {error}"));
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(COLUMNS).map_err(|error| failed(error.to_string()))?;
    for section in &report.tables {
        for (object, row) in rows(section).iter().zip(&section.table.rows) {
            let (seeds, errors): (Vec<String>, Vec<String>) =
                row.errors().iter().map(|(seed, error)| (seed.to_string(), rounded(*error))).unzip();
            let number = |value: Option<f64>| value.map(rounded).unwrap_or_default();
            let record = [
                object.table.to_owned(),
                object.label.to_owned(),
                object.n_seeds.to_string(),
                number(object.test_error_mean),
                number(object.test_error_sd),
                number(object.seed_test_error),
                number(object.paper_test_error),
                number(object.difference_seed),
                number(object.difference_paper),
                object.other_schedule.join("; "),
                seeds.join(" "),
                errors.join(" "),
                object.note.unwrap_or_default().to_owned(),
            ];
            writer.write_record(record).map_err(|error| failed(error.to_string()))?;
        }
    }
    let bytes = writer.into_inner().map_err(|error| failed(error.to_string()))?;
    String::from_utf8(bytes).map_err(|error| failed(error.to_string()))
}

/// Six decimals at most: a mean has no more, and `0.1 + 0.2` should not show.
fn rounded(value: f64) -> String {
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
