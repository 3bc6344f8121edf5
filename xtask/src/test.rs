//! `cargo xtask test`: what CI runs, in the order in which it is cheapest to fail.

use std::time::Instant;

use anyhow::Result;

use crate::system::{System, in_ci, output, run};
use crate::{check, compile, kernels, launchers, nccl, tools};

/// Format, checks, lints, dependencies, tests. The last lines are cargo's own about the tests.
///
/// # Errors
/// The first of these that fails.
pub fn run_all(system: &System) -> Result<()> {
    let started = Instant::now();
    run(&mut system.cargo(&["fmt", "--all", "--check"]))?;
    compile::prepare(system)?;
    check::run(system)?;
    cargo_deny(system)?;
    kernels::verify(system)?;
    run(&mut system.cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    // Tests of the command start `lockstep-worker` from beside it, which `cargo test` alone need not have built.
    run(&mut system.cargo(&["build", "--workspace", "--bins"]))?;
    if in_ci() {
        launchers::packages_for_slurm(system)?; // elsewhere its test says that it was left out
    }
    eprintln!("checks and build: {:.0} s", started.elapsed().as_secs_f64());
    let mut tests = system.cargo(&["test", "--workspace", "--no-fail-fast"]);
    match tools::provide(system) {
        Ok(folder) => drop(tests.env("LOCKSTEP_DEPLOY_TOOLS", folder)),
        Err(error) if in_ci() => return Err(error),
        Err(error) => eprintln!("tests of deploy/ will skip: {error:#}"),
    }
    match nccl::provide(system) {
        Ok(_) => {}
        Err(error) if in_ci() => return Err(error),
        Err(error) => eprintln!("tests of the real NCCL will skip: {error:#}"),
    }
    run(&mut tests)
}

/// Licences, sources and bans, where cargo-deny is installed; its advisories need a network and stay out.
fn cargo_deny(system: &System) -> Result<()> {
    if output(&mut system.cargo(&["deny", "--version"])).is_err() {
        eprintln!("cargo-deny is not installed, so deny.toml was not checked (`cargo install cargo-deny`)");
        return Ok(());
    }
    run(&mut system.cargo(&["deny", "check", "bans", "licenses", "sources"]))
}
