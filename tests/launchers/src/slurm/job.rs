//! A batch job: submitted, looked at, signalled.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::cluster::Cluster;
use crate::program::{reached, said};
use crate::wait::until;

/// What is submitted.
#[derive(Clone, Debug, Default)]
pub struct Order<'a> {
    /// Options of sbatch.
    pub options: &'a [&'a str],
    /// Variables that the script's header documents.
    pub variables: Vec<(&'a str, String)>,
}

/// A job of a cluster.
pub struct Job<'a> {
    cluster: &'a Cluster,
    /// As Slurm counts.
    pub id: u32,
}

/// What `scontrol show job` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown(BTreeMap<String, String>);

impl Shown {
    fn parse(line: &str) -> Self {
        let pairs = line.split_whitespace().filter_map(|word| word.split_once('='));
        Self(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
    }

    fn value(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }

    /// `PENDING`, `RUNNING`, `COMPLETED`, …
    pub fn state(&self) -> &str {
        self.value("JobState")
    }

    /// How often it went back into the queue.
    pub fn restarts(&self) -> u32 {
        self.value("Restarts").parse().unwrap_or(0)
    }

    /// The script's exit code.
    pub fn code(&self) -> u32 {
        self.value("ExitCode").split(':').next().and_then(|code| code.parse().ok()).unwrap_or(u32::MAX)
    }

    /// Whether it has ended, for good.
    pub fn is_over(&self) -> bool {
        matches!(
            self.state(),
            "COMPLETED" | "FAILED" | "CANCELLED" | "TIMEOUT" | "NODE_FAIL" | "DEADLINE" | "OUT_OF_MEMORY"
        )
    }
}

impl<'a> Job<'a> {
    /// `VARIABLES sbatch OPTIONS SCRIPT`
    ///
    /// # Errors
    /// Slurm refuses it.
    pub fn submit(cluster: &'a Cluster, script: &Path, order: Order<'_>) -> Result<Self> {
        let mut command = cluster.command("sbatch", &["--parsable"]);
        command.args(order.options).arg(script).envs(order.variables);
        let id = said(&mut command)?;
        let id = id.trim().parse().with_context(|| format!("sbatch said {id:?}"))?;
        Ok(Self { cluster, id })
    }

    /// As it is now.
    ///
    /// # Errors
    /// Slurm does not answer.
    pub fn show(&self) -> Result<Shown> {
        let line = said(&mut self.cluster.command("scontrol", &["--oneliner", "show", "job", &self.id.to_string()]))?;
        Ok(Shown::parse(&line))
    }

    /// Waits until it is as `wanted`.
    ///
    /// # Errors
    /// Not in time, or it ended otherwise: with what it said.
    pub fn wait(&self, what: &str, within: Duration, wanted: impl Fn(&Shown) -> bool) -> Result<Shown> {
        let found = until(&format!("job {}: {what}", self.id), within, || {
            let shown = self.show()?;
            if wanted(&shown) {
                return Ok(Some(shown));
            }
            ensure!(!shown.is_over(), "job {} ended {} with {}, not: {what}", self.id, shown.state(), shown.code());
            Ok(None)
        });
        found.with_context(|| format!("its log ends:\n{}", self.last_words()))
    }

    /// Waits until its run has committed a step that `wanted` likes, and says which.
    ///
    /// # Errors
    /// Not in time, or the job ended before.
    pub fn reaches(&self, run: &Path, wanted: impl Fn(u64) -> bool) -> Result<u64> {
        let alive = || {
            let shown = self.show()?;
            ensure!(!shown.is_over(), "job {} ended {} with {}", self.id, shown.state(), shown.code());
            Ok(())
        };
        let found = reached(run, wanted, alive);
        found.with_context(|| format!("its log ends:\n{}", self.last_words()))
    }

    /// Waits for its good end.
    ///
    /// # Errors
    /// Another end, or none in time.
    pub fn complete(&self, within: Duration) -> Result<Shown> {
        self.wait("COMPLETED", within, |shown| shown.state() == "COMPLETED")
    }

    /// `scancel OPTIONS`
    ///
    /// # Errors
    /// Slurm refuses it.
    pub fn cancel(&self, options: &[&str]) -> Result<()> {
        said(self.cluster.command("scancel", options).arg(self.id.to_string())).map(drop)
    }

    /// What its script and tasks said.
    pub fn log(&self) -> String {
        let path = self.cluster.jobs().join(format!("lockstep-{}.log", self.id));
        fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    fn last_words(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// The run directory that the scripts take by themselves.
    pub fn run_dir(&self) -> PathBuf {
        self.cluster.jobs().join(format!("runs/lockstep-{}", self.id))
    }

    /// The file by which its tasks meet.
    pub fn token(&self) -> PathBuf {
        self.cluster.home().join(format!(".lockstep/{}.token", self.id))
    }

    /// The process of a task: its worker.
    ///
    /// # Errors
    /// There is none.
    pub fn worker(&self, task: u32) -> Result<u32> {
        let wanted = [format!("SLURM_JOB_ID={}", self.id), format!("SLURM_PROCID={task}")];
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            let variables = fs::read(entry.path().join("environ")).unwrap_or_default();
            let has =
                |wanted: &String| variables.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes());
            if name.trim() == "lockstep-worker" && wanted.iter().all(has) {
                return Ok(pid);
            }
        }
        bail!("job {} has no worker in task {task}", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_read_as_slurm_shows_it() {
        let line = "JobId=7 JobName=lockstep JobState=FAILED Reason=NonZeroExitCode Restarts=2 ExitCode=64:0 Comment=";
        let shown = Shown::parse(line);
        assert_eq!((shown.state(), shown.restarts(), shown.code()), ("FAILED", 2, 64));
        assert!(shown.is_over());
        assert!(!Shown::parse("JobState=PENDING Reason=BeginTime").is_over());
    }
}
