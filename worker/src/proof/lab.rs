//! What every line works with: commands with limits, figures into the table, the time that is left.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::args::Config;
use super::child::{Running, Spec, describe};
use super::line::{Goal, LINES};
use super::table::{Ran, Table, Verdict};
use crate::exit::Exit;
use crate::session::Signal;

/// Why there is no figure.
pub type Reason = String;

/// Pairs that a verdict about a ratio takes.
pub const ENOUGH_PAIRS: usize = 5;

/// A proof that goes on.
pub struct Lab {
    /// What was asked.
    pub config: Config,
    /// What was found.
    pub table: Table,
    /// When the line in hand must have ended.
    pub deadline: Instant,
    signals: mpsc::Receiver<Signal>,
    /// A signal came: nothing more is started.
    pub interrupted: bool,
    line: &'static str,
    count: usize,
    began: Instant,
    /// The table could not be written.
    pub failure: Option<Exit>,
}

impl Lab {
    /// Before the first line.
    pub fn new(config: Config, table: Table, signals: mpsc::Receiver<Signal>) -> Self {
        let began = Instant::now();
        let deadline = began + config.budget;
        Self { config, table, deadline, signals, interrupted: false, line: "machine", count: 0, began, failure: None }
    }

    /// Turns to a line, which has until then.
    pub fn turn_to(&mut self, line: &'static str, deadline: Instant) {
        (self.line, self.deadline) = (line, deadline);
    }

    /// What the line in hand has left.
    pub fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Since the proof began.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Runs a command to its end within `limit` and the line's time; says what it printed.
    ///
    /// # Errors
    /// It cannot be started, fails, or takes too long, or the proof was interrupted.
    pub async fn run_within(&mut self, spec: &Spec, limit: Duration) -> Result<String, Reason> {
        let mut running = self.start(spec)?;
        self.finish(&mut running, limit).await?;
        Ok(running.stdout())
    }

    /// Waits for a command's end within `limit` and the line's time; what goes on longer is killed.
    ///
    /// # Errors
    /// It fails, or takes too long, or the proof was interrupted.
    pub async fn finish(&mut self, running: &mut Running, limit: Duration) -> Result<(), Reason> {
        let limit = limit.min(self.left()).min(self.config.limit.unwrap_or(Duration::MAX));
        let ended = tokio::select! {
            biased;
            signal = self.signals.recv() => {
                self.interrupted = true;
                Err(signal.map_or("interrupted".into(), |signal| format!("interrupted by {}", signal.0)))
            }
            ended = tokio::time::timeout(limit, running.wait()) => {
                ended.map_err(|_| format!("not done within {:.0} s", limit.as_secs_f64())).flatten()
            }
        };
        running.kill();
        let (how, result) = match ended {
            Ok(status) if status.success() => (describe(status), Ok(())),
            Ok(status) => (describe(status), Err(format!("{}: {}", describe(status), running.last_words()))),
            Err(why) => (why.clone(), Err(why)),
        };
        if let Some(ran) = self.table.commands.get_mut(running.number) {
            (ran.seconds, ran.ended) = (running.began.elapsed().as_secs_f64(), how);
        }
        result.map_err(|why| format!("{}: {why}", running.name))
    }

    /// The same, with all the time that the line has.
    ///
    /// # Errors
    /// As [`run_within`](Self::run_within).
    pub async fn run(&mut self, spec: &Spec) -> Result<String, Reason> {
        self.run_within(spec, Duration::MAX).await
    }

    /// Starts a command that runs beside others, and notes it.
    ///
    /// # Errors
    /// It cannot be started, or there is no time for it.
    pub fn start(&mut self, spec: &Spec) -> Result<Running, Reason> {
        if self.interrupted {
            return Err("interrupted".into());
        }
        if self.left().is_zero() {
            return Err(format!("{}: did not fit into the time of its line", spec.name));
        }
        self.count += 1;
        let log = format!("logs/{:03}-{}", self.count, spec.name);
        tracing::info!("{}: {}", self.line, spec.name);
        self.table.commands.push(Ran {
            line: self.line.into(),
            command: spec.shown(),
            seconds: 0.0,
            ended: "did not end".into(),
            log: log.clone(),
        });
        let number = self.table.commands.len() - 1;
        Running::start(spec, number, self.config.out.join(log)).inspect_err(|why| {
            if let Some(ran) = self.table.commands.last_mut() {
                ran.ended.clone_from(why);
            }
        })
    }

