//! The command line as clap sees it.

use std::ffi::OsString;

use clap::{Parser, Subcommand};

use crate::failure::Failure;
use crate::{audit, coordinate, data, doctor, events, exec, launch, report, status, sweep, train};

/// Trains residual networks over many processes such that the course of a run is a property of its recipe.
#[derive(Parser)]
#[command(name = "lockstep", version, about, max_term_width = 110)]
#[command(after_help = "Examples:
  lockstep train demo --workers 2            a small net on built-in images, on this machine
  lockstep train --list                      the recipes inside this program
  lockstep status runs/demo/latest           how far it is
  lockstep audit runs/demo/latest            whether every sample was there exactly once
  lockstep report runs/demo/latest           its table and figures as a page
  lockstep sweep --list                      tables of runs, and how far they are

Every flag may also be given as LOCKSTEP_<FLAG> in the environment. Exit codes: see the README.")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a recipe on this machine: a coordinator and its workers.
    Train(train::Args),
    /// Run a coordinator alone; workers are started elsewhere.
    Coordinator(coordinate::Args),
    /// Run a worker that joins a coordinator (options: `lockstep worker --help`).
    #[command(disable_help_flag = true)]
    Worker(Passed),
    /// Evaluate a checkpoint (options: `lockstep eval --help`).
    #[command(disable_help_flag = true)]
    Eval(Passed),
    /// Write a checkpoint's weights as one file (options: `lockstep export --help`).
    #[command(disable_help_flag = true)]
    Export(Passed),
    /// Measure parts of this machine and of Lockstep (options: `lockstep bench --help`).
    #[command(disable_help_flag = true)]
    Bench(Passed),
    /// Show how far a run is.
    Status(status::Args),
    /// Show what happened to a run.
    Events(events::Args),
    /// Prove from a run directory that every position was in exactly one committed step.
    Audit(audit::Args),
    /// Run tables of configurations × seeds, or list them.
    Sweep(sweep::Args),
    /// Write tables and figures of runs or sweeps: HTML, Markdown, CSV, SVG, PNG.
    Report(report::Args),
    /// Get data sets.
    Data(data::Args),
    /// Show what this installation has, and what it lacks.
    Doctor(doctor::Args),
}

/// Arguments for `lockstep-worker`, as they are.
#[derive(clap::Args)]
struct Passed {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    args: Vec<OsString>,
}

impl Cli {
    /// Does what was asked.
    pub fn run(self) -> Result<(), Failure> {
        match self.command {
            Command::Train(args) => train::run(args),
            Command::Coordinator(args) => coordinate::run(args),
            Command::Worker(passed) => Err(launch::worker(passed.args)),
            Command::Eval(passed) => Err(exec::worker("eval", &passed.args)),
            Command::Export(passed) => Err(exec::worker("export", &passed.args)),
            Command::Bench(passed) => Err(exec::worker("bench", &passed.args)),
            Command::Status(args) => status::run(&args),
            Command::Events(args) => events::run(&args),
            Command::Audit(args) => audit::run(&args),
            Command::Sweep(args) => sweep::run(args),
            Command::Report(args) => report::run(&args),
            Command::Data(args) => data::run(&args),
            Command::Doctor(args) => doctor::run(&args),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_flag_is_also_an_environment_variable() {
        fn visit(command: &clap::Command) {
            for arg in command.get_arguments() {
                let Some(long) = arg.get_long().filter(|long| !["help", "version"].contains(long)) else { continue };
                let env = arg.get_env().map(|env| env.to_string_lossy().into_owned());
                let wanted = format!("LOCKSTEP_{}", long.replace('-', "_").to_uppercase());
                assert_eq!(env, Some(wanted), "--{long} of {}", command.get_name());
            }
            command.get_subcommands().for_each(visit);
        }
        let mut cli = Cli::command();
        cli.build();
        visit(&cli);
        cli.debug_assert();
    }
}
