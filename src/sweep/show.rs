//! What a person or a program sees while a sweep goes on.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::json;

use super::measure::Measured;
use super::tally::{Account, Summary};
use crate::failure::Failure;
use crate::output;
use crate::train::duration;

/// The bar's length stands for all work.
const WHOLE: u64 = 10_000;

/// Bars on a terminal, lines on a pipe, JSON for programs.
pub enum Show {
    /// A bar for all, and a line a running run.
    Bars {
        /// Keeps them together.
        all: MultiProgress,
        /// Of the whole sweep.
        whole: ProgressBar,
        /// One a run at once.
        runs: Vec<ProgressBar>,
    },
    /// Plain lines.
    Lines,
    /// Lines of JSON.
    Json,
}

impl Show {
    /// For programs, a terminal, or anything else.
    pub fn new(json: bool) -> Self {
        if json {
            return Self::Json;
        }
        if !std::io::stderr().is_terminal() {
            return Self::Lines;
        }
        let all = MultiProgress::new();
        let whole = all.add(ProgressBar::new(WHOLE));
        if let Ok(style) = ProgressStyle::with_template("{wide_bar} {percent} %  {msg}") {
            whole.set_style(style);
        }
        Self::Bars { all, whole, runs: Vec::new() }
    }

    /// How often there is news worth a line.
    pub fn every(&self, log_every_s: f64) -> Duration {
        match self {
            Self::Bars { .. } => Duration::from_millis(500),
            Self::Lines | Self::Json => Duration::try_from_secs_f64(log_every_s)
                .unwrap_or(Duration::from_secs(10))
                .max(Duration::from_millis(10)),
        }
    }

    /// Says something to people.
    pub fn say(&self, text: &str) {
        match self {
            Self::Bars { all, .. } => all.suspend(|| output::line(text)),
            Self::Lines => output::line(text),
            Self::Json => {}
        }
    }

    /// Warns, programs too.
    pub fn note(&self, text: &str) {
        match self {
            Self::Bars { all, .. } => all.suspend(|| output::note(text)),
            Self::Lines | Self::Json => output::note(text),
        }
    }

    /// What was measured before the first run.
    pub fn measured(&self, measured: &[Measured], jobs: usize) {
        if matches!(self, Self::Json) {
            output::json(&json!({ "kind": "measured", "ways": measured, "jobs": jobs }));
            return;
        }
        let ways = measured
            .iter()
            .map(|way| format!("{} at once, {} threads each, {:.0} images/s", way.jobs, way.threads, way.images_per_s));
        self.say(&format!("measured: {}; taking {jobs} at once", ways.collect::<Vec<_>>().join("; ")));
    }

    /// A run was begun or taken up again.
    pub fn started(&self, account: &Account) {
        if matches!(self, Self::Json) {
            output::json(
                &json!({ "kind": "run_started", "table": account.table, "label": account.label, "slug": account.slug, "seed": account.seed }),
            );
        } else {
            self.say(&format!("started  {}", name(account)));
        }
    }

    /// A run ended.
    pub fn ended(&self, account: &Account, failure: Option<&Failure>) {
        if matches!(self, Self::Json) {
            output::json(&json!({
                "kind": "run_ended", "table": account.table, "label": account.label, "slug": account.slug, "seed": account.seed, "test_error": account.test_error,
                "code": failure.map_or(0, |failure| failure.code.code()),
                "reason": failure.map(|failure| &failure.reason),
            }));
            return;
        }
        match (failure, account.test_error) {
            (Some(failure), _) => self.note(&format!("failed   {}: {failure}", name(account))),
            (None, Some(error)) => self.say(&format!("done     {}: test error {error:.4}", name(account))),
            (None, None) => self.say(&format!("done     {}", name(account))),
        }
    }

    /// How the sweep stands.
    pub fn progress(&mut self, summary: &Summary<'_>) {
        match self {
            Self::Json => {
                let mut value = json!(summary);
                value["kind"] = "sweep".into();
                output::json(&value);
            }
            Self::Lines => {
                let mut parts = vec![format!("{:.1} %", summary.fraction * 100.0), headline(summary)];
                parts.extend(summary.running.iter().map(|account| describe(account)));
                output::line(parts.join("  |  "));
            }
            Self::Bars { all, whole, runs } => {
                whole.set_position((summary.fraction * WHOLE as f64) as u64);
                whole.set_message(headline(summary));
                while runs.len() < summary.running.len() {
                    let bar = all.add(ProgressBar::no_length());
                    if let Ok(style) = ProgressStyle::with_template("  {wide_msg}") {
                        bar.set_style(style);
                    }
                    runs.push(bar);
                }
                for (i, bar) in runs.iter().enumerate() {
                    bar.set_message(summary.running.get(i).map(|account| describe(account)).unwrap_or_default());
                }
            }
        }
    }

    /// Leaves the terminal clean.
    pub fn finish(&self) {
        if let Self::Bars { all, .. } = self {
            // A terminal that is gone needs no cleaning.
            let _ = all.clear();
        }
    }
}

/// `2/11 runs, 1 failed, 3 min 20 s left`
fn headline(summary: &Summary<'_>) -> String {
    let mut parts = vec![format!("{}/{} runs", summary.done, summary.runs)];
    if summary.failed > 0 {
        parts.push(format!("{} failed", summary.failed));
    }
    parts.extend(summary.eta_s.map(|eta| format!("{} left", duration(eta))));
    parts.join(", ")
}

fn name(account: &Account) -> String {
    format!("{}: {}, seed {}", account.table, account.label, account.seed)
}

/// Name, epoch, step, loss.
fn describe(account: &Account) -> String {
    let mut text = name(account);
    if account.total_steps > 0 {
        text.push_str(&format!(
            "  epoch {}/{} step {}/{}",
            account.epoch, account.total_epochs, account.step, account.total_steps
        ));
    }
    if let Some(loss) = account.loss {
        text.push_str(&format!(" loss {loss:.4}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_the_sweep_and_each_run_is() {
        let account = Account {
            table: "short".into(),
            label: "ReLU, BN after add".into(),
            seed: 1,
            step: 6,
            total_steps: 12,
            epoch: 2,
            total_epochs: 3,
            loss: Some(1.5),
            ..Account::default()
        };
        let summary =
            Summary { runs: 11, done: 2, failed: 1, fraction: 0.25, eta_s: Some(200.0), running: vec![&account] };
        assert_eq!(headline(&summary), "2/11 runs, 1 failed, 3 min 20 s left");
        assert_eq!(describe(&account), "short: ReLU, BN after add, seed 1  epoch 2/3 step 6/12 loss 1.5000");
    }
}
