//! `lockstep train`: a whole run on this machine.
//!
//! ```text
//! recipe ─► coordinator on 127.0.0.1, in this process ◄── gRPC ── lockstep-worker × N
//!                │ status                                              │ exit
//!                ▼                                                     ▼
//!             progress                                  replacement: leave, replace, stop
//! signal ─► stop ─► drain ─► exit 75
//! ```
//! Where a launcher started several of these (`launch`), the first does that with one worker of its own, listening
//! beyond this machine if need be; each of the others becomes a worker.

mod config;
mod fleet;
mod progress;
mod replacement;
mod summary;

use std::ffi::OsString;
use std::path::PathBuf;
use std::pin::pin;
use std::time::{Duration, Instant};

use lockstep_coordinator::Progress as News;
use lockstep_coordinator::{Bound, CoordinatorError, Outcome};
use lockstep_proto::exit::ExitCode;
use lockstep_proto::status::Status;
use tokio::sync::{mpsc, oneshot};

use crate::exec;
use crate::failure::Failure;
use crate::flags::{RecipeArgs, list_recipes};
use crate::launch::{self, Meeting, Place, Ticket, Told, Vars};
use crate::output;
use crate::signals::Signals;
use config::Config;
use fleet::{Exited, Fleet, Spec};
use progress::Progress;
pub use progress::{describe, duration};
use replacement::{Death, Replacement, Verdict};
pub use summary::quoted;

/// How long workers may take to leave once the run is over.
const GRACE: Duration = Duration::from_secs(20);

/// Makes a worker end when this process does, even by SIGKILL: it holds the other end of the worker's standard input.
const ORPHANS_END: &str = "--until-stdin-closes";

/// So much news may wait to be shown; more is missed.
const NEWS: usize = 1024;

/// `lockstep train`
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lockstep train demo --workers 2
  lockstep train cifar10/resnet20 --set train.epochs=5 --set 'schedule.milestones=[3]'
  lockstep train my.toml --run-dir /scratch/a --workers 4 --threads 2
  lockstep train demo --resume                     goes on with runs/demo/latest
  lockstep train my.toml --dry-run                 one batch through everything: shapes, memory, seconds
  lockstep train my.toml --overfit-batches 1       can the model learn one batch by heart?
  lockstep train runs/demo/latest/recipe.toml      repeats a run")]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Number of worker processes on this machine alone [default: 1, or as srun, torchrun, Kubeflow … say].
    #[arg(long, value_name = "N", env = "LOCKSTEP_WORKERS", value_parser = clap::value_parser!(u32).range(1..))]
    workers: Option<u32>,
    /// Replicas of each worker, one entry each: `cpu,cpu` is two; GPUs have a process each: `cuda:0,cuda:1`, or `all`.
    #[arg(long, value_name = "LIST", env = "LOCKSTEP_DEVICES", default_value = "cpu")]
    devices: String,
    /// Compute threads of each replica [default: cores ÷ replicas].
    #[arg(long, value_name = "N", env = "LOCKSTEP_THREADS", value_parser = clap::value_parser!(u32).range(1..))]
    threads: Option<u32>,
    /// Where the run is written [default: runs/<name>/<UTC time>].
    #[arg(long, value_name = "DIR", env = "LOCKSTEP_RUN_DIR")]
    run_dir: Option<PathBuf>,
    /// Go on with a run: the newest of this recipe, or that of --run-dir.
    #[arg(long, env = "LOCKSTEP_RESUME", value_parser = clap::builder::FalseyValueParser::new())]
    resume: bool,
    /// One batch through everything that a run does — load, forward, backward, optimizer, evaluation of a few images —
    /// then tell shapes, memory, traffic and seconds, and write nothing. On the CPU.
    #[arg(long, env = "LOCKSTEP_DRY_RUN", value_parser = clap::builder::FalseyValueParser::new())]
    dry_run: bool,
    /// Train on the same K batches over and over, augmented the same each time (as --set data.overfit_batches=K).
    #[arg(long, value_name = "K", env = "LOCKSTEP_OVERFIT_BATCHES", value_parser = clap::value_parser!(u64).range(1..))]
    overfit_batches: Option<u64>,
    /// What workers on other machines must present [default: under Slurm one is made].
    #[arg(long, value_name = "TOKEN", env = "LOCKSTEP_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Listen beyond this machine without a token: anyone who reaches the port may join.
    #[arg(long, env = "LOCKSTEP_INSECURE", value_parser = clap::builder::FalseyValueParser::new())]
    insecure: bool,
    /// List the recipes inside this program.
    #[arg(long, env = "LOCKSTEP_LIST", value_parser = clap::builder::FalseyValueParser::new())]
    list: bool,
    /// Print progress and result as lines of JSON.
    #[arg(long, env = "LOCKSTEP_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    json: bool,
    /// End as at SIGTERM when standard input closes: for programs that start this one.
    #[arg(long, env = "LOCKSTEP_UNTIL_STDIN_CLOSES", value_parser = clap::builder::FalseyValueParser::new())]
    until_stdin_closes: bool,
}

