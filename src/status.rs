//! `lockstep status RUN|URL`: how far a run is, asked of its coordinator or read from its directory.

use std::path::Path;
use std::time::Duration;

use lockstep_coordinator::status_file::StatusFile;
use lockstep_proto::exit::ExitCode;
use lockstep_proto::plan::Course;
use lockstep_proto::recipe::Recipe;
use lockstep_proto::status::{Phase, Status};
use lockstep_proto::wire::pb::lockstep_client::LockstepClient;
use lockstep_proto::wire::{TlsFiles, pb};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Endpoint;

use crate::failure::Failure;
use crate::flags::TlsArgs;
use crate::train::describe;
use crate::{audit, output};

/// How long a coordinator may take to answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// The event of an end.
const ENDED: &str = "ended";

const GIB: f64 = (1_u64 << 30) as f64;

/// `lockstep status`
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lockstep status runs/demo/latest
  lockstep status http://127.0.0.1:7070 --json | jq .step")]
pub struct Args {
    /// A run directory, or the address of a coordinator.
    #[arg(value_name = "RUN|URL")]
    of: String,
    /// Token of the coordinator, if it wants one.
    #[arg(long, value_name = "TOKEN", env = "LOCKSTEP_TOKEN", hide_env_values = true)]
    token: Option<String>,
    #[command(flatten)]
    tls: TlsArgs,
    /// Print nothing: exit as the run ended, 0 when it is complete, 75 where it can go on.
    #[arg(long, env = "LOCKSTEP_EXIT_CODE", value_parser = clap::builder::FalseyValueParser::new())]
    exit_code: bool,
    /// Print as JSON.
    #[arg(long, env = "LOCKSTEP_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    json: bool,
}

/// Prints the state of a run.
///
/// # Errors
/// No such run (66), or nobody at that address (69).
pub fn run(args: &Args) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(ExitCode::Software, error.to_string()))?;
    let tls = args.tls.files();
    let ask = |url: &str| runtime.block_on(ask(url, args.token.as_deref(), &tls));
    let status = if args.of.contains("://") {
        ask(&args.of)?
    } else {
        let run = Path::new(&args.of);
        // Asked while it runs; else, or when it cannot be reached from here, what is durable.
        match StatusFile::read(run).ok().and_then(|file| ask(&file.address).ok()) {
            Some(status) => status,
            None => read(run)?,
        }
    };
    if args.exit_code {
        return how_it_ended(&args.of, &status);
    }
    if args.json {
        output::json(&status);
        return Ok(());
    }
    output::line(format!("{}  {}", status.name, status.run_dir));
    output::line(format!("step {}/{}  {}", status.step, status.total_steps, describe(&status)));
    for member in &status.members {
        let ranks: Vec<_> = member.ranks.iter().map(ToString::to_string).collect();
        output::line(format!(
            "  {}  ranks {}  step {}  heard {:.0} s ago",
            member.worker,
            ranks.join(","),
            member.last_step,
            member.last_report_age_s
        ));
        for gpu in &member.gpus {
            output::line(format!(
                "    {}  busy {} %  memory {:.1} of {:.1} GiB  {} °C",
                gpu.device,
                gpu.utilization_percent,
                gpu.memory_used as f64 / GIB,
                gpu.memory_total as f64 / GIB,
                gpu.temperature_c
            ));
        }
    }
    if let Some(event) = &status.last_event {
        output::line(format!("last: {event}"));
    }
    Ok(())
}

