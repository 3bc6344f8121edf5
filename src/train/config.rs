//! Arguments, and the place that a launcher gave, made sense of.

use std::path::{Path, PathBuf};
use std::process::Command;

use lockstep_coordinator::{Bound, Coordinator, CoordinatorConfig, CoordinatorError, run_dir};
use lockstep_proto::exit::ExitCode;
use lockstep_proto::gpu;
use lockstep_proto::wire::TlsFiles;

use super::Args;
use crate::exec;
use crate::failure::Failure;
use crate::launch::{Meeting, Place};

/// Runs without a --run-dir go below it.
const RUNS: &str = "runs";

/// What is to be done.
pub struct Config {
    pub coordinator: CoordinatorConfig,
    pub json: bool,
    pub until_stdin_closes: bool,
    /// Executable of the worker processes of this machine.
    pub program: PathBuf,
    /// The devices of each of them.
    pub devices: Vec<String>,
    /// Compute threads of each replica.
    pub threads: u32,
}

impl Args {
    /// The recipe of the run to go on with, where one was named.
    pub fn kept(&self) -> Option<String> {
        let dir = self.run_dir.as_ref().filter(|_| self.resume)?;
        let path = dir.join("recipe.toml");
        path.is_file().then(|| path.to_string_lossy().into_owned())
    }
}

impl Config {
    pub fn new(args: Args, place: &Place) -> Result<Self, Failure> {
        let mut recipe = args.recipe.load_for(&args.devices, args.kept().as_deref())?;
        let devices = spread(&devices(&args.devices, place), args.workers, gpu::num_visible())?;
        let num_workers = devices.len() as u32;
        let replicas: u32 = devices.iter().map(|devices| devices.split(',').count() as u32).sum();
        if u64::from(replicas) > recipe.train.batch {
            let reason = format!(
                "{replicas} replicas are more than the {} samples of a batch: fewer --workers or --devices, or a larger \
                 train.batch",
                recipe.train.batch
            );
            return Err(Failure::new(ExitCode::Usage, reason));
        }
        if !place.is_shared() {
            // All workers are started here, so the run begins with all of them, whatever number an earlier part had.
            recipe.elastic.min_workers = num_workers;
        }
        let program = exec::worker_path()?;
        ask(&program, &devices)?;
        let link_latest = args.run_dir.is_none();
        let run_dir = match (args.run_dir, args.resume) {
            (Some(dir), _) => dir,
            (None, true) => run_dir::latest(Path::new(RUNS), &recipe.name)?,
            (None, false) => run_dir::fresh(Path::new(RUNS), &recipe.name),
        };
        let num_cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
        let num_cores = place.threads.unwrap_or(num_cores);
        let token = match &place.meeting {
            Meeting::ByTicket(_) => Some(args.token.filter(|token| !token.is_empty()).unwrap_or_else(new_token)),
            Meeting::At { .. } => args.token.filter(|token| !token.is_empty()),
            Meeting::Told | Meeting::Here => None, // loopback
        };
        let coordinator = CoordinatorConfig {
            recipe,
            run_dir,
            link_latest,
            resume: args.resume,
            listen: place.listen(),
            token,
            insecure: args.insecure,
            tls: TlsFiles::default(),
            http: None,
        };
        Ok(Self {
            coordinator,
            json: args.json,
            until_stdin_closes: args.until_stdin_closes,
            program,
            devices,
            threads: args.threads.unwrap_or((num_cores / replicas).max(1)),
        })
    }
}

/// The devices of a worker in this place: `cuda` is the GPU of the task's number on its host; where a task is to be
/// several processes, on CPUs it is one of so many replicas.
pub fn devices(asked: &str, place: &Place) -> String {
    match asked.trim() {
        "cuda" if place.is_shared() => format!("cuda:{}", place.local_task),
        "cpu" => vec!["cpu"; place.processes as usize].join(","),
        other => other.to_owned(),
    }
}

