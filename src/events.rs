//! `lockstep events RUN`: what happened to a run, a line an event.

use std::path::PathBuf;

use lockstep_coordinator::clock;
use lockstep_coordinator::store::EventRow;

use crate::failure::Failure;
use crate::{audit, output};

/// `lockstep events`
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lockstep events runs/demo/latest
  lockstep events runs/demo/latest --json | jq 'select(.kind == \"lost\")'")]
pub struct Args {
    /// The run directory.
    run: PathBuf,
    /// Print each event as a line of JSON.
    #[arg(long, env = "LOCKSTEP_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    json: bool,
}

/// Prints all events, oldest first.
///
/// # Errors
/// When there is no run (66).
pub fn run(args: &Args) -> Result<(), Failure> {
    for event in audit::open(&args.run)?.events(0)? {
        if args.json {
            output::json(&event);
        } else {
            output::line(plain(&event));
        }
    }
    Ok(())
}

fn plain(event: &EventRow) -> String {
    let time = clock::utc_stamp(event.time as u64);
    let mut line = format!("{time}  step {:>6}  {:<18}", event.step, event.kind);
    if let Some(worker) = &event.worker {
        line.push_str(&format!("  {worker}"));
    }
    if event.detail.as_object().is_none_or(|detail| !detail.is_empty()) {
        line.push_str(&format!("  {}", event.detail));
    }
    line
}
