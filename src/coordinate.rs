//! `lockstep coordinator`: a coordinator alone; workers come from elsewhere.

use std::net::SocketAddr;
use std::path::PathBuf;

use lockstep_coordinator::{Coordinator, CoordinatorConfig, CoordinatorError, Shutdown};
use lockstep_proto::exit::ExitCode;
use tokio::sync::mpsc;

use crate::failure::Failure;
use crate::flags::{RecipeArgs, TlsArgs};
use crate::launch;
use crate::output;
use crate::signals::Signals;

/// `lockstep coordinator`
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lockstep coordinator demo --listen 127.0.0.1:7070 --run-dir runs/a
  lockstep worker --coordinator http://127.0.0.1:7070

  LOCKSTEP_TOKEN=$(cat secret) lockstep coordinator my.toml --listen 0.0.0.0:7070 --run-dir /shared/a")]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Address for workers and for `lockstep status`; port 0 takes a free one and prints it.
    #[arg(long, value_name = "ADDR", env = "LOCKSTEP_LISTEN")]
    listen: SocketAddr,
    /// Where the run is written.
    #[arg(long, value_name = "DIR", env = "LOCKSTEP_RUN_DIR")]
    run_dir: PathBuf,
    /// Go on with the run in --run-dir.
    #[arg(long, env = "LOCKSTEP_RESUME", value_parser = clap::builder::FalseyValueParser::new())]
    resume: bool,
    /// What workers must present; needed unless --listen is a loopback address.
    #[arg(long, value_name = "TOKEN", env = "LOCKSTEP_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Listen beyond this machine without a token: anyone who reaches the port may join.
    #[arg(long, env = "LOCKSTEP_INSECURE", value_parser = clap::builder::FalseyValueParser::new())]
    insecure: bool,
    /// At the first signal leave the run to another coordinator on the same directory: workers keep what they hold and wait
    /// for it, `elastic.reconnect_timeout_s` long. For schedulers that replace this process.
    #[arg(long, env = "LOCKSTEP_HAND_OVER", value_parser = clap::builder::FalseyValueParser::new())]
    hand_over: bool,
    #[command(flatten)]
    tls: TlsArgs,
    /// Answer over HTTP here: /healthz, /readyz, /metrics, /status. Read only, without a token.
    #[arg(long, value_name = "ADDR", env = "LOCKSTEP_HTTP")]
    http: Option<SocketAddr>,
    /// Print as JSON.
    #[arg(long, env = "LOCKSTEP_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    json: bool,
}

/// Coordinates a run until it ends.
///
/// # Errors
/// Everything in the table of exit codes.
pub fn run(args: Args) -> Result<(), Failure> {
    let kept = args.run_dir.join("recipe.toml");
    let kept = (args.resume && kept.is_file()).then(|| kept.to_string_lossy().into_owned());
    let recipe = args.recipe.load(kept.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(ExitCode::Software, format!("cannot start threads: {error}")))?;
    runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let config = CoordinatorConfig {
            recipe,
            run_dir: args.run_dir.clone(),
            link_latest: false,
            resume: args.resume,
            listen: args.listen,
            token: args.token,
            insecure: args.insecure,
            tls: args.tls.files(),
            http: args.http,
        };
        let bound = Coordinator::bind(config).await.map_err(with_remedy)?;
        let url = bound.url();
        let http = bound.http_addr().map(|address| format!("http://{address}"));
        if args.json {
            output::json(
                &serde_json::json!({ "kind": "listening", "url": url, "http": http, "run_dir": bound.run_dir() }),
            );
        } else {
            let http = http.map_or(String::new(), |http| format!(", HTTP on {http}"));
            output::line(format!("listening on {url}{http}"));
        }
        // Nobody watches here; what happens is in the run directory.
        let (observer, _) = mpsc::channel(1);
        let (again, mut is_again) = mpsc::channel(1);
        let shutdown = async move {
            let first = signals.next().await;
            tokio::spawn(async move {
                let second = signals.next().await;
                let _ = again.send(second).await;
            });
            if args.hand_over {
                Shutdown::HandOver(format!("{first}: handed over; workers wait for a coordinator with --resume"))
            } else {
                Shutdown::Stop(format!("{first}; go on with --resume"))
            }
        };
        let outcome = tokio::select! {
            biased;
            Some(signal) = is_again.recv() => {
                return Err(Failure::new(ExitCode::TempFail, format!("{signal} again; go on with --resume")));
            }
            outcome = bound.serve(shutdown, observer) => outcome?,
        };
        if outcome.code == ExitCode::Done { Ok(()) } else { Err(Failure::new(outcome.code, outcome.reason)) }
    })
}

/// What a cluster's user does about it.
fn with_remedy(error: CoordinatorError) -> Failure {
    let is_exposed = matches!(error, CoordinatorError::Exposed { .. });
    let mut failure = Failure::from(error);
    if let (true, Some(remedy)) = (is_exposed, launch::token_remedy(&launch::Vars::of_process())) {
        failure.reason = format!("{}; {remedy}", failure.reason);
    }
    failure
}
