//! How many runs at once: measured, not guessed. A net of a few layers does not fill many cores, so two runs of half the
//! cores each may do more images a second than one run of all.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tokio::process::Command;
use tokio::task::JoinSet;

/// Measured steps, and unmeasured ones before.
const STEPS: [&str; 2] = ["8", "2"];
/// Nobody waits longer for one way; a net that needs more has its own reasons.
const DEADLINE: Duration = Duration::from_secs(300);
/// So much faster must more runs at once be: they take more memory, and each figure comes later.
const MARGIN: f64 = 1.03;
/// Would change what is measured.
const FOREIGN: [&str; 2] = ["LOCKSTEP_BATCH", "LOCKSTEP_PRECISION"];

/// What is measured.
#[derive(Clone, Debug)]
pub struct Bench {
    /// `lockstep-worker`
    pub program: PathBuf,
    /// A run that is to be done.
    pub recipe: PathBuf,
}

/// One way to share the cores.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// Runs at once.
    pub jobs: usize,
    /// Threads of each.
    pub threads: usize,
    /// Of all together.
    pub images_per_s: f64,
}

/// Ways worth trying: 1, 2, 4, … runs at once, and one a core; no more than there are.
pub fn candidates(cores: usize, num_runs: usize) -> Vec<usize> {
    let most = cores.min(num_runs).max(1);
    let mut jobs: Vec<usize> =
        std::iter::successors(Some(1), |jobs| Some(jobs * 2)).take_while(|jobs| *jobs < most).collect();
    jobs.push(most);
    jobs
}

/// The fastest; of nearly equal ones that with the fewest runs at once.
pub fn best(measured: &[Measured]) -> usize {
    let fastest = measured.iter().map(|way| way.images_per_s).fold(0.0, f64::max);
    measured.iter().find(|way| way.images_per_s * MARGIN >= fastest).map_or(1, |way| way.jobs)
}

impl Bench {
    /// Measures `jobs` runs at once on `cores` cores.
    ///
    /// # Errors
    /// What the measurement said when it failed.
    pub async fn measure(&self, jobs: usize, cores: usize) -> Result<Measured, String> {
        let threads = (cores / jobs).max(1);
        let mut benches = JoinSet::new();
        for _ in 0..jobs {
            benches.spawn(one(self.command(threads)));
        }
        let all = async {
            let mut sum = 0.0;
            while let Some(rate) = benches.join_next().await {
                sum += rate.map_err(|error| error.to_string())??;
            }
            Ok(Measured { jobs, threads, images_per_s: sum })
        };
        let late = || Err(format!("no figure within {} s", DEADLINE.as_secs()));
        tokio::time::timeout(DEADLINE, all).await.unwrap_or_else(|_| late())
    }

    fn command(&self, threads: usize) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["bench", "step"]).arg(&self.recipe);
        command.args(["--threads", &threads.to_string(), "--steps", STEPS[0], "--warm-up", STEPS[1]]);
        FOREIGN.iter().for_each(|name| {
            command.env_remove(name);
        });
        // As trainings have it; a group of its own, so that Ctrl-C is handled here alone.
        command.env("OMP_NUM_THREADS", "1").stdin(Stdio::null()).process_group(0).kill_on_drop(true);
        command
    }
}

async fn one(mut command: Command) -> Result<f64, String> {
    let output = command.output().await.map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout);
    let line: Value = said.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
    line["images_per_s"].as_f64().ok_or_else(|| {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let error = said.lines().rev().find_map(|line| line.strip_prefix("error: ").map(str::to_owned));
        error.unwrap_or_else(|| format!("lockstep-worker bench ended with {}", output.status))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_to_share_cores_are_few_and_none_is_idle() {
        assert_eq!(candidates(2, 100), [1, 2]);
        assert_eq!(candidates(12, 100), [1, 2, 4, 8, 12]);
        assert_eq!(candidates(16, 3), [1, 2, 3]);
        assert_eq!(candidates(1, 9), [1]);
        assert_eq!(candidates(8, 0), [1]);
    }

    #[test]
    fn the_fastest_way_is_taken_and_of_equals_the_simplest() {
        let measured = |rates: &[f64]| -> Vec<Measured> {
            (0..).zip(rates).map(|(i, &images_per_s)| Measured { jobs: 1 << i, threads: 1, images_per_s }).collect()
        };
        assert_eq!(best(&measured(&[100.0, 130.0, 120.0])), 2);
        assert_eq!(best(&measured(&[100.0, 102.0])), 1);
        assert_eq!(best(&measured(&[])), 1);
    }
}
