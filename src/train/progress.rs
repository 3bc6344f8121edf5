//! What a person or a program sees while a run goes on.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use lockstep_coordinator::Progress as News;
use lockstep_coordinator::store::EpochRow;
use lockstep_proto::status::{Phase, Status};
use serde_json::{Value, json};

use crate::output;

/// A bar on a terminal, lines on a pipe, JSON for programs.
pub enum Progress {
    /// A terminal.
    Bar(ProgressBar),
    /// Plain lines, not more often than `every`.
    Lines {
        /// The least time between two.
        every: Duration,
        /// When there was one.
        last: Option<Instant>,
    },
    /// A line of JSON for each piece of news.
    Json,
}

impl Progress {
    /// For programs, a terminal, or anything else.
    pub fn new(json: bool, every_s: f64) -> Self {
        if json {
            return Self::Json;
        }
        if std::io::stderr().is_terminal() {
            let bar = ProgressBar::no_length();
            if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len}  {msg}") {
                bar.set_style(style);
            }
            return Self::Bar(bar);
        }
        Self::Lines { every: Duration::try_from_secs_f64(every_s).unwrap_or(Duration::from_secs(10)), last: None }
    }

    /// Shows news of a run in the state `status`.
    pub fn show(&mut self, news: &News, status: &Status, now: Instant) {
        match (self, news) {
            (Self::Json, _) => output::json(&json(news)),
            (Self::Bar(bar), News::Status(status)) => {
                bar.set_length(status.total_steps);
                bar.set_position(status.step.0);
                bar.set_message(describe(status));
            }
            (Self::Bar(bar), News::Epoch(row)) => bar.suspend(|| output::line(epoch(row))),
            (Self::Lines { .. }, News::Epoch(row)) => output::line(epoch(row)),
            (Self::Lines { every, last }, News::Status(_) | News::Step(_)) => {
                if last.is_none_or(|last| now.duration_since(last) >= *every) && status.total_steps > 0 {
                    *last = Some(now);
                    output::line(format!("step {}/{}  {}", status.step, status.total_steps, describe(status)));
                }
            }
            (Self::Bar(_) | Self::Lines { .. }, News::Step(_) | News::Event(_)) => {}
        }
    }

    /// Tells of something that happened, without disturbing the bar.
    pub fn note(&self, text: &str) {
        match self {
            Self::Bar(bar) => bar.suspend(|| output::note(text)),
            Self::Lines { .. } | Self::Json => output::note(text),
        }
    }

    /// Leaves the terminal clean.
    pub fn finish(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// News as one object, its `kind` named.
fn json(news: &News) -> Value {
    let (kind, mut value) = match news {
        News::Status(status) => ("status", json!(status)),
        News::Epoch(row) => ("epoch", json!(row)),
        News::Event(row) => {
            let mut value = json!(row);
            value["event"] = value["kind"].take();
            ("event", value)
        }
        News::Step(row) => {
            let value = json!({
                "step": row.step, "epoch": row.epoch, "generation": row.generation, "world_size": row.world_size,
                "lr": row.lr, "loss": row.loss, "error": row.error, "samples": row.samples,
                "images_per_s": row.images_per_s(),
            });
            ("step", value)
        }
    };
    value["kind"] = kind.into();
    value
}

fn epoch(row: &EpochRow) -> String {
    let mut parts = vec![format!("epoch {}", row.epoch)];
    parts.extend(row.lr.map(|lr| format!("lr {lr}")));
    parts.extend(row.train_loss.map(|loss| format!("train loss {loss:.4}")));
    parts.extend(row.train_error.map(|error| format!("train error {error:.4}")));
    parts.extend(row.test_error.map(|error| format!("test error {error:.4}")));
    parts.extend(row.images_per_s.map(|rate| format!("{rate:.0} images/s")));
    parts.join("  ")
}

/// Epoch, loss, error, rate, time left.
pub fn describe(status: &Status) -> String {
    let mut parts = Vec::new();
    match status.phase {
        Phase::Waiting => parts.push("waiting for workers".to_owned()),
        Phase::Syncing => parts.push(format!("syncing {} ranks", status.world_size)),
        Phase::Halting => parts.push("workers are taking stock".to_owned()),
        Phase::Draining => parts.push("ending".to_owned()),
        Phase::Training | Phase::Done | Phase::Failed => {}
    }
    parts.push(format!("epoch {}/{}", status.epoch, status.total_epochs));
    parts.extend(status.loss.map(|loss| format!("loss {loss:.4}")));
    parts.extend(status.error.map(|error| format!("error {error:.4}")));
    parts.extend(status.test_error.map(|error| format!("test {error:.4}")));
    parts.extend(status.images_per_s.map(|rate| format!("{rate:.0} images/s")));
    if status.phase == Phase::Training {
        parts.extend(status.eta_s.map(|eta| format!("{} left", duration(eta))));
    }
    parts.join("  ")
}

/// `1 h 02 min`, `3 min 20 s`, `12 s`.
pub fn duration(seconds: f64) -> String {
    let seconds = if seconds.is_finite() { seconds.max(0.0).round() as u64 } else { 0 };
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s:02} s"),
        (h, m, _) => format!("{h} h {m:02} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_at_a_glance() {
        assert_eq!(duration(12.2), "12 s");
        assert_eq!(duration(200.0), "3 min 20 s");
        assert_eq!(duration(3725.0), "1 h 02 min");
        assert_eq!(duration(f64::NAN), "0 s");
    }

    #[test]
    fn a_run_in_training_shows_what_matters() {
        let status = Status {
            phase: Phase::Training,
            total_epochs: 5,
            loss: Some(1.25),
            error: Some(0.5),
            images_per_s: Some(312.4),
            eta_s: Some(65.0),
            ..Status::default()
        };
        assert_eq!(describe(&status), "epoch 0/5  loss 1.2500  error 0.5000  312 images/s  1 min 05 s left");
    }
}
