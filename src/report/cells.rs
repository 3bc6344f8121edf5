//! What stands in the cells of a table, the same in every format. Errors are printed in per cent, with two decimals:
//! one image of a test set of 10,000.

use super::course::departures;
use super::model::{Row, Stats};

/// A row as text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cells {
    /// What the table calls it.
    pub label: String,
    /// Seeds with a number, of how many: `5`, `2 of 5`.
    pub seeds: String,
    /// Mean over seeds; `None` without any number.
    pub mean: Option<String>,
    /// Their standard deviation; `None` of one.
    pub sd: Option<String>,
    /// What stands in place of a mean.
    pub status: Option<String>,
    /// Why seeds have no number, where others have.
    pub remarks: Vec<String>,
    /// Figure of the Torch7 project.
    pub seed_figure: Figure,
    /// Figure of the paper.
    pub paper_figure: Figure,
    /// In what the row's schedule is another than that of the figures; empty where there are none.
    pub departures: Vec<String>,
}

/// A published figure and what ours differs from it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figure {
    /// As published; `None` where nothing was.
    pub value: Option<String>,
    /// Ours minus it, in points; or why there is no difference.
    pub difference: Option<String>,
}

/// In place of a number, when runs have none for different reasons.
const MIXED: &str = "not finished";

/// In place of a difference between figures that must not be compared.
pub const OTHER_SCHEDULE: &str = "other schedule";

impl Cells {
    /// Of a row.
    pub fn of(row: &Row) -> Self {
        let stats = row.stats();
        let has_figures = row.reference.seed_test_error.is_some() || row.reference.paper_test_error.is_some();
        let departures = if has_figures { departures(&row.recipe) } else { Vec::new() };
        let figure = |published: Option<f64>| Figure {
            value: published.map(percent),
            difference: published.and_then(|published| match stats {
                _ if !departures.is_empty() => Some(OTHER_SCHEDULE.to_owned()),
                Some(stats) => Some(points(stats.mean - published)),
                None => None,
            }),
        };
        let mut remarks: Vec<String> =
            row.runs.iter().filter_map(|run| Some(format!("seed {}: {}", run.seed, run.remark()?))).collect();
        let status = stats.is_none().then(|| status(row));
        if status.as_deref().is_some_and(|status| status != MIXED) {
            // Said in the cell already.
            remarks.clear();
        }
        Self {
            label: row.label.clone(),
            seeds: match stats.map_or(0, |stats| stats.num) {
                num if num == row.runs.len() => num.to_string(),
                num => format!("{num} of {}", row.runs.len()),
            },
            mean: stats.map(|stats| percent(stats.mean)),
            sd: stats.and_then(|stats| stats.sd).map(percent),
            status,
            remarks,
            seed_figure: figure(row.reference.seed_test_error),
            paper_figure: figure(row.reference.paper_test_error),
            departures,
        }
    }

    /// `8.29 ± 0.12`, or what stands in its place.
    pub fn error(&self) -> String {
        match (&self.mean, &self.sd, &self.status) {
            (Some(mean), Some(sd), _) => format!("{mean} ± {sd}"),
            (Some(mean), None, _) => mean.clone(),
            (None, _, status) => status.clone().unwrap_or_default(),
        }
    }
}

/// Which columns a table needs: without any published figure none for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Some row has a figure of the Torch7 project.
    pub seed: bool,
    /// Some row has a figure of the paper.
    pub paper: bool,
}

impl Columns {
    /// Of a table's rows.
    pub fn of(rows: &[Row]) -> Self {
        Self {
            seed: rows.iter().any(|row| row.reference.seed_test_error.is_some()),
            paper: rows.iter().any(|row| row.reference.paper_test_error.is_some()),
        }
    }
}

/// The same state of all runs in a word; else only that there is no number.
fn status(row: &Row) -> String {
    let mut remarks: Vec<String> = row.runs.iter().filter_map(super::model::Run::remark).collect();
    remarks.dedup();
    match remarks.as_slice() {
        [] => "not run".to_owned(),
        [remark] => remark.clone(),
        _ => MIXED.to_owned(),
    }
}

/// A fraction in per cent.
pub fn percent(fraction: f64) -> String {
    format!("{:.2}", fraction * 100.0)
}

/// A difference of fractions in points, with its sign.
fn points(difference: f64) -> String {
    let text = format!("{:.2}", difference.abs() * 100.0);
    match difference {
        _ if text == "0.00" => text,
        difference if difference < 0.0 => format!("−{text}"),
        _ => format!("+{text}"),
    }
}

/// Statistics as a sentence for the terminal.
pub fn summary(stats: Option<Stats>, cells: &Cells) -> String {
    match stats {
        Some(stats) if stats.num == 1 => format!("{} %, one seed", cells.error()),
        Some(stats) => format!("{} %, {} seeds", cells.error(), stats.num),
        None => cells.error(),
    }
}