/// As the run ended. One that goes on, or was killed, is one to go on with.
fn how_it_ended(of: &str, status: &Status) -> Result<(), Failure> {
    if status.phase == Phase::Done {
        return Ok(());
    }
    let resumable = |why: &str| Failure::new(ExitCode::TempFail, format!("{of}: {why}"));
    if status.phase != Phase::Failed || of.contains("://") {
        return Err(resumable("it has not ended yet"));
    }
    let last = audit::open(Path::new(of))?.events(0)?.into_iter().rev().find(|event| event.kind == ENDED);
    let Some(detail) = last.map(|event| event.detail) else {
        return Err(resumable("its coordinator was killed; go on with --resume"));
    };
    let code = detail.get("code").and_then(serde_json::Value::as_u64).and_then(|code| u8::try_from(code).ok());
    let code = code.and_then(ExitCode::from_code).unwrap_or(ExitCode::TempFail);
    let reason = detail.get("reason").and_then(serde_json::Value::as_str).unwrap_or_default();
    Err(Failure::new(code, format!("{of}: {reason}")))
}

async fn ask(url: &str, token: Option<&str>, tls: &TlsFiles) -> Result<Status, Failure> {
    let usage = |what: String| Failure::new(ExitCode::Usage, format!("{url}: {what}; expected http://HOST:PORT"));
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| usage(error.to_string()))?;
    let mut endpoint = endpoint;
    if let Some(tls) = tls.client(url).map_err(|error| Failure::new(error.exit_code(), error.to_string()))? {
        endpoint = endpoint.tls_config(tls).map_err(|error| usage(format!("TLS: {error}")))?;
    }
    let channel = endpoint.connect_timeout(DEADLINE).timeout(DEADLINE).connect().await.map_err(|error| {
        // The outer errors say "transport error"; the innermost says what happened.
        let mut why: &dyn std::error::Error = &error;
        while let Some(inner) = why.source() {
            why = inner;
        }
        Failure::new(ExitCode::Unavailable, format!("cannot reach a coordinator at {url}: {why}"))
    })?;
    let mut request = tonic::Request::new(pb::StatusRequest {});
    if let Some(token) = token {
        let value: MetadataValue<Ascii> = format!("Bearer {token}")
            .parse()
            .map_err(|_| Failure::new(ExitCode::Usage, "the token has characters that no header can carry"))?;
        request.metadata_mut().insert("authorization", value);
    }
    let answer = LockstepClient::new(channel).status(request).await?.into_inner();
    Status::try_from(answer).map_err(|error| Failure::new(error.exit_code(), error.to_string()))
}

/// From the run directory: what is durable, whether or not a coordinator lives.
fn read(run: &Path) -> Result<Status, Failure> {
    let reader = audit::open(run)?;
    let recipe = Recipe::load(&run.join("recipe.toml").to_string_lossy(), &[])?;
    let course = reader.data()?.map(|data| Course::new(&recipe, data.num_train));
    let mut last = None;
    reader.each_step(|row| last = Some(row))?;
    let epochs = reader.epochs()?;
    let events = reader.events(0)?;
    let done = reader.final_state_sha256()?.is_some();
    let run_dir = std::fs::canonicalize(run).unwrap_or_else(|_| run.to_owned());
    let mut status = Status {
        run_id: reader.run_id()?,
        name: recipe.name,
        run_dir: run_dir.display().to_string(),
        // Nobody answers for it, and it is not complete.
        phase: if done { Phase::Done } else { Phase::Failed },
        total_steps: course.as_ref().map_or(0, Course::total_steps),
        total_epochs: course.as_ref().map_or(recipe.train.epochs, Course::total_epochs),
        test_error: epochs.iter().rev().find_map(|row| row.test_error),
        images_per_s: epochs.last().and_then(|row| row.images_per_s),
        last_event: events.last().map(|event| event.kind.clone()),
        updated_unix_s: events.last().map_or(0.0, |event| event.time),
        started_unix_s: events.first().map_or(0.0, |event| event.time),
        ..Status::default()
    };
    if let Some(row) = last {
        (status.step, status.epoch, status.world_size) = (row.step, row.epoch, row.world_size);
        status.generation = row.generation;
        (status.loss, status.error, status.lr) = (Some(row.loss), Some(row.error), Some(row.lr));
        status.updated_unix_s = status.updated_unix_s.max(row.committed_at);
    }
    Ok(status)
}
