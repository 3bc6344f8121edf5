//! The executables, and the run that is tried everywhere: of a few minutes' work on two cores, the same bits wherever.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lockstep_chaos::{Course, Watch};

use crate::wait::until;

/// No step takes longer than this, however slow the machine.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// Steps of an epoch of the run: 2,398 samples in batches of 24.
pub const EPOCH: u64 = 100;
/// The recipe of the run.
pub const RECIPE: &str = "demo";

/// Keys of the run: steps of some milliseconds, chunks of 8, so that four workers leave one without work at times.
const KEYS: [&str; 13] = [
    "data.train_size=2398",
    "data.test_size=40",
    "model.n=1",
    "model.width=8",
    "schedule.kind=constant",
    "train.batch=24",
    "train.chunk=8",
    "train.epochs=1000",
    "train.seed=7",
    "checkpoint.every_steps=50",
    "checkpoint.every_epochs=0",
    "elastic.join_timeout_s=120",
    "log.tensorboard=false",
];

/// Arguments that make the recipe the run, ended after so many steps.
pub fn sets(steps: u64) -> Vec<String> {
    let last = format!("train.max_steps={steps}");
    KEYS.iter().map(|key| (*key).to_owned()).chain([last]).flat_map(|set| ["--set".to_owned(), set]).collect()
}

/// The executables.
#[derive(Clone, Debug)]
pub struct Program {
    /// `lockstep`; the worker lies beside it.
    pub lockstep: PathBuf,
}

impl Program {
    /// In this folder.
    ///
    /// # Errors
    /// One is not there.
    pub fn new(dir: &Path) -> Result<Self> {
        for name in ["lockstep", "lockstep-worker"] {
            ensure!(dir.join(name).is_file(), "no {name} in {}: build it, or say --bin-dir", dir.display());
        }
        let dir = std::fs::canonicalize(dir).with_context(|| dir.display().to_string())?;
        Ok(Self { lockstep: dir.join("lockstep") })
    }

    /// The command, deaf to the environment of whoever calls.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.lockstep);
        forget(&mut command, "LOCKSTEP_");
        command.args(args);
        command
    }

    /// The run as one process on this machine makes it.
    ///
    /// # Errors
    /// It does not end well.
    pub fn alone(&self, steps: u64, dir: &Path) -> Result<Course> {
        let mut command = self.command(&["train", RECIPE, "--workers", "1", "--threads", "1", "--run-dir"]);
        said(command.arg(dir).args(sets(steps)))?;
        Course::read(dir)
    }

    /// Audits a run.
    ///
    /// # Errors
    /// A finding.
    pub fn audit(&self, run: &Path) -> Result<()> {
        said(self.command(&["audit"]).arg(run)).map(drop)
    }
}

/// Removes variables by the start of their names.
pub fn forget(command: &mut Command, prefix: &str) {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with(prefix)) {
        command.env_remove(name);
    }
}

/// What a command printed.
///
/// # Errors
/// It does not succeed: with what it said.
pub fn said(command: &mut Command) -> Result<String> {
    let text = format!("{} {:?}", command.get_program().display(), command.get_args().collect::<Vec<_>>());
    let output = command.output().with_context(|| format!("cannot start {text}"))?;
    let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    if !output.status.success() {
        bail!("{text}: {}: {}{}", output.status, stdout.trim_end(), stderr.trim_end());
    }
    Ok(stdout)
}

/// Waits until a run has committed a step that `wanted` likes, and says which. Meanwhile asks, less often, whether it is
/// still `alive`.
///
/// # Errors
/// Not in time, or it is no longer alive.
pub fn reached(run: &Path, wanted: impl Fn(u64) -> bool, alive: impl Fn() -> Result<()>) -> Result<u64> {
    let mut looks = 0;
    until("the run gets on", PATIENCE, || {
        let step = Watch::open(run).and_then(|watch| watch.step()).unwrap_or(0);
        looks += 1;
        if step > 0 && wanted(step) {
            return Ok(Some(step));
        }
        if looks % 20 == 0 {
            alive().with_context(|| format!("after step {step}"))?;
        }
        Ok(None)
    })
}
