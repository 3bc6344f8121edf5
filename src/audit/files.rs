//! `metrics.jsonl` and `epochs.csv` against the database: the same steps and epochs, none doubled, none lost.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use lockstep_coordinator::store::{EpochRow, RunReader, StepRow};
use lockstep_proto::ids::Step;
use serde_json::Value;

use super::Report;
use crate::failure::Failure;

/// Columns of `epochs.csv`.
pub(super) const EPOCH_COLUMNS: [&str; 14] = [
    "epoch",
    "step",
    "images",
    "lr",
    "train_loss",
    "train_error",
    "test_loss",
    "test_error",
    "test_error_top5",
    "seconds",
    "images_per_s",
    "world_size",
    "skipped",
    "test_skipped",
];

/// Checks both files.
pub fn check(run: &Path, reader: &RunReader, steps: &[StepRow], report: &mut Report) -> Result<(), Failure> {
    let read = |name: &str| {
        let path = run.join(name);
        fs::read_to_string(&path).map_err(|error| Failure::unreadable(&path, error))
    };
    metrics(&read("metrics.jsonl")?, steps, report);
    let epochs = reader.epochs()?;
    epoch_rows(&epochs, steps, report);
    epochs_csv(&read("epochs.csv")?, &epochs, report);
    Ok(())
}

fn metrics(text: &str, steps: &[StepRow], report: &mut Report) {
    let mut expected = steps.iter().peekable();
    let mut last = Step(0);
    for (index, line) in text.lines().enumerate() {
        let at = format!("metrics.jsonl: line {}", index + 1);
        let Ok(value) = serde_json::from_str::<Value>(line) else {
            report.findings.push(format!("{at}: not JSON"));
            continue;
        };
        let Some(step) = value["step"].as_u64().map(Step) else {
            report.findings.push(format!("{at}: no step"));
            continue;
        };
        if step <= last {
            report.findings.push(format!("{at}: step {step} comes after step {last}: doubled or out of order"));
            continue;
        }
        last = step;
        while let Some(lost) = expected.next_if(|row| row.step < step) {
            report.findings.push(format!("metrics.jsonl: step {} is missing", lost.step));
        }
        match expected.next_if(|row| row.step == step) {
            Some(row) => compare(&at, &value, row, report),
            None => report.findings.push(format!("{at}: step {step} is not in `steps`")),
        }
    }
    for lost in expected {
        // The ledger is written first.
        let how = "at the end: if the coordinator was killed, --resume writes it";
        report.findings.push(format!("metrics.jsonl: step {} is missing {how}", lost.step));
    }
}

fn compare(at: &str, value: &Value, row: &StepRow, report: &mut Report) {
    let counts = [
        ("epoch", row.epoch.0),
        ("generation", row.generation.0),
        ("world_size", u64::from(row.world_size)),
        ("samples", row.samples),
    ];
    let fractions = [("lr", row.lr), ("loss", row.loss), ("error", row.error)];
    let mut differ = |key: &str, wanted: String| {
        report.findings.push(format!("{at}: step {}: {key} is {}, and `steps` has {wanted}", row.step, value[key]));
    };
    for (key, wanted) in counts {
        if value[key].as_u64() != Some(wanted) {
            differ(key, wanted.to_string());
        }
    }
    for (key, wanted) in fractions {
        if value[key].as_f64() != Some(wanted).filter(|wanted| wanted.is_finite()) {
            differ(key, format!("{wanted:?}"));
        }
    }
}

/// `epochs` counts images over the whole run: that many samples are in the steps up to its own.
fn epoch_rows(epochs: &[EpochRow], steps: &[StepRow], report: &mut Report) {
    for row in epochs {
        let total: u64 = steps.iter().take_while(|at| at.step <= row.step).map(|at| at.samples).sum();
        if total != row.images {
            let (epoch, images, step) = (row.epoch, row.images, row.step);
            report
                .findings
                .push(format!("epochs: epoch {epoch}: {images} images, and steps up to {step} have {total}"));
        }
    }
    // The epoch that is being trained gets its row when it ends.
    let running = steps.last().map(|last| last.epoch);
    let trained: BTreeSet<_> = steps.iter().map(|row| row.epoch).filter(|epoch| Some(*epoch) != running).collect();
    for epoch in trained.into_iter().filter(|epoch| epochs.iter().all(|row| row.epoch != *epoch)) {
        report.findings.push(format!("epochs: epoch {epoch} is missing"));
    }
}

/// The fields of a row, in the order of the columns.
pub(super) fn fields(row: &EpochRow) -> [Option<f64>; 14] {
    [
        Some(row.epoch.0 as f64),
        Some(row.step.0 as f64),
        Some(row.images as f64),
        row.lr,
        row.train_loss,
        row.train_error,
        row.test_loss,
        row.test_error,
        row.test_error_top5,
        Some(row.seconds),
        row.images_per_s,
        Some(f64::from(row.world_size)),
        Some(row.skipped as f64),
        Some(row.test_skipped as f64),
    ]
}

fn epochs_csv(text: &str, epochs: &[EpochRow], report: &mut Report) {
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    let before_2 = EPOCH_COLUMNS[..EPOCH_COLUMNS.len() - 2].join(",");
    if header != EPOCH_COLUMNS.join(",") && header != before_2 {
        report.findings.push(format!("epochs.csv: line 1: columns are `{header}`, not `{}`", EPOCH_COLUMNS.join(",")));
        return;
    }
    let mut expected = epochs.iter();
    for (index, line) in lines.enumerate() {
        let at = format!("epochs.csv: line {}", index + 2);
        let Some(row) = expected.next() else {
            report.findings.push(format!("{at}: `{line}` is not in `epochs`"));
            continue;
        };
        let texts: Vec<&str> = line.split(',').collect();
        let num_columns = header.split(',').count();
        if texts.len() != num_columns {
            report.findings.push(format!("{at}: {} fields, not {num_columns}", texts.len()));
            continue;
        }
        for ((column, field), wanted) in EPOCH_COLUMNS.iter().zip(texts).zip(fields(row)) {
            let found = field.parse::<f64>().ok();
            if found != wanted || (found.is_none() && !field.is_empty()) {
                let wanted = wanted.map_or("nothing".into(), |value| value.to_string());
                report.findings.push(format!("{at}: {column} is `{field}`, and `epochs` has {wanted}"));
            }
        }
    }
    for row in expected {
        report.findings.push(format!("epochs.csv: epoch {} is missing", row.epoch));
    }
}
