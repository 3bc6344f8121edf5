//! `lockstep-chaos`: what `cargo xtask chaos` runs.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use lockstep_chaos::{Amount, Options};

/// Real faults against the real executables; prints a table of what held.
#[derive(Parser)]
#[command(name = "lockstep-chaos", max_term_width = 110)]
struct Args {
    /// How long the soak lasts
    #[arg(long, value_name = "N", default_value_t = 2.0)]
    minutes: f64,
    /// Promises (numbers of goals) or scenarios, separated by commas [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    only: Vec<String>,
    /// Decides victims and moments
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// `few`, `usual` or `goal`; or numbers for single scenarios: `kill=200,silent=5`
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    trials: Vec<String>,
    /// Where `lockstep` and `lockstep-worker` lie
    #[arg(long, value_name = "DIR", default_value = "target/release")]
    bin_dir: PathBuf,
    /// Keep run directories and logs here [default: a temporary folder]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Change a key of every recipe: `elastic.step_timeout_s=20`
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// How long the coordinator is away in the long absence, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    absent_s: u64,
    /// Seconds between two faults of the soak
    #[arg(long, value_name = "LEAST-MOST", default_value = "5-30")]
    fault_every_s: String,
    /// `torchrun` of a Python with PyTorch, for the comparison
    #[arg(long, value_name = "FILE")]
    torchrun: Option<PathBuf>,
    /// Write the table here too
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// List the scenarios
    #[arg(long)]
    list: bool,
}

impl Args {
    fn options(self) -> Result<Options> {
        let mut options = Options::new(self.bin_dir.join("lockstep"), self.bin_dir.join("lockstep-worker"));
        for entry in self.trials {
            match (entry.as_str(), entry.split_once('=')) {
                ("few", _) => options.amount = Amount::Few,
                ("usual", _) => options.amount = Amount::Usual,
                ("goal", _) => options.amount = Amount::Goal,
                (_, Some((name, count))) => {
                    let count = count.parse().with_context(|| format!("--trials {entry}: expected a number"))?;
                    options.trials.insert(name.into(), count);
                }
                _ => bail!("--trials {entry}: expected few, usual, goal, or NAME=N"),
            }
        }
        let bounds = self.fault_every_s.split_once('-').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        options.fault_every_s = bounds
            .filter(|(least, most): &(u64, u64)| least <= most)
            .with_context(|| format!("--fault-every-s {}: expected two numbers, as 5-30", self.fault_every_s))?;
        options.soak = Duration::try_from_secs_f64(self.minutes * 60.0).context("--minutes: expected minutes")?;
        options.only = self.only;
        options.seed = self.seed;
        options.dir = self.dir;
        options.sets = self.set;
        options.absent = Duration::from_secs(self.absent_s);
        options.torchrun = self.torchrun;
        Ok(options)
    }
}

fn chaos(args: Args) -> Result<bool> {
    if args.list {
        print!("{}", lockstep_chaos::list());
        return Ok(true);
    }
    let markdown = args.markdown.clone();
    let table = lockstep_chaos::run(args.options()?)?;
    print!("{}", table.markdown());
    if let Some(path) = markdown {
        std::fs::write(&path, table.markdown()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(table.misses().is_empty())
}

fn main() -> ExitCode {
    match chaos(Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(64)
        }
    }
}
