//! `lockstep sweep`: tables of results as TOML, expanded into runs × seeds, each run once.
//!
//! ```text
//! recipes/sweeps/*.toml ─► find, file ─► plan: configurations × seeds ─► list
//!                                          │                             run ─► jobs: `lockstep train` × J
//!                                          ▼                              ▲ │
//!                              state of each run directory ──────────────┘ └─► show: progress, time left
//! ```
//! A run directory is the truth about a run; nothing is remembered besides, but why a run failed.

pub mod builtin;
pub mod file;
pub mod find;
mod jobs;
mod list;
mod lock;
mod measure;
pub mod plan;
mod run;
mod share;
mod show;
mod slug;
pub mod state;
mod stock;
mod tally;

use std::path::PathBuf;

use lockstep_proto::exit::ExitCode;

use crate::failure::Failure;
use plan::{Options, Plan};
use share::Sharing;
pub use slug::identity;

/// Where runs lie unless told otherwise.
pub const OUT: &str = "runs/sweeps";

/// `lockstep sweep`
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lockstep sweep --list                                the tables inside this program
  lockstep sweep short                                 runs one, or goes on with it
  lockstep sweep recipes/sweeps --only 'BN after' --seeds 0,1
  lockstep sweep my.toml other.toml --out /scratch/s --jobs 4 --set data.path=/data/cifar-10-batches-bin
  lockstep sweep --list --json recipes/sweeps | jq '{label, slug, runs}'

Runs that are done are skipped, runs that were cut off are resumed, runs that failed are tried again.")]
pub struct Args {
    /// Tables: names of built-in ones, files, or folders of files.
    #[arg(value_name = "SWEEP")]
    sweeps: Vec<String>,
    /// Where runs are written.
    #[arg(long, value_name = "DIR", env = "LOCKSTEP_OUT", default_value = OUT)]
    out: PathBuf,
    /// Seeds in place of those in the tables.
    #[arg(long, value_name = "LIST", env = "LOCKSTEP_SEEDS", value_delimiter = ',')]
    seeds: Option<Vec<u64>>,
    /// Change a key of every recipe; may be repeated. Makes other configurations, with runs of their own.
    #[arg(long = "set", value_name = "KEY=VALUE", env = "LOCKSTEP_SET")]
    sets: Vec<String>,
    /// Only rows with this in label or slug, in any case.
    #[arg(long, value_name = "TEXT", env = "LOCKSTEP_ONLY")]
    only: Option<String>,
    /// Runs at once: a number, or `auto`: what is fastest, measured on CPUs; one a device where several are named.
    #[arg(long, value_name = "N|auto", env = "LOCKSTEP_JOBS", default_value = "auto", value_parser = jobs)]
    jobs: Jobs,
    /// Compute threads of each run [default: cores ÷ runs at once].
    #[arg(long, value_name = "N", env = "LOCKSTEP_THREADS", value_parser = clap::value_parser!(u32).range(1..))]
    threads: Option<u32>,
    /// Devices, given to runs in turn; a run has one.
    #[arg(long, value_name = "LIST", env = "LOCKSTEP_DEVICES", default_value = "cpu", value_delimiter = ',')]
    devices: Vec<String>,
    /// Print the rows with their runs, and run nothing.
    #[arg(long, env = "LOCKSTEP_LIST", value_parser = clap::builder::FalseyValueParser::new())]
    list: bool,
    /// Print rows or progress as lines of JSON.
    #[arg(long, env = "LOCKSTEP_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    json: bool,
}

/// `--jobs`: `None` is `auto`.
type Jobs = Option<usize>;

fn jobs(text: &str) -> Result<Jobs, String> {
    match text.parse::<usize>() {
        Ok(jobs) if jobs > 0 => Ok(Some(jobs)),
        _ if text == "auto" => Ok(None),
        _ => Err("expected a number above 0, or auto".to_owned()),
    }
}

/// Lists or runs sweeps.
///
/// # Errors
/// Everything in the table of exit codes.
pub fn run(args: Args) -> Result<(), Failure> {
    if args.sweeps.is_empty() && !args.list {
        let reason = "which sweep? name a file, a folder, or one of `lockstep sweep --list`";
        return Err(Failure::new(ExitCode::Usage, reason));
    }
    let files = find::load(&args.sweeps)?;
    let options = Options { out: args.out, sets: args.sets, seeds: args.seeds, only: args.only };
    let plan = Plan::new(&files, &options)?;
    if args.list {
        list::print(&plan, args.json);
        return Ok(());
    }
    let sharing =
        Sharing { jobs: args.jobs, threads: args.threads.map(|threads| threads as usize), devices: args.devices };
    run::run(&plan, &options.out, &sharing, args.json)
}