/// Trains.
///
/// # Errors
/// Everything in the table of exit codes.
pub fn run(mut args: Args) -> Result<(), Failure> {
    if args.list {
        list_recipes(args.json);
        return Ok(());
    }
    if let Some(batches) = args.overfit_batches {
        args.recipe.sets.push(format!("data.overfit_batches={batches}"));
    }
    if args.dry_run {
        return Err(args.try_one_batch());
    }
    let place = Place::find(&Vars::of_process(), Told::train(args.workers.is_some()))?;
    place.announce();
    if place.is_shared() && place.task > 0 {
        // What is wrong with it is wrong for all: no task waits for one that cannot begin.
        args.recipe.load_for(&args.devices, args.kept().as_deref())?;
        return Err(launch::join(&place, vec!["--devices".into(), config::devices(&args.devices, &place).into()]));
    }
    host(args, &place)
}

impl Args {
    /// Becomes the worker that tries one batch; returns only when that fails.
    fn try_one_batch(&self) -> Failure {
        for (flag, is_given) in [("--devices", self.devices.trim() != "cpu"), ("--resume", self.resume)] {
            if is_given {
                let reason = format!("--dry-run tries one batch from the beginning, on the CPU: leave {flag} out");
                return Failure::new(ExitCode::Usage, reason);
            }
        }
        let name = match self.recipe.load(self.kept().as_deref()) {
            Ok(_) => self.recipe.recipe.clone().or_else(|| self.kept()).unwrap_or_default(),
            Err(failure) => return failure,
        };
        let mut args: Vec<OsString> = vec![name.into()];
        args.extend(self.recipe.sets.iter().flat_map(|set| ["--set".into(), set.into()]));
        args.extend(self.threads.iter().flat_map(|threads| ["--threads".into(), threads.to_string().into()]));
        args.extend(self.json.then(|| "--json".into()));
        exec::worker("dry-run", &args)
    }
}

/// Coordinates the run, and computes for it.
fn host(args: Args, place: &Place) -> Result<(), Failure> {
    let config = Config::new(args, place).inspect_err(|failure| place.tell(failure))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(ExitCode::Software, format!("cannot start threads: {error}")))?;
    runtime.block_on(Run::train(config, place))
}

/// A run while it goes on.
struct Run {
    fleet: Fleet,
    replacement: Replacement,
    progress: Progress,
    /// The last that was heard of it.
    status: Status,
    /// Asks the coordinator for an end; gone once it was used.
    shutdown: Option<oneshot::Sender<String>>,
    /// Why this process asked for an end.
    stopped: Option<Failure>,
}

