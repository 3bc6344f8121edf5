//! `cargo xtask chaos`: real faults against the release executables, and a table of what held.

use anyhow::Result;

use crate::compile;
use crate::system::{System, run};

/// Builds the executables, unless `args` name some or start none, and the harness; hands `args` to it.
///
/// # Errors
/// When something does not compile, or a promise was missed.
pub fn chaos(system: &System, args: &[String]) -> Result<()> {
    let needs_none = |arg: &String| {
        matches!(arg.as_str(), "--bin-dir" | "--list" | "--help" | "-h") || arg.starts_with("--bin-dir=")
    };
    if !args.iter().any(needs_none) {
        compile::release(system)?;
    }
    let mut harness = system.cargo(&["run", "--quiet", "-p", "lockstep-chaos", "--"]);
    harness.args(args);
    run(&mut harness)
}
