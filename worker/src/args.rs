//! The command line: every flag is an environment variable too. Strings here; [`WorkerArgs::validate`] makes a
//! [`Config`] of them, once.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use lockstep_nccl::Libraries;
use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::WorkerId;
use lockstep_proto::recipe::Precision;
use lockstep_proto::wire::TlsFiles;

use crate::connect::Coordinator;
use crate::devices::devices;
use crate::door::Transport;
use crate::exit::Exit;
use crate::isa;
use crate::proof::args::ProofArgs;
use crate::session::Config;

/// How long replicas may take to halt.
const HALT: Duration = Duration::from_secs(60);

/// The part of Lockstep that computes.
///
/// `lockstep worker|eval|export|bench` run this program; most people never call it by name.
#[derive(Debug, Parser)]
#[command(name = "lockstep-worker", version, max_term_width = 110, disable_help_subcommand = true)]
pub struct Arguments {
    /// What to tell on stderr: error, warn, info, debug, trace; or per module, `lockstep_worker=debug`
    #[arg(long, global = true, env = "LOCKSTEP_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Join a run and compute for it until it is over
    #[command(
        after_help = "Leaves politely on SIGTERM, SIGINT or SIGUSR1: finishes the step in hand, then exits with \
                            75. A second signal leaves at once.\n\nExample:\n  \
                            lockstep-worker worker --coordinator http://10.0.0.1:7000 --devices cpu,cpu"
    )]
    Worker(WorkerArgs),
    /// Top-1, top-5 and loss of a checkpoint or a file of weights on the whole test set
    #[command(after_help = "Images are transformed as in the evaluations of a run: scaled to data.image.resize, the \
                            centre cut out.\n\nExamples:\n  \
                            lockstep-worker eval runs/resnet20/latest/checkpoints/step-1000\n  \
                            lockstep-worker eval resnet50.safetensors --recipe imagenet.toml --data /data/imagenet\n  \
                            lockstep-worker eval resnet50.safetensors --recipe imagenet.toml --image cat.jpg --image \
                            dog.jpg")]
    Eval(EvalArgs),
    /// Write the model of a checkpoint for other programs: one safetensors file, or Hugging Face's layout
    #[command(
        after_help = "Names are torchvision's (`layer1.0.conv1.weight`), shapes logical: convolutions are [out, in, \
                            height, width]. Both formats: docs/interchange.md.\n\nExamples:\n  \
                            lockstep-worker export runs/resnet20/latest/checkpoints/step-1000 --out resnet20.safetensors\n  \
                            lockstep-worker export runs/r50/latest/checkpoints/step-450000 --format huggingface --out r50"
    )]
    Export(ExportArgs),
    /// One batch through everything that a run does, and what it took: `lockstep train RECIPE --dry-run`
    DryRun(DryRunArgs),
    /// Measure this machine; prints JSON lines
    #[command(subcommand)]
    Bench(BenchCommand),
    /// What there is for GPUs and what is missing, as one JSON object: `lockstep doctor` shows it
    Doctor(DoctorArgs),
    /// Everything that needs a GPU, measured against PyTorch beside it, in one table: docs/gpu.md
    #[command(after_help = "Example:\n  lockstep-worker gpu-proof --peers peers --data data/cifar-10-batches-bin \
                      --images data/imagenet-sample --out proof")]
    GpuProof(ProofArgs),
}

/// `doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Only say whether a worker can have these, as `worker --devices` would
    #[arg(long, env = "LOCKSTEP_CHECK", value_name = "LIST", value_delimiter = ',')]
    pub check: Option<Vec<String>>,
    /// How GPUs are found and used
    #[command(flatten)]
    pub cuda: CudaArgs,
    /// NCCL's library, `libnccl.so.2`, or its folder
    #[arg(long, env = "LOCKSTEP_NCCL", value_name = "FILE")]
    pub nccl: Option<PathBuf>,
    /// A seam for tests: another CUDA driver than the system's `libcuda.so.1`
    #[arg(long, env = "LOCKSTEP_CUDA_DRIVER", value_name = "FILE", hide = true)]
    pub cuda_driver: Option<PathBuf>,
}

