//! Runs a plan: several children at once, until all runs are done, have failed, or the sweep is asked to end.
//!
//! ```text
//! pending ─► free slot ─► job (child process) ─► ended: done │ failed: noted, others go on
//!                              │ news
//! signal ─► leave: children save and end ─► 75    ▼
//! second signal ─► kill                          tally ─► show
//! ```

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Instant;

use lockstep_proto::exit::ExitCode;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::jobs::{Ended, Job};
use super::lock::Lock;
use super::plan::Plan;
use super::share::{Sharing, share};
use super::show::Show;
use super::state::Mark;
use super::stock::{take_stock, write_recipe};
use super::tally::{Phase, Tally};
use crate::exec;
use crate::failure::Failure;
use crate::signals::Signals;

/// So much news may wait to be counted.
const NEWS: usize = 1024;

/// Runs everything in a plan that is not done.
///
/// # Errors
/// 73 when another sweep runs in the folder; 64 when a directory holds another run; 75 after a signal; the code of the
/// first run that failed.
pub fn run(plan: &Plan, out: &Path, sharing: &Sharing, json: bool) -> Result<(), Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::new(ExitCode::Config, format!("cannot tell where this program is: {error}")))?;
    let worker = exec::worker_path()?;
    let _lock = Lock::take(out)?;
    let (tally, pending) = take_stock(plan)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(ExitCode::Software, format!("cannot start threads: {error}")))?;
    runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let show = Show::new(json);
        let resumed = pending.iter().filter(|&&run| tally.accounts[run].step > 0).count();
        show.say(&format!(
            "{} runs of {} configurations: {} done, {resumed} to be resumed, {} to be begun",
            plan.runs.len(),
            plan.configs.len(),
            plan.runs.len() - pending.len(),
            pending.len() - resumed
        ));
        let first = pending.front().map(|run| &plan.runs[*run]);
        let (jobs, threads) = tokio::select! {
            biased;
            _ = signals.next() => return Err(interrupted(&tally)),
            shares = share(first, pending.len(), sharing, worker, &show) => shares?,
        };
        let slots = (0..jobs).rev().map(|slot| sharing.devices[slot % sharing.devices.len()].clone()).collect();
        let sweeping = Sweeping {
            plan,
            program,
            threads,
            slots,
            pending,
            tally,
            show,
            jobs: JoinSet::new(),
            leave: watch::Sender::new(false),
            failures: Vec::new(),
            is_stopped: false,
            began: Instant::now(),
        };
        sweeping.live(&mut signals).await
    })
}

fn interrupted(tally: &Tally) -> Failure {
    let summary = tally.summary(0.0);
    let reason = format!("interrupted with {} of {} runs done; the same command goes on", summary.done, summary.runs);
    Failure::new(ExitCode::TempFail, reason)
}

/// A sweep while it goes on.
struct Sweeping<'a> {
    plan: &'a Plan,
    program: PathBuf,
    threads: usize,
    /// Devices of free slots.
    slots: Vec<String>,
    pending: VecDeque<usize>,
    tally: Tally,
    show: Show,
    /// Each gives its slot's device back.
    jobs: JoinSet<(Ended, String)>,
    /// True once all children are to leave.
    leave: watch::Sender<bool>,
    failures: Vec<(usize, Failure)>,
    is_stopped: bool,
    began: Instant,
}

