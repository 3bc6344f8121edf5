//! `cargo xtask demo`: a run to look at, without a download of data.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use crate::compile;
use crate::system::{System, run};

/// Builds, trains the recipe `demo` on two workers, and prints the final test error.
///
/// # Errors
/// When it cannot be built or the run does not finish.
pub fn demo(system: &System) -> Result<()> {
    compile::release(system)?;
    let mut lockstep = Command::new(system.root.join("target/release/lockstep"));
    lockstep.current_dir(&system.root).args(["train", "demo", "--workers", "2"]);
    run(&mut lockstep)?;
    let csv = system.root.join("runs/demo/latest/epochs.csv");
    let text = fs::read_to_string(&csv).with_context(|| format!("cannot read {}", csv.display()))?;
    let error = last(&text, "test_error").with_context(|| format!("{} holds no test error", csv.display()))?;
    println!("final test error: {error}");
    Ok(())
}

/// The last value in a column.
fn last(csv: &str, column: &str) -> Option<String> {
    let mut lines = csv.lines();
    let index = lines.next()?.split(',').position(|name| name == column)?;
    let mut values = lines.filter_map(|line| line.split(',').nth(index));
    values.rfind(|value| !value.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_filled_value_of_a_column_counts() {
        let csv = "epoch,train_error,test_error\n0,,0.9\n1,0.5,0.25\n2,0.4,\n";
        assert_eq!(last(csv, "test_error").as_deref(), Some("0.25"));
        assert_eq!(last(csv, "loss"), None);
    }
}