    /// Waits for something to become true of files that others write: there is nobody to be woken by.
    ///
    /// # Errors
    /// It does not within `limit` and the line's time, or the proof was interrupted.
    pub async fn watch(
        &mut self,
        limit: Duration,
        what: &str,
        mut is_true: impl FnMut() -> bool,
    ) -> Result<(), Reason> {
        let limit = limit.min(self.left());
        let mut look = tokio::time::interval(Duration::from_millis(20));
        let end = tokio::time::sleep(limit);
        tokio::pin!(end);
        loop {
            tokio::select! {
                biased;
                _ = self.signals.recv() => {
                    self.interrupted = true;
                    return Err("interrupted".into());
                }
                () = &mut end => return Err(format!("{what}: not within {:.0} s", limit.as_secs_f64())),
                _ = look.tick() => if is_true() { return Ok(()) },
            }
        }
    }

    /// A figure. `figure` is for people; `detail` has what it was made of.
    pub fn report(&mut self, key: &str, value: f64, figure: impl Into<String>, detail: Value) {
        let is_trial = self.config.is_trial();
        let (verdict, why) = match goal(key).is_met(value) {
            _ if is_trial => (Verdict::Trial, "on a CPU at a tiny size; a verdict needs a GPU"),
            Some(true) => (Verdict::Pass, ""),
            Some(false) => (Verdict::Miss, ""),
            None => (Verdict::Measured, ""),
        };
        let figure = figure.into();
        self.change(key, |row| {
            (row.verdict, row.value, row.figure) = (verdict, Some(value).filter(|value| value.is_finite()), figure);
            (row.why, row.detail) = (why.to_owned(), detail);
        });
    }

    /// The median of ratios, which decides something only if there are enough of them. `why` says why there are not more.
    pub fn report_ratios(&mut self, key: &str, ratios: &[f64], why: &str) {
        let Some(spread) = Spread::of(ratios) else {
            return self.could_not(key, if why.is_empty() { "no time was left for a pair" } else { why });
        };
        let figure = format!("{:.3} ({:.3}–{:.3}), {} pairs", spread.median, spread.least, spread.most, ratios.len());
        self.report(key, spread.median, figure, json!({ "pairs": ratios }));
        let is_enough = ratios.len() >= ENOUGH_PAIRS || goal(key) == Goal::Unset || self.config.is_trial();
        let few = format!("{} of {ENOUGH_PAIRS} pairs", ratios.len());
        self.change(key, |row| {
            if !is_enough {
                (row.verdict, row.why) = (Verdict::CouldNotRun, few);
            }
            let parts = [&*row.why, why].into_iter().filter(|text| !text.is_empty());
            row.why = parts.collect::<Vec<_>>().join("; ");
        });
    }

    /// No figure, and why.
    pub fn could_not(&mut self, key: &str, why: &str) {
        self.change(key, |row| (row.verdict, row.why) = (Verdict::CouldNotRun, why.to_owned()));
    }

    /// The same for all figures that nothing was said of yet.
    pub fn could_not_rest(&mut self, line: &str, why: &str) {
        let open = self.table.rows.iter().filter(|row| row.line == line && row.why == "not reached");
        let open: Vec<&'static str> = open.map(|row| row.key).collect();
        open.into_iter().for_each(|key| self.could_not(key, why));
    }

    fn change(&mut self, key: &str, change: impl FnOnce(&mut super::table::Row)) {
        if let Some(row) = self.table.row(key) {
            change(row);
            tracing::info!("{key}: {:?} {} {}", row.verdict, row.figure, row.why);
        }
        self.save();
    }

    /// Writes the table.
    pub fn save(&mut self) {
        self.table.seconds = self.elapsed().as_secs_f64();
        if let Err(exit) = self.table.write() {
            self.failure.get_or_insert(exit);
        }
    }

    /// A script of the peers'.
    ///
    /// # Errors
    /// No `--peers`, or it is not there.
    pub fn peer(&self, name: &str) -> Result<PathBuf, Reason> {
        let folder =
            self.config.peers.as_deref().ok_or("no --peers: the folder of PyTorch scripts to measure against")?;
        existing(&folder.join(name))
    }
}

fn existing(path: &Path) -> Result<PathBuf, Reason> {
    if path.is_file() { Ok(path.to_owned()) } else { Err(format!("{}: no such file", path.display())) }
}

fn goal(key: &str) -> Goal {
    let mut items = LINES.iter().flat_map(|line| line.items);
    items.find(|item| item.key == key).map_or(Goal::Unset, |item| item.goal)
}

/// Median and range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
}

impl Spread {
    /// Of some numbers; `None` of none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        Some(Self { median: crate::bench::median(sorted), least, most })
    }
}
