//! How the runs of a sweep share this machine: as told, one a device, or as is fastest.

use std::path::PathBuf;

use super::measure::{Bench, best, candidates};
use super::plan::Run;
use super::show::Show;
use super::stock::write_recipe;
use crate::failure::Failure;

/// How runs share this machine.
#[derive(Clone, Debug)]
pub struct Sharing {
    /// Runs at once; `None`: measured on CPUs, one a device where several are named.
    pub jobs: Option<usize>,
    /// Threads of each; `None`: cores ÷ runs at once.
    pub threads: Option<usize>,
    /// Given to runs in turn; never empty.
    pub devices: Vec<String>,
}

/// Runs at once, and threads of each; measured with the first run.
pub async fn share(
    first: Option<&Run>,
    num_runs: usize,
    sharing: &Sharing,
    worker: PathBuf,
    show: &Show,
) -> Result<(usize, usize), Failure> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let is_cpu = sharing.devices.iter().all(|device| device == "cpu");
    let jobs = match (sharing.jobs, sharing.threads, first) {
        (Some(jobs), ..) => jobs,
        _ if sharing.devices.len() > 1 || !is_cpu => sharing.devices.len(),
        (None, Some(threads), _) => cores / threads,
        (None, None, Some(first)) => {
            let bench = Bench { program: worker, recipe: write_recipe(first)? };
            measure(&bench, cores, num_runs, show).await
        }
        (None, None, None) => 1,
    };
    let jobs = jobs.min(num_runs).max(1);
    Ok((jobs, sharing.threads.unwrap_or((cores / jobs).max(1))))
}

/// The fastest number of runs at once; 1 when it cannot be measured.
async fn measure(bench: &Bench, cores: usize, num_runs: usize, show: &Show) -> usize {
    let ways = candidates(cores, num_runs);
    if ways.len() == 1 {
        return ways[0];
    }
    let mut measured = Vec::new();
    for jobs in ways {
        match bench.measure(jobs, cores).await {
            Ok(way) => measured.push(way),
            Err(error) => {
                show.note(&format!("cannot measure {jobs} runs at once: {error}"));
                break;
            }
        }
    }
    let jobs = best(&measured);
    show.measured(&measured, jobs);
    jobs
}