/// `worker`
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// Where the coordinator listens
    #[arg(long, env = "LOCKSTEP_COORDINATOR", value_name = "URL")]
    pub coordinator: String,
    /// One replica for each entry: `cpu`, or `cpu,cpu` for two in this process; `cuda:0` for a GPU (one process a GPU), `all`
    /// where there is one; `host` takes the course of a GPU on CPU tensors, for tests
    #[arg(long, env = "LOCKSTEP_DEVICES", value_name = "LIST", default_value = "cpu", value_delimiter = ',')]
    pub devices: Vec<String>,
    /// Host or address under which other workers reach this one [default: the address that reaches the coordinator]
    #[arg(long, env = "LOCKSTEP_ADVERTISE", value_name = "HOST")]
    pub advertise: Option<String>,
    /// Compute threads of each replica [default: cores ÷ replicas]
    #[arg(long, env = "LOCKSTEP_THREADS", value_name = "N")]
    pub threads: Option<usize>,
    /// How GPUs are found and used
    #[command(flatten)]
    pub cuda: CudaArgs,
    /// NCCL's library, `libnccl.so.2`, or its folder [default: beside this program, with LIBTORCH, with an installed PyTorch,
    /// on the loader's path]
    #[arg(long, env = "LOCKSTEP_NCCL", value_name = "FILE")]
    pub nccl: Option<PathBuf>,
    /// A seam for tests: CPU replicas over NCCL, or a test double of it
    #[arg(long, env = "LOCKSTEP_TRANSPORT", value_name = "NAME", default_value = "auto", hide = true)]
    pub transport: TransportName,
    /// A seam for tests: another CUDA driver than the system's `libcuda.so.1`
    #[arg(long, env = "LOCKSTEP_CUDA_DRIVER", value_name = "FILE", hide = true)]
    pub cuda_driver: Option<PathBuf>,
    /// Unique name of this process [default: host-pid-random]
    #[arg(long, env = "LOCKSTEP_ID", value_name = "NAME")]
    pub id: Option<String>,
    /// What the coordinator asks for when it listens beyond loopback; better given by the environment
    #[arg(long, env = "LOCKSTEP_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Certificate that this worker shows a coordinator that asks for one, PEM
    #[arg(long, env = "LOCKSTEP_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, env = "LOCKSTEP_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Authority that signed the coordinator's certificate, PEM; needed with https
    #[arg(long, env = "LOCKSTEP_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// How long to wait for the coordinator to appear, seconds
    #[arg(long, env = "LOCKSTEP_CONNECT_TIMEOUT_S", value_name = "SECONDS", default_value_t = 60.0)]
    pub connect_timeout_s: f64,
    /// End, at once and with 75, when standard input closes: for programs that start this one
    #[arg(long, env = "LOCKSTEP_UNTIL_STDIN_CLOSES", value_parser = clap::builder::FalseyValueParser::new())]
    pub until_stdin_closes: bool,
}

/// GPUs: their libraries.
#[derive(Clone, Debug, Default, Args)]
pub struct CudaArgs {
    /// The libtorch with CUDA: a folder with `lib/libtorch_cuda.so` [default: LIBTORCH, beside this program, an installed
    /// PyTorch]
    #[arg(long, env = "LOCKSTEP_LIBTORCH", value_name = "FOLDER")]
    pub libtorch: Option<PathBuf>,
    /// Whether steps run as CUDA graphs, where they can be captured
    #[arg(long, env = "LOCKSTEP_GRAPHS", value_name = "WHEN", default_value = "auto")]
    pub graphs: When,
    /// Whether BatchNorm is done by Lockstep's own kernels, where they are measured to be faster than libtorch's operations
    #[arg(long, env = "LOCKSTEP_KERNELS", value_name = "WHEN", default_value = "auto")]
    pub kernels: When,
}

/// `--graphs`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// Where it can be
    #[default]
    Auto,
    /// Never
    Off,
}

/// What carries sums between replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TransportName {
    /// NCCL between GPUs, TCP between CPUs.
    Auto,
    /// Sockets.
    Tcp,
    /// NCCL.
    Nccl,
}

