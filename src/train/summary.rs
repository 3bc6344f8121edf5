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

impl<'a> Summary<'a> {
    /// From what is durable.
    fn new(run: &'a Path, state_sha256: Option<String>, elapsed: Duration) -> Result<Self, Failure> {
        let epochs = audit::open(run)?.epochs()?;
        let last = epochs.last();
        Ok(Summary {
            kind: "finished",
            run_dir: run,
            step: last.map_or(0, |row| row.step.0),
            epoch: last.map_or(0, |row| row.epoch.0),
            test_error: last.and_then(|row| row.test_error),
            images_per_s: last.and_then(|row| row.images_per_s),
            seconds: elapsed.as_secs_f64(),
            state_sha256,
        })
    }
}

/// Prints it for programs.
///
/// # Errors
/// When the run directory cannot be read.
pub fn print_json(run: &Path, state_sha256: Option<String>, elapsed: Duration) -> Result<(), Failure> {
    output::json(&Summary::new(run, state_sha256, elapsed)?);
    Ok(())
}

/// Prints it for people; with `can_grow`, how to train for more epochs.
///
/// # Errors
/// When the run directory cannot be read.
pub fn print(run: &Path, state_sha256: Option<String>, elapsed: Duration, can_grow: bool) -> Result<(), Failure> {
    let summary = Summary::new(run, state_sha256, elapsed)?;
    let shown = quoted(run);
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
    if can_grow {
        let recipe = quoted(&run.join("recipe.toml"));
        output::line(format!("go on        lockstep train {recipe} --resume --run-dir {shown} --set train.epochs=N"));
    }
    Ok(())
}

/// As a shell takes it.
pub fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+:=@%,".contains(c);
    if text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_shown_as_a_shell_takes_it() {
        assert_eq!(quoted(Path::new("runs/demo/20260101T000000Z")), "runs/demo/20260101T000000Z");
        assert_eq!(quoted(Path::new("my run's")), r"'my run'\''s'");
    }
}
