//! `gpu-proof`: its flags, and what they come to.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use lockstep_proto::exit::ExitCode;

use super::line::LINES;
use crate::exit::Exit;

/// `gpu-proof`
#[derive(Debug, Args)]
pub struct ProofArgs {
    /// Folder of the PyTorch scripts that do the same work: `cifar_torch.py`, `imagenet_torch.py`
    #[arg(long, env = "LOCKSTEP_PEERS", value_name = "DIR")]
    pub peers: Option<PathBuf>,
    /// CIFAR-10's binary files: a folder `cifar-10-batches-bin`
    #[arg(long, env = "LOCKSTEP_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Photographs, a folder a class, or with `val/` in it: what ResNet-50 is fed with
    #[arg(long, env = "LOCKSTEP_IMAGES", value_name = "DIR")]
    pub images: Option<PathBuf>,
    /// What is measured: `cuda:0`; on `cpu` every line is tried at a tiny size, which proves the proof and nothing else
    #[arg(long, env = "LOCKSTEP_DEVICE", value_name = "NAME", default_value = "cuda:0")]
    pub device: String,
    /// Only these lines
    #[arg(long, env = "LOCKSTEP_ONLY", value_name = "LIST", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Minutes in all; every line has its share of what is left, and what does not fit is named
    #[arg(long, env = "LOCKSTEP_MINUTES", value_name = "MINUTES", default_value_t = 25.0)]
    pub minutes: f64,
    /// No command runs longer, seconds [default: what its line has left]
    #[arg(long, env = "LOCKSTEP_LIMIT_S", value_name = "SECONDS")]
    pub limit_s: Option<f64>,
    /// Interleaved pairs of a ratio; fewer than five decide nothing
    #[arg(long, env = "LOCKSTEP_PAIRS", value_name = "N", default_value_t = 5)]
    pub pairs: usize,
    /// Folder for `proof.md`, `proof.json`, logs and runs; a new one
    #[arg(long, env = "LOCKSTEP_OUT", value_name = "DIR", default_value = "gpu-proof")]
    pub out: PathBuf,
    /// The Python that has PyTorch
    #[arg(long, env = "LOCKSTEP_PYTHON", value_name = "PROGRAM", default_value = "python3")]
    pub python: PathBuf,
    /// The program `lockstep` [default: beside this one, or in the folder above]
    #[arg(long, env = "LOCKSTEP_PROGRAM", value_name = "FILE")]
    pub program: Option<PathBuf>,
}

/// Flags, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// As [`ProofArgs::peers`], absolute.
    pub peers: Option<PathBuf>,
    /// As [`ProofArgs::data`], absolute.
    pub data: Option<PathBuf>,
    /// As [`ProofArgs::images`], absolute.
    pub images: Option<PathBuf>,
    /// `cpu`, or `cuda:N`.
    pub device: String,
    /// Names of lines, in the order of [`LINES`].
    pub only: Vec<&'static str>,
    /// For everything.
    pub budget: Duration,
    /// For one command.
    pub limit: Option<Duration>,
    /// Of a ratio.
    pub pairs: usize,
    /// Where everything is written, absolute.
    pub out: PathBuf,
    /// Runs the peers.
    pub python: PathBuf,
    /// `lockstep`.
    pub lockstep: PathBuf,
    /// This program.
    pub worker: PathBuf,
}

impl ProofArgs {
    /// Checks everything that can be checked before a measurement, and makes the folder.
    ///
    /// # Errors
    /// Wrong usage (64), a folder that is not there (66) or holds an earlier proof (73), no `lockstep` (78).
    pub fn validate(&self) -> Result<Config, Exit> {
        let usage = |reason: String| Exit::new(ExitCode::Usage, reason);
        let is_cuda = self.device.strip_prefix("cuda:").is_some_and(|number| number.parse::<u32>().is_ok());
        if !is_cuda && self.device != "cpu" {
            return Err(usage(format!("--device {}: expected cuda:0, cuda:1, … or cpu", self.device)));
        }
        if !(self.minutes > 0.0 && self.minutes < 1e6) || self.limit_s.is_some_and(|s| !(s > 0.0 && s < 1e8)) {
            return Err(usage("--minutes and --limit-s must be above 0".into()));
        }
        if self.pairs == 0 {
            return Err(usage("--pairs 0: nothing to compare".into()));
        }
        let names: Vec<&'static str> = LINES.iter().map(|line| line.name).collect();
        if let Some(unknown) = self.only.iter().find(|name| !names.contains(&name.as_str())) {
            return Err(usage(format!("--only {unknown}: there is no such line; they are {}", names.join(","))));
        }
        let is_wanted = |name: &&str| self.only.is_empty() || self.only.iter().any(|only| only == name);
        let folder =
            |flag: &str, path: &Option<PathBuf>| match path.as_ref().filter(|path| !path.as_os_str().is_empty()) {
                None => Ok(None),
                Some(path) if path.is_dir() => Ok(Some(std::path::absolute(path).unwrap_or_else(|_| path.clone()))),
                Some(path) => Err(Exit::new(ExitCode::NoInput, format!("{flag} {}: no such folder", path.display()))),
            };
        let worker = std::env::current_exe()
            .map_err(|error| Exit::new(ExitCode::Config, format!("cannot tell where this program is: {error}")))?;
        Ok(Config {
            peers: folder("--peers", &self.peers)?,
            data: folder("--data", &self.data)?,
            images: folder("--images", &self.images)?,
            device: self.device.clone(),
            only: names.into_iter().filter(is_wanted).collect(),
            budget: Duration::from_secs_f64(60.0 * self.minutes),
            limit: self.limit_s.map(Duration::from_secs_f64),
            pairs: self.pairs,
            out: fresh(&self.out)?,
            python: self.python.clone(),
            lockstep: self.lockstep(&worker)?,
            worker,
        })
    }

    fn lockstep(&self, worker: &Path) -> Result<PathBuf, Exit> {
        let beside = worker.with_file_name("lockstep");
        let above = worker.parent().and_then(Path::parent).map(|folder| folder.join("lockstep"));
        let named = self.program.clone().filter(|path| !path.as_os_str().is_empty());
        let candidates = named.map_or_else(|| [Some(beside), above], |named| [Some(named), None]);
        let found = candidates.iter().flatten().find(|path| path.is_file());
        found.map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone())).ok_or_else(|| {
            let looked: Vec<_> = candidates.iter().flatten().map(|path| path.display().to_string()).collect();
            Exit::new(ExitCode::Config, format!("no `lockstep`: looked at {}; name it by --program", looked.join(", ")))
        })
    }
}

impl Config {
    /// Whether this is but a trial of the proof.
    pub fn is_trial(&self) -> bool {
        self.device == "cpu"
    }
}

/// The folder to write in: what an earlier proof measured is not overwritten.
fn fresh(out: &Path) -> Result<PathBuf, Exit> {
    let cannot = |error: std::io::Error| Exit::new(ExitCode::CantCreate, format!("--out {}: {error}", out.display()));
    if out.join("proof.json").exists() {
        let reason = format!("--out {}: holds an earlier proof; name another folder", out.display());
        return Err(Exit::new(ExitCode::CantCreate, reason));
    }
    std::fs::create_dir_all(out.join("logs")).map_err(cannot)?;
    out.canonicalize().map_err(cannot)
}