impl Run {
    async fn train(config: Config, place: &Place) -> Result<(), Failure> {
        let started = Instant::now();
        let mut signals = Signals::listen()?;
        if config.until_stdin_closes {
            // Whoever holds the other end may have been the reader too.
            output::outlive_reader();
            signals = signals.and_stdin();
        }
        let every_s = config.coordinator.recipe.log.every_s;
        let can_grow = !config.coordinator.recipe.stretches();
        let shown_dir = config.coordinator.run_dir.clone();
        let token = config.coordinator.token.clone();
        let bound = config::bind(config.coordinator, place).await.map_err(Failure::from);
        let bound = bound.inspect_err(|failure| place.tell(failure))?;
        let run_dir = bound.run_dir().to_owned();
        let url = place.url(bound.local_addr());
        // Goes when this returns.
        let _posted = match (&place.meeting, &token) {
            (Meeting::ByTicket(file), Some(token)) => {
                Some(file.post(Ticket { url: url.clone(), token: token.clone() })?)
            }
            _ => None,
        };
        let threads = config.threads.to_string();
        let args = ["worker", "--coordinator", &url, "--threads", &threads, ORPHANS_END].map(OsString::from).to_vec();
        let (program, devices, logs) = (config.program, config.devices, run_dir.join("logs"));
        let spec = Spec { program, args, devices, logs, token };
        let (shutdown, asked) = oneshot::channel();
        let mut run = Run {
            fleet: Fleet::start(spec)?,
            replacement: Replacement::default(),
            progress: Progress::new(config.json, every_s),
            status: Status::default(),
            shutdown: Some(shutdown),
            stopped: None,
        };
        let outcome = run.watch(bound, asked, &mut signals).await;
        run.progress.finish();
        let hurried = tokio::select! {
            () = run.fleet.end(GRACE) => false,
            _ = signals.next() => true,
        };
        if hurried {
            run.fleet.kill().await;
        }
        let outcome = outcome?;
        match run.stopped {
            Some(failure) if outcome.code != ExitCode::Done => Err(failure),
            _ if outcome.code != ExitCode::Done => Err(Failure::new(outcome.code, outcome.reason)),
            _ if config.json => summary::print_json(&shown_dir, outcome.final_state_sha256, started.elapsed()),
            _ => summary::print(&shown_dir, outcome.final_state_sha256, started.elapsed(), can_grow),
        }
    }

    /// Until the coordinator ends.
    async fn watch(
        &mut self,
        bound: Bound,
        asked: oneshot::Receiver<String>,
        signals: &mut Signals,
    ) -> Result<Outcome, CoordinatorError> {
        let (observer, mut news) = mpsc::channel(NEWS);
        let shutdown = async {
            match asked.await {
                Ok(reason) => reason,
                // This run lives as long as the coordinator is waited for.
                Err(_) => std::future::pending().await,
            }
        };
        let mut ended = pin!(bound.serve(shutdown, observer));
        loop {
            tokio::select! {
                biased;
                signal = signals.next() => self.on_signal(signal).await,
                outcome = &mut ended => {
                    while let Ok(last) = news.try_recv() {
                        self.on_news(last);
                    }
                    return outcome;
                }
                Some(exited) = self.fleet.next_exit() => self.on_exit(&exited),
                Some(next) = news.recv() => self.on_news(next),
            }
        }
    }

    fn on_news(&mut self, news: News) {
        if let News::Status(status) = &news {
            self.status = (**status).clone();
        }
        self.progress.show(&news, &self.status, Instant::now());
    }

    async fn on_signal(&mut self, signal: &str) {
        if self.stopped.is_some() {
            self.progress.finish();
            // Left alone they would wait for a coordinator to come back.
            self.fleet.kill().await;
            output::note(format!("error: {signal} again: ended without saving; go on with --resume"));
            std::process::exit(ExitCode::TempFail.code().into());
        }
        self.progress.note(&format!("{signal}: saving and ending; once more ends at once"));
        self.stop(ExitCode::TempFail, format!("{signal}; go on with --resume"));
    }

    fn on_exit(&mut self, exited: &Exited) {
        if self.stopped.is_some() {
            return;
        }
        let error = self.fleet.last_words(exited);
        let death = Death { code: exited.code(), error: error.clone(), step: self.status.step };
        let (slot, log) = (exited.slot, self.fleet.log(exited.slot));
        match self.replacement.on_death(death) {
            Verdict::Leave => {}
            Verdict::Replace(wait) => {
                self.progress.note(&format!("worker {slot}: {error}: replaced ({})", log.display()));
                if let Err(failure) = self.fleet.spawn(slot, wait) {
                    self.stop(failure.code, failure.reason);
                }
            }
            Verdict::Stop(code, reason) => {
                self.progress.note(&format!("worker {slot} ended; the end of {}:", log.display()));
                for line in self.fleet.log_tail(slot) {
                    self.progress.note(&format!("  {line}"));
                }
                self.stop(code, reason);
            }
        }
    }

    fn stop(&mut self, code: ExitCode, reason: String) {
        if let Some(shutdown) = self.shutdown.take() {
            // A coordinator that is gone has ended already.
            let _ = shutdown.send(reason.clone());
        }
        self.stopped.get_or_insert(Failure::new(code, reason));
    }
}
