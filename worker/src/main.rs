//! `lockstep-worker`: parse, trace, run, exit code.
#![forbid(unsafe_code)]

use std::io::IsTerminal as _;

use clap::Parser as _;
use lockstep_proto::exit::ExitCode;
use lockstep_worker::args::{Arguments, BenchCommand, Command, DoctorArgs, WorkerArgs};
use lockstep_worker::devices::devices;
use lockstep_worker::exit::Exit;
use lockstep_worker::session::{self, Session};
use lockstep_worker::workshop::Replicas;
use lockstep_worker::{bench, dry_run, evaluate_cmd, export, panic, proof};
use tracing_subscriber::EnvFilter;

fn main() -> std::process::ExitCode {
    panic::install();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no errors.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::Usage } else { ExitCode::Done }.into();
        }
    };
    let result = trace(&arguments.log).and_then(|()| match &arguments.command {
        Command::Worker(args) => work(args),
        Command::Eval(args) => evaluate_cmd::run(args),
        Command::Export(args) => export::run(args),
        Command::DryRun(args) => dry_run::run(args),
        Command::Doctor(args) => doctor(args),
        Command::GpuProof(args) => proof::run(args),
        Command::Bench(BenchCommand::Step(args)) => bench::step::run(args),
        Command::Bench(BenchCommand::Allreduce(args)) => bench::allreduce::run(args),
        Command::Bench(BenchCommand::Loader(args)) => bench::loader::run(args),
    });
    match result {
        Ok(()) => ExitCode::Done.into(),
        Err(exit) => {
            eprintln!("error: {exit}");
            exit.code.into()
        }
    }
}

/// Log lines go to stderr; stdout is for results.
fn trace(filter: &str) -> Result<(), Exit> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| Exit::new(ExitCode::Usage, format!("--log {filter}: {error}; try info or debug")))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    Ok(())
}

/// Prints what there is for GPUs.
fn doctor(args: &DoctorArgs) -> Result<(), Exit> {
    if let Some(names) = &args.check {
        return devices(names).map(drop);
    }
    let report = lockstep_cuda::report(args.cuda.libtorch.as_deref(), args.nccl.clone(), args.cuda_driver.clone());
    let text = serde_json::to_string(&report);
    println!("{}", text.map_err(|error| Exit::new(ExitCode::Software, error.to_string()))?);
    Ok(())
}

/// Joins a run; lives until it is over.
fn work(args: &WorkerArgs) -> Result<(), Exit> {
    let config = args.validate()?;
    let workshop = Replicas::new(&config.devices[0], args.threads(), &args.cuda)?;
    let internal = |error: std::io::Error| Exit::new(ExitCode::Software, format!("cannot start: {error}"));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(internal)?;
    let exit = runtime.block_on(async {
        let signals = session::listen().map_err(internal)?;
        let orphaned = "standard input closed: whoever started this worker is gone";
        Ok::<_, Exit>(tokio::select! {
            exit = Session::live(config, workshop, signals) => exit,
            () = session::stdin_closes(args.until_stdin_closes) => Exit::new(ExitCode::TempFail, orphaned),
        })
    })?;
    // A thread that is still busy ends with the process.
    runtime.shutdown_background();
    if exit.code == ExitCode::Done {
        tracing::info!("{exit}");
        return Ok(());
    }
    Err(exit)
}