/// `eval`
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// A folder `checkpoints/step-N` of a run, or a safetensors file with torchvision's names
    pub checkpoint: PathBuf,
    /// Recipe of the model [default: recipe.toml of the checkpoint's run, or the one that an exported file carries]
    #[arg(long, env = "LOCKSTEP_RECIPE", value_name = "RECIPE")]
    pub recipe: Option<String>,
    /// Change a key of the recipe: `--set data.image.resize=232`
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Where the data lies, if not where the recipe says
    #[arg(long, env = "LOCKSTEP_DATA", value_name = "PATH")]
    pub data: Option<String>,
    /// Show the five best classes of this file, in place of the test set; may be repeated
    #[arg(long, env = "LOCKSTEP_IMAGE", value_name = "FILE")]
    pub image: Vec<PathBuf>,
    /// Write the logits of every image, in order, with labels, as a safetensors file: `logits`, `labels`
    #[arg(long, env = "LOCKSTEP_LOGITS", value_name = "FILE")]
    pub logits: Option<PathBuf>,
    /// Put the images as the model sees them, NCHW, into that file too: `images`
    #[arg(long, env = "LOCKSTEP_PIXELS", value_parser = clap::builder::FalseyValueParser::new())]
    pub pixels: bool,
    /// Compute threads [default: cores]
    #[arg(long, env = "LOCKSTEP_THREADS", value_name = "N")]
    pub threads: Option<usize>,
    /// Print one JSON object
    #[arg(long, env = "LOCKSTEP_JSON")]
    pub json: bool,
}

/// `export`
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// A folder `checkpoints/step-N` of a run
    pub checkpoint: PathBuf,
    /// File to write; with `huggingface` a folder
    #[arg(long, env = "LOCKSTEP_OUT", value_name = "PATH")]
    pub out: PathBuf,
    /// What to write
    #[arg(long, env = "LOCKSTEP_FORMAT", value_name = "NAME", default_value = "safetensors")]
    pub format: ExportFormat,
    /// `huggingface`: names of the classes, a line each [default: those of the data set, where it is there]
    #[arg(long, env = "LOCKSTEP_LABELS", value_name = "FILE")]
    pub labels: Option<PathBuf>,
    /// `huggingface`: recipe of the model [default: recipe.toml of the checkpoint's run]
    #[arg(long, env = "LOCKSTEP_RECIPE", value_name = "RECIPE")]
    pub recipe: Option<String>,
    /// The average of the weights (train.ema_decay) in place of the weights
    #[arg(long, env = "LOCKSTEP_EMA")]
    pub ema: bool,
}

/// `--format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// One file
    Safetensors,
    /// A folder with `config.json` and `model.safetensors`, as timm reads them
    Huggingface,
}

/// `dry-run`
#[derive(Debug, Args)]
pub struct DryRunArgs {
    /// A recipe file or the name of a built-in one
    pub recipe: String,
    /// Change a key of the recipe: `--set train.batch=32`
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Compute threads [default: cores]
    #[arg(long, env = "LOCKSTEP_THREADS", value_name = "N")]
    pub threads: Option<usize>,
    /// Print one JSON object
    #[arg(long, env = "LOCKSTEP_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    pub json: bool,
}

/// `bench`
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Images a second of one replica, data and optimizer included
    Step(BenchStepArgs),
    /// Seconds of an all-reduce between processes on this machine, by size
    Allreduce(BenchAllreduceArgs),
    /// Images a second of the input pipeline alone: JPEG files to random 224-pixel squares of bytes
    Loader(BenchLoaderArgs),
}

/// `bench loader`
#[derive(Debug, Args)]
pub struct BenchLoaderArgs {
    /// A folder with images below it, or shards (then their training split)
    pub folder: PathBuf,
    /// Side of the square, pixels
    #[arg(long, env = "LOCKSTEP_CROP", value_name = "PIXELS", default_value_t = 224)]
    pub crop: u32,
    /// Decode all pixels of the part, as other tools do, and not only as many as are needed
    #[arg(long, env = "LOCKSTEP_FULL")]
    pub full: bool,
    /// Threads; one gives the figure for a core
    #[arg(long, env = "LOCKSTEP_THREADS", value_name = "N", default_value_t = 1)]
    pub threads: usize,
    /// Length of a measurement
    #[arg(long, env = "LOCKSTEP_SECONDS", value_name = "SECONDS", default_value_t = 5.0)]
    pub seconds: f64,
    /// Measurements, of which the median is printed
    #[arg(long, env = "LOCKSTEP_REPEATS", value_name = "N", default_value_t = 5)]
    pub repeats: usize,
}