impl Sweeping<'_> {
    async fn live(mut self, signals: &mut Signals) -> Result<(), Failure> {
        let (sender, mut news) = mpsc::channel(NEWS);
        let log_every_s = self.plan.configs.first().map_or(10.0, |config| config.recipe.log.every_s);
        let mut tick = tokio::time::interval(self.show.every(log_every_s));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.fill(&sender);
            if self.jobs.is_empty() {
                break;
            }
            tokio::select! {
                biased;
                signal = signals.next() => self.on_signal(signal).await,
                Some(joined) = self.jobs.join_next() => {
                    while let Ok((run, line)) = news.try_recv() {
                        self.on_news(run, &line);
                    }
                    let (ended, device) = joined.map_err(|error| Failure::new(ExitCode::Software, error.to_string()))?;
                    self.slots.push(device);
                    self.on_ended(ended);
                }
                Some((run, line)) = news.recv() => self.on_news(run, &line),
                _ = tick.tick() => self.show.progress(&self.tally.summary(self.began.elapsed().as_secs_f64())),
            }
        }
        self.show.progress(&self.tally.summary(self.began.elapsed().as_secs_f64()));
        self.show.finish();
        self.outcome()
    }

    /// Starts runs while there are free slots.
    fn fill(&mut self, news: &mpsc::Sender<(usize, Value)>) {
        while !self.is_stopped && !self.slots.is_empty() {
            let Some(index) = self.pending.pop_front() else { return };
            let run = &self.plan.runs[index];
            let prepared = write_recipe(run).and_then(|recipe| {
                Mark::remove(&run.dir).map_err(|error| Failure::unwritable(&run.dir, error))?;
                Ok(recipe)
            });
            let recipe = match prepared {
                Ok(recipe) => recipe,
                Err(failure) => {
                    self.on_ended(Ended { run: index, failure: Some(failure) });
                    continue;
                }
            };
            // invariant: the loop's condition
            let device = self.slots.pop().unwrap_or_default();
            self.tally.accounts[index].phase = Phase::Running;
            self.show.started(&self.tally.accounts[index]);
            let job = Job {
                run: index,
                program: self.program.clone(),
                recipe,
                dir: run.dir.clone(),
                log: run.dir.with_extension("log"),
                device: device.clone(),
                threads: self.threads,
            };
            let (news, leave) = (news.clone(), self.leave.subscribe());
            self.jobs.spawn(async move { (job.live(news, leave).await, device) });
        }
    }

    fn on_news(&mut self, run: usize, line: &Value) {
        self.tally.accounts[run].hear(line);
    }

    fn on_ended(&mut self, ended: Ended) {
        let account = &mut self.tally.accounts[ended.run];
        let was_asked = self.is_stopped && ended.failure.as_ref().is_some_and(|f| f.code == ExitCode::TempFail);
        account.phase = match &ended.failure {
            None => Phase::Done,
            Some(_) if was_asked => Phase::Waiting,
            Some(_) => Phase::Failed,
        };
        if was_asked {
            return;
        }
        self.show.ended(account, ended.failure.as_ref());
        let Some(failure) = ended.failure else { return };
        // Whoever was interrupted goes on next time like any other; it has nothing wrong.
        if failure.code != ExitCode::TempFail
            && let Err(error) = Mark::new(failure.code, &failure.reason).write(&self.plan.runs[ended.run].dir)
        {
            self.show.note(&format!("cannot keep why it failed: {error}"));
        }
        self.failures.push((ended.run, failure));
    }

    async fn on_signal(&mut self, signal: &str) {
        if self.is_stopped {
            self.show.finish();
            self.jobs.shutdown().await;
            self.show.note(&format!("error: {signal} again: ended without saving; the same command goes on"));
            std::process::exit(ExitCode::TempFail.code().into());
        }
        self.is_stopped = true;
        self.show.note(&format!("{signal}: {} runs save and end; once more ends at once", self.jobs.len()));
        self.leave.send_replace(true);
    }

    fn outcome(&self) -> Result<(), Failure> {
        let Some((_, first)) = self.failures.first() else {
            if self.is_stopped && self.tally.accounts.iter().any(|account| account.phase != Phase::Done) {
                return Err(interrupted(&self.tally));
            }
            self.show.say(&format!("all {} runs are done", self.plan.runs.len()));
            return Ok(());
        };
        let lines = self.failures.iter().map(|(run, failure)| {
            let log = self.plan.runs[*run].dir.with_extension("log");
            format!("{}: {} ({})", self.plan.runs[*run].dir.display(), failure.reason, log.display())
        });
        let lines: Vec<_> = lines.collect();
        let reason = format!(
            "{} of {} runs failed; the same command tries them again:\n  {}",
            lines.len(),
            self.plan.runs.len(),
            lines.join("\n  ")
        );
        let code = if self.is_stopped { ExitCode::TempFail } else { first.code };
        Err(Failure::new(code, reason))
    }
}
