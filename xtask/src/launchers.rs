//! `cargo xtask slurm`, `cargo xtask docker`: real launchers on this machine, and a table of what held.

use anyhow::Result;

use crate::compile;
use crate::system::{System, run};

/// A Slurm of two nodes, and jobs by the scripts in deploy/slurm.
///
/// # Errors
/// When something is missing or does not compile, or a promise was missed.
pub fn slurm(system: &System, args: &[String]) -> Result<()> {
    packages_for_slurm(system)?;
    launch(system, "slurm", args)
}

/// Slurm and munge, as Debian has them.
///
/// # Errors
/// When they are missing: with their names.
pub fn packages_for_slurm(system: &System) -> Result<()> {
    let packages = ["slurm-wlm", "munge"];
    system.need("slurmctld", &["-V"], &packages)?;
    system.need("munged", &["--version"], &packages)
}

/// Both images of deploy/docker, and a run in containers.
///
/// # Errors
/// When something is missing or does not compile, or a promise was missed.
pub fn docker(system: &System, args: &[String]) -> Result<()> {
    system.need("/usr/bin/docker", &["--version"], &["docker.io", "iptables"])?;
    system.need("debootstrap", &["--version"], &["debootstrap"])?;
    launch(system, "docker", args)
}

fn launch(system: &System, launcher: &str, args: &[String]) -> Result<()> {
    let needs_none =
        |arg: &String| matches!(arg.as_str(), "--bin-dir" | "--help" | "-h") || arg.starts_with("--bin-dir=");
    if !args.iter().any(needs_none) {
        compile::release(system)?;
    }
    let mut harness = system.cargo(&["run", "--quiet", "-p", "lockstep-launchers", "--", launcher]);
    harness.args(args);
    run(&mut harness)
}