/// The devices of each worker process: GPUs one a process, unless one is shared on purpose.
///
/// # Errors
/// Numbers that do not fit (64).
pub fn spread(devices: &str, workers: Option<u32>, num_gpus: usize) -> Result<Vec<String>, Failure> {
    let names: Vec<String> = match devices.trim() {
        // Where there is none, the worker tells why.
        "all" => (0..num_gpus.max(1)).map(|ordinal| format!("cuda:{ordinal}")).collect(),
        list => list.split(',').map(|name| name.trim().to_owned()).collect(),
    };
    let is_gpu = |name: &String| name.starts_with("cuda");
    let asked = workers.map_or(1, |workers| workers as usize);
    if !names.iter().all(is_gpu) {
        return Ok(vec![devices.to_owned(); asked]);
    }
    match (workers, names.len()) {
        (Some(_), 1) => Ok(vec![names[0].clone(); asked]),
        (Some(_), count) if asked != count => {
            let reason = format!(
                "--workers {asked} and {count} GPUs: each GPU has a process of its own; leave --workers out, or name as \
                 many devices"
            );
            Err(Failure::new(ExitCode::Usage, reason))
        }
        _ => Ok(names),
    }
}

/// Whether workers can have these devices: they are asked before a run directory is made. Replicas on the CPU always can.
///
/// # Errors
/// What the worker says.
fn ask(program: &Path, devices: &[String]) -> Result<(), Failure> {
    for list in devices.iter().filter(|list| list.split(',').any(|name| name.trim() != "cpu")) {
        let asked = Command::new(program).args(["--log", "error", "doctor", "--check", list]).output();
        let asked = asked
            .map_err(|error| Failure::new(ExitCode::Config, format!("cannot start {}: {error}", program.display())))?;
        if !asked.status.success() {
            let said = String::from_utf8_lossy(&asked.stderr);
            let reason = said.trim().strip_prefix("error: ").unwrap_or(said.trim()).to_owned();
            let code = ExitCode::ALL.into_iter().find(|code| asked.status.code() == Some(code.code().into()));
            return Err(Failure::new(code.unwrap_or(ExitCode::Config), reason));
        }
    }
    Ok(())
}

/// Takes the address of the place; where tasks are told of it anyway, another one if it is taken.
pub async fn bind(config: CoordinatorConfig, place: &Place) -> Result<Bound, CoordinatorError> {
    match (Coordinator::bind(config.clone()).await, &place.meeting) {
        (Err(CoordinatorError::Listen { error, .. }), Meeting::ByTicket(_))
            if error.kind() == std::io::ErrorKind::AddrInUse =>
        {
            let mut any = config;
            any.listen.set_port(0);
            Coordinator::bind(any).await
        }
        (bound, _) => bound,
    }
}

/// 244 random bits.
fn new_token() -> String {
    [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()].map(|uuid| uuid.simple().to_string()).concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gpu_has_a_process_and_cpus_have_what_was_asked_for() {
        let spread = |devices, workers, gpus| spread(devices, workers, gpus).map_err(|failure| failure.reason);
        assert_eq!(spread("cpu", None, 0).unwrap(), ["cpu"]);
        assert_eq!(spread("cpu,cpu", Some(2), 4).unwrap(), ["cpu,cpu", "cpu,cpu"]);
        assert_eq!(spread("all", None, 3).unwrap(), ["cuda:0", "cuda:1", "cuda:2"]);
        assert_eq!(spread("all", None, 0).unwrap(), ["cuda:0"], "the worker tells why there is none");
        assert_eq!(spread("cuda:1, cuda:3", Some(2), 4).unwrap(), ["cuda:1", "cuda:3"]);
        assert_eq!(spread("cuda:0", Some(2), 1).unwrap(), ["cuda:0", "cuda:0"], "shared on purpose");
        assert!(spread("all", Some(2), 4).unwrap_err().contains("--workers 2 and 4 GPUs"));
    }
}
