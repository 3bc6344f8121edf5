//! `lockstep doctor`: what this installation has, and what it lacks.

use std::process::Command;

use lockstep_proto::exit::ExitCode;
use lockstep_proto::gpu;
use serde::{Deserialize, Serialize};

use crate::exec;
use crate::failure::Failure;
use crate::launch::{Place, Told, Vars};
use crate::output;

/// `lockstep doctor`
#[derive(clap::Args)]
pub struct Args {
    /// Print the result as JSON.
    #[arg(long, env = "LOCKSTEP_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    json: bool,
}

/// What was found.
#[derive(Serialize)]
struct Findings {
    version: &'static str,
    bf16: Option<&'static str>,
    cores: usize,
    /// GPUs that this process may open.
    gpus: usize,
    /// Bytes of `/dev/shm`.
    shm: Option<u64>,
    /// What a launcher said of this process.
    place: Option<String>,
    worker: Option<String>,
    worker_version: Option<String>,
    /// What the worker finds for GPUs.
    cuda: Option<Cuda>,
    warnings: Vec<String>,
    problem: Option<String>,
}

/// What `lockstep-worker doctor` prints.
#[derive(Deserialize, Serialize)]
struct Cuda {
    libtorch: String,
    libtorch_cuda: Part,
    driver: Part,
    nccl: Part,
    graphs: Part,
    devices: Vec<Device>,
    /// Pairs that cannot read each other's memory.
    far: Vec<(u32, u32)>,
}

/// One thing that is needed.
#[derive(Deserialize, Serialize)]
struct Part {
    ok: bool,
    says: String,
}

/// A GPU.
#[derive(Deserialize, Serialize)]
struct Device {
    name: String,
    model: String,
    capability: String,
    memory: u64,
}

/// Looks around and prints what it sees.
///
/// # Errors
/// When no worker can run here (78).
pub fn run(args: &Args) -> Result<(), Failure> {
    let mut found = Findings {
        version: env!("CARGO_PKG_VERSION"),
        bf16: bf16(),
        cores: std::thread::available_parallelism().map_or(1, Into::into),
        gpus: gpu::num_visible(),
        shm: shm(),
        place: None,
        worker: None,
        worker_version: None,
        cuda: None,
        warnings: Vec::new(),
        problem: None,
    };
    if found.bf16.is_none() {
        let warning = "this CPU has no bf16 instructions: precision = \"bf16\" is many times slower than fp32 here";
        found.warnings.push(warning.into());
    }
    if let Some(warning) = found.shm.and_then(small_shm) {
        found.warnings.push(warning);
    }
    match Place::find(&Vars::of_process(), Told::train(false)) {
        Ok(place) => {
            found.place = place.describe();
            found.warnings.extend(place.warnings);
        }
        Err(failure) => found.warnings.push(failure.reason),
    }
    match exec::worker_path() {
        Err(failure) => found.problem = Some(failure.reason),
        Ok(path) => {
            found.worker = Some(path.display().to_string());
            match Command::new(&path).arg("--version").output() {
                Ok(output) if output.status.success() => {
                    found.worker_version = Some(String::from_utf8_lossy(&output.stdout).trim().to_owned());
                    let output = Command::new(&path).args(["--log", "error", "doctor"]).output();
                    found.cuda = output.ok().and_then(|output| serde_json::from_slice(&output.stdout).ok());
                }
                Ok(output) => {
                    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                    let problem =
                        format!("{} does not run: {said}: libtorch is missing or another one", path.display());
                    found.problem = Some(problem);
                }
                Err(error) => found.problem = Some(format!("cannot start {}: {error}", path.display())),
            }
        }
    }
    if args.json {
        output::json(&found);
    } else {
        print(&found);
    }
    match found.problem {
        None => Ok(()),
        Some(problem) => Err(Failure::new(ExitCode::Config, problem)),
    }
}

fn print(found: &Findings) {
    output::line(format!("lockstep         {}", found.version));
    output::line(format!("bf16             {}", found.bf16.unwrap_or("none")));
    output::line(format!("cores            {}", found.cores));
    output::line(format!("GPUs             {}", found.gpus));
    let shm = found.shm.map_or("none".to_owned(), |bytes| format!("{} MiB", bytes >> 20));
    output::line(format!("/dev/shm         {shm}"));
    if let Some(place) = &found.place {
        output::line(place);
    }
    output::line(format!("worker           {}", found.worker.as_deref().unwrap_or("not found")));
    if let Some(version) = &found.worker_version {
        output::line(format!("it says          {version}"));
    }
    if let Some(cuda) = &found.cuda {
        print_cuda(cuda);
    }
    for warning in &found.warnings {
        output::line(format!("warning: {warning}"));
    }
}

/// For training on GPUs: each part, or what lacks and what helps.
fn print_cuda(cuda: &Cuda) {
    output::line(format!("libtorch         {}", cuda.libtorch));
    let parts = [
        ("its CUDA half    ", &cuda.libtorch_cuda),
        ("CUDA driver      ", &cuda.driver),
        ("NCCL             ", &cuda.nccl),
        ("CUDA graphs      ", &cuda.graphs),
    ];
    for (name, part) in parts {
        output::line(format!("{name}{}{}", if part.ok { "" } else { "none: " }, part.says));
    }
    for device in &cuda.devices {
        let Device { name, model, capability, memory } = device;
        output::line(format!("{name:<17}{model}, compute capability {capability}, {} GiB", memory >> 30));
    }
    if let Some((a, b)) = cuda.far.first() {
        output::line(format!(
            "peers            cuda:{a} and cuda:{b} (of {} such pairs) reach each other through the host only: sums are \
             slower; look at `nvidia-smi topo -m`",
            cuda.far.len()
        ));
    } else if cuda.devices.len() > 1 {
        output::line("peers            all devices reach each other directly");
    }
}

/// The best instructions for bf16 that this CPU has. Which set a run takes is the worker's to find out.
fn bf16() -> Option<&'static str> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    ["amx_bf16", "avx512_bf16"].into_iter().find(|wanted| flags.split_whitespace().any(|flag| flag == *wanted))
}

fn shm() -> Option<u64> {
    rustix::fs::statvfs("/dev/shm").ok().map(|shm| shm.f_blocks * shm.f_frsize)
}

/// NCCL puts buffers there for every pair of processes of a host.
fn small_shm(bytes: u64) -> Option<String> {
    const ENOUGH: u64 = 512 << 20;
    (bytes < ENOUGH).then(|| {
        format!(
            "/dev/shm has {} MiB, too little for NCCL between processes of one host: docker run --shm-size=1g; in \
             Kubernetes mount an emptyDir with medium: Memory there",
            bytes >> 20
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shm_that_containers_get_unasked_is_too_small() {
        assert!(
            small_shm(64 << 20).is_some_and(|warning| warning.contains("64 MiB") && warning.contains("--shm-size"))
        );
        assert_eq!(small_shm(1 << 30), None);
    }
}
