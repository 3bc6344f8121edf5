//! What a finished run says at the end.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::progress::duration;
use crate::failure::Failure;
use crate::{audit, output};

#[derive(Serialize)]
struct Summary<'a> {
    kind: &'static str,
    run_dir: &'a Path,
    step: u64,
    epoch: u64,
    test_error: Option<f64>,
    images_per_s: Option<f64>,
    seconds: f64,
    state_sha256: Option<String>,
}

/// Prints it, from what is durable.
///
/// # Errors
/// When the run directory cannot be read.
pub fn print(run: &Path, state_sha256: Option<String>, elapsed: Duration, json: bool) -> Result<(), Failure> {
    let epochs = audit::open(run)?.epochs()?;
    let last = epochs.last();
    let summary = Summary {
        kind: "finished",
        run_dir: run,
        step: last.map_or(0, |row| row.step.0),
        epoch: last.map_or(0, |row| row.epoch.0),
        test_error: last.and_then(|row| row.test_error),
        images_per_s: last.and_then(|row| row.images_per_s),
        seconds: elapsed.as_secs_f64(),
        state_sha256,
    };
    if json {
        output::json(&summary);
        return Ok(());
    }
    let shown = run.display();
    output::line(format!("done: {} steps, {} epochs in {}", summary.step, summary.epoch, duration(summary.seconds)));
    if let Some(error) = summary.test_error {
        output::line(format!("test error   {error:.4}"));
    }
    if let Some(rate) = summary.images_per_s {
        output::line(format!("images/s     {rate:.0}"));
    }
    if let Some(hash) = &summary.state_sha256 {
        output::line(format!("state        {hash}"));
    }
    output::line(format!("run          {shown}"));
    output::line(format!("audit it     lockstep audit {shown}"));
    output::line(format!(
        "go on        lockstep train {shown}/recipe.toml --resume --run-dir {shown} --set train.epochs=N"
    ));
    Ok(())
}
