//! Jobs on a real Slurm of two nodes, where its packages are installed; more of it is `cargo xtask slurm`.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use lockstep_launchers::slurm::{Options, run};

/// Shorter than the runs of `cargo xtask slurm`.
const STEPS: u64 = 300;

#[test]
fn jobs_end_requeue_and_lose_tasks_as_the_scripts_promise() {
    let is_there =
        |program: &str, flag: &str| Command::new(program).arg(flag).output().is_ok_and(|it| it.status.success());
    if !(is_there("slurmctld", "-V") && is_there("munged", "--version")) {
        assert!(std::env::var_os("CI").is_none(), "slurm-wlm and munge are not installed");
        eprintln!("left out: slurm-wlm and munge are not installed");
        return;
    }
    let bin_dir = Path::new(env!("CARGO_BIN_EXE_lockstep")).parent().unwrap().to_owned();
    let table = run(&Options { bin_dir, dir: None, only: Vec::new(), steps: STEPS }).unwrap();
    eprintln!("{}", table.markdown());
    assert!(table.misses().is_empty(), "{}", table.markdown());
}