/// `bench step`
#[derive(Debug, Args)]
pub struct BenchStepArgs {
    /// A recipe file or the name of a built-in one
    pub recipe: String,
    /// Change a key of the recipe: `--set train.chunk=32`
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Global batch
    #[arg(long, env = "LOCKSTEP_BATCH", value_name = "N")]
    pub batch: Option<u64>,
    /// Arithmetic
    #[arg(long, env = "LOCKSTEP_PRECISION", value_name = "NAME")]
    pub precision: Option<BenchPrecision>,
    /// Measured steps, after a few unmeasured ones
    #[arg(long, env = "LOCKSTEP_STEPS", value_name = "N", default_value_t = 30)]
    pub steps: u64,
    /// Unmeasured steps before
    #[arg(long, env = "LOCKSTEP_WARM_UP", value_name = "N", default_value_t = 5)]
    pub warm_up: u64,
    /// Compute threads [default: cores]
    #[arg(long, env = "LOCKSTEP_THREADS", value_name = "N")]
    pub threads: Option<usize>,
    /// Where it computes: `cpu`, `cuda:0`, or `host`, the course of a GPU on CPU tensors
    #[arg(long, env = "LOCKSTEP_DEVICE", value_name = "NAME", default_value = "cpu")]
    pub device: String,
    /// How GPUs are found and used
    #[command(flatten)]
    pub cuda: CudaArgs,
    /// Images of noise, in memory, of the size and number of classes that the recipe has, in place of its data
    #[arg(long, env = "LOCKSTEP_SYNTHETIC", value_parser = clap::builder::FalseyValueParser::new())]
    pub synthetic: bool,
}

impl BenchStepArgs {
    /// The device, checked.
    ///
    /// # Errors
    /// Not a device (64), or no GPU (78).
    pub fn device(&self) -> Result<String, Exit> {
        let mut named = devices(std::slice::from_ref(&self.device))?;
        Ok(named.remove(0))
    }
}

/// `--precision`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BenchPrecision {
    /// 32-bit floats
    Fp32,
    /// bfloat16 compute
    Bf16,
    /// 64-bit floats
    Fp64,
}

impl From<BenchPrecision> for Precision {
    fn from(precision: BenchPrecision) -> Self {
        match precision {
            BenchPrecision::Fp32 => Self::Fp32,
            BenchPrecision::Bf16 => Self::Bf16,
            BenchPrecision::Fp64 => Self::Fp64,
        }
    }
}

/// `bench allreduce`
#[derive(Debug, Args)]
pub struct BenchAllreduceArgs {
    /// Processes
    #[arg(long, env = "LOCKSTEP_RANKS", value_name = "N", default_value_t = 2)]
    pub ranks: u32,
    /// Sizes, in 32-bit floats
    #[arg(long, env = "LOCKSTEP_SIZES", value_delimiter = ',', value_name = "LIST",
          default_values_t = [1usize, 1024, 270_410, 25_557_032])]
    pub sizes: Vec<usize>,
    /// Be one of the processes: address on stdout, everyone's addresses from stdin
    #[arg(long, hide = true, value_name = "RANK")]
    pub rank: Option<u32>,
}

