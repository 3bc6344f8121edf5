//! `lockstep-launchers`: what `cargo xtask slurm` and `cargo xtask docker` run.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use lockstep_chaos::Table;
use lockstep_launchers::{docker, slurm};

/// Lockstep under Slurm and under Docker, both started here; prints a table of what held.
#[derive(Parser)]
#[command(name = "lockstep-launchers", max_term_width = 110)]
struct Args {
    /// Where `lockstep` and `lockstep-worker` lie
    #[arg(long, value_name = "DIR", default_value = "target/release", global = true)]
    bin_dir: PathBuf,
    /// Keep run directories and logs here [default: a temporary folder]
    #[arg(long, value_name = "DIR", global = true)]
    dir: Option<PathBuf>,
    /// Only checks with one of these words in what they do, separated by commas [default: all]
    #[arg(long, value_name = "WORDS", value_delimiter = ',', global = true)]
    only: Vec<String>,
    /// Write the table here too
    #[arg(long, value_name = "FILE", global = true)]
    markdown: Option<PathBuf>,
    #[command(subcommand)]
    launcher: Launcher,
}

#[derive(Subcommand)]
enum Launcher {
    /// Two nodes on this machine, and jobs by the scripts in deploy/slurm
    Slurm {
        /// Steps of each run
        #[arg(long, value_name = "N", default_value_t = 600)]
        steps: u64,
    },
    /// Both images of deploy/docker, and a run in containers
    Docker {
        /// Steps of the run
        #[arg(long, value_name = "N", default_value_t = 1200)]
        steps: u64,
        /// libtorch, as `cargo xtask libtorch` makes it
        #[arg(long, value_name = "DIR", default_value = ".libtorch")]
        libtorch: PathBuf,
        /// A base image as a tar file; made by debootstrap when it is not there
        #[arg(long, value_name = "FILE", default_value = "target/docker/base.tar")]
        base: PathBuf,
    },
}

fn launch(args: Args) -> Result<bool> {
    let (bin_dir, dir, only) = (args.bin_dir, args.dir, args.only);
    let table: Table = match args.launcher {
        Launcher::Slurm { steps } => slurm::run(&slurm::Options { bin_dir, dir, only, steps })?,
        Launcher::Docker { steps, libtorch, base } => {
            docker::run(&docker::Options { bin_dir, dir, only, steps, libtorch, base })?
        }
    };
    print!("{}", table.markdown());
    if let Some(path) = args.markdown {
        std::fs::write(&path, table.markdown()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(table.misses().is_empty())
}

fn main() -> ExitCode {
    match launch(Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(64)
        }
    }
}
