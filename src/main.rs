//! The command: starts coordinators and workers, and reads what runs wrote down. One file a subcommand.
//!
//! ```text
//! train ──► coordinator (in this process) ◄── gRPC ── lockstep-worker × N (children)
//! coordinator                                   worker, eval, export, bench ──► exec lockstep-worker
//! sweep ──► train × J (children)                  data, doctor
//! status, events, audit, report ──► run directory
//! ```
//! May never: link libtorch, decide anything about a run's course.
#![forbid(unsafe_code)]

mod audit;
mod cli;
mod coordinate;
mod data;
mod doctor;
mod events;
mod exec;
mod failure;
mod flags;
mod launch;
mod output;
mod report;
mod signals;
mod status;
mod sweep;
mod train;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser;
use lockstep_proto::exit::ExitCode as Code;

fn main() -> ExitCode {
    exit_on_panic();
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { Code::Usage } else { Code::Done };
            // Nobody is left to tell when even this cannot be printed.
            let _ = error.print();
            return code.into();
        }
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("LOCKSTEP_LOG");
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| "warn".into()))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    match cli.run() {
        Ok(()) => Code::Done.into(),
        Err(failure) => {
            output::note(format!("error: {failure}"));
            failure.code.into()
        }
    }
}

/// Release builds abort on a panic, which would be a signal in place of the promised code.
fn exit_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        eprintln!("error: internal error; this is a defect of lockstep");
        std::process::exit(Code::Software.code().into());
    }));
}