impl WorkerArgs {
    /// Checks everything that can be checked before a connection.
    ///
    /// # Errors
    /// Wrong usage (64), or a device that this build cannot use (78).
    pub fn validate(&self) -> Result<Config, Exit> {
        let usage = |reason: String| Exit::new(ExitCode::Usage, reason);
        let devices = devices(&self.devices)?;
        if self.threads == Some(0) {
            return Err(usage("--threads 0: a replica needs a thread".into()));
        }
        if !(self.connect_timeout_s >= 0.0 && self.connect_timeout_s <= 1e9) {
            return Err(usage(format!("--connect-timeout-s {}: expected seconds", self.connect_timeout_s)));
        }
        let tls = TlsFiles { cert: self.tls_cert.clone(), key: self.tls_key.clone(), ca: self.tls_ca.clone() };
        let coordinator = Coordinator::new(&self.coordinator, self.token.as_deref())?.secured_by(&tls)?;
        let id = self.id.clone().filter(|id| !id.is_empty()).unwrap_or_else(default_id);
        let advertise = match self.advertise.clone().filter(|host| !host.is_empty()) {
            Some(host) => host,
            None => own_address(coordinator.authority()),
        };
        Ok(Config {
            coordinator,
            worker: WorkerId(id),
            transport: self.transport(&devices),
            devices,
            advertise,
            isa: isa::best()?.to_owned(),
            patience: Duration::from_secs_f64(self.connect_timeout_s),
            halt: HALT,
            fault_canary: std::env::var_os("LOCKSTEP_FAULT_CANARY").is_some_and(|value| !value.is_empty()),
        })
    }

    fn transport(&self, devices: &[String]) -> Transport {
        let is_nccl = match self.transport {
            TransportName::Auto => devices.iter().any(|device| device.starts_with("cuda")),
            TransportName::Tcp => false,
            TransportName::Nccl => true,
        };
        let libraries = || Libraries { nccl: self.nccl.clone(), driver: self.cuda_driver.clone() };
        if is_nccl { Transport::Nccl(libraries()) } else { Transport::Tcp }
    }

    /// Compute threads of each replica.
    pub fn threads(&self) -> usize {
        self.threads.unwrap_or_else(|| (cores() / self.devices.len().max(1)).max(1))
    }
}

/// Cores that this process may use: affinity and control groups are respected.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn default_id() -> String {
    let host = gethostname::gethostname().to_string_lossy().into_owned();
    let random = uuid::Uuid::new_v4().simple().to_string();
    format!("{host}-{}-{}", std::process::id(), &random[..6])
}

/// The address of this machine on the way to `host`: no packet is sent. Loopback when there is no way.
fn own_address((host, port): (&str, u16)) -> String {
    let any = if host.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
    std::net::UdpSocket::bind(any)
        .and_then(|socket| {
            socket.connect((host, port))?;
            socket.local_addr()
        })
        .map_or_else(|_| "127.0.0.1".to_owned(), |address| address.ip().to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn worker(flags: &[&str]) -> WorkerArgs {
        let all = ["lockstep-worker", "worker", "--coordinator", "127.0.0.1:1"].iter().chain(flags);
        match Arguments::try_parse_from(all).unwrap().command {
            Command::Worker(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_flag_is_an_environment_variable_too() {
        fn check(command: &clap::Command) {
            for argument in
                command.get_arguments().filter(|argument| !argument.is_positional() && !argument.is_hide_set())
            {
                let id = argument.get_id().as_str();
                if ["help", "version", "set"].contains(&id) {
                    continue; // `set` would need a syntax of its own
                }
                let variable = argument.get_env().map(|name| name.to_string_lossy().into_owned());
                assert_eq!(variable, Some(format!("LOCKSTEP_{}", id.to_uppercase())), "{}", command.get_name());
            }
            command.get_subcommands().for_each(check);
        }
        check(&Arguments::command());
    }

    #[test]
    fn two_replicas_share_the_cores() {
        let args = worker(&["--devices", "cpu,cpu"]);
        let config = args.validate().unwrap();
        assert_eq!(config.devices, ["cpu", "cpu"]);
        assert_eq!(config.advertise, "127.0.0.1");
        assert_eq!(args.threads(), (cores() / 2).max(1));
        assert_eq!(worker(&["--threads", "3"]).threads(), 3);
        assert_eq!(worker(&["--threads", "0"]).validate().unwrap_err().code, ExitCode::Usage);
    }

    #[test]
    fn names_of_processes_differ() {
        assert_ne!(worker(&[]).validate().unwrap().worker, worker(&[]).validate().unwrap().worker);
        assert_eq!(worker(&["--id", "me"]).validate().unwrap().worker.0, "me");
    }
}
