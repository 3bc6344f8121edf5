//! How far a sweep is and how long it will take: a pure account of what its runs report.

use serde::Serialize;
use serde_json::Value;

/// One run's account.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Account {
    /// The first table with a row of this configuration.
    pub table: String,
    /// What that row is called.
    pub label: String,
    /// The configuration.
    pub slug: String,
    /// `train.seed`
    pub seed: u64,
    /// How it stands.
    pub phase: Phase,
    /// Last committed step.
    pub step: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Epoch of the last committed step.
    pub epoch: u64,
    /// Epochs of the whole run.
    pub total_epochs: u64,
    /// Training loss of the last committed step.
    pub loss: Option<f64>,
    /// Test error of the last evaluation.
    pub test_error: Option<f64>,
    /// Images a second, lately.
    pub images_per_s: Option<f64>,
    /// Work of the whole run.
    #[serde(skip)]
    pub cost: f64,
    /// The step at which this sweep took it up; `None` before its first step here.
    #[serde(skip)]
    pub from: Option<u64>,
}

/// How a run stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// To be done.
    #[default]
    Waiting,
    /// A child works on it.
    Running,
    /// Complete.
    Done,
    /// Ended with an error.
    Failed,
}

impl Account {
    /// Takes in a line of `lockstep train --json`.
    pub fn hear(&mut self, line: &Value) {
        let count = |key: &str| line[key].as_u64();
        let kind = line["kind"].as_str().unwrap_or_default();
        if !["step", "status", "epoch", "finished"].contains(&kind) {
            return;
        }
        if kind == "step" {
            let step = count("step").unwrap_or(0);
            self.from.get_or_insert(step.saturating_sub(1));
        }
        self.step = count("step").unwrap_or(self.step);
        self.epoch = count("epoch").unwrap_or(self.epoch);
        self.total_steps = count("total_steps").filter(|total| *total > 0).unwrap_or(self.total_steps);
        self.total_epochs = count("total_epochs").filter(|total| *total > 0).unwrap_or(self.total_epochs);
        self.loss = line["loss"].as_f64().or(self.loss);
        self.test_error = line["test_error"].as_f64().or(self.test_error);
        self.images_per_s = line["images_per_s"].as_f64().or(self.images_per_s);
    }

    fn fraction_at(&self, step: u64) -> f64 {
        if self.total_steps == 0 { 0.0 } else { (step as f64 / self.total_steps as f64).min(1.0) }
    }

    /// Work that is done, in this sweep or before.
    fn done(&self) -> f64 {
        self.cost * if self.phase == Phase::Done { 1.0 } else { self.fraction_at(self.step) }
    }

    /// Work that this sweep did.
    fn done_here(&self) -> f64 {
        let Some(from) = self.from else { return 0.0 };
        (self.done() - self.cost * self.fraction_at(from)).max(0.0)
    }

    /// Work that is still to be done; nobody waits for a run that failed.
    fn left(&self) -> f64 {
        if self.phase == Phase::Failed { 0.0 } else { self.cost - self.done() }
    }
}

/// All runs of a sweep.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// One a run, in the plan's order.
    pub accounts: Vec<Account>,
}

/// What is shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary<'a> {
    /// Of all.
    pub runs: usize,
    /// Complete.
    pub done: usize,
    /// Ended with an error.
    pub failed: usize,
    /// Share of the work that is done.
    pub fraction: f64,
    /// Seconds to the end at the rate of this sweep; `None` before there is one.
    pub eta_s: Option<f64>,
    /// Runs that are worked on.
    pub running: Vec<&'a Account>,
}

impl Tally {
    /// How it stands `elapsed_s` seconds after the first run was started.
    pub fn summary(&self, elapsed_s: f64) -> Summary<'_> {
        let sum = |of: fn(&Account) -> f64| self.accounts.iter().map(of).sum::<f64>();
        let all = sum(|account| account.cost);
        let (done_here, left) = (sum(Account::done_here), sum(Account::left));
        let eta_s = (done_here > 0.0 && elapsed_s > 0.0).then(|| left / (done_here / elapsed_s));
        let of = |phase: Phase| self.accounts.iter().filter(move |account| account.phase == phase);
        Summary {
            runs: self.accounts.len(),
            done: of(Phase::Done).count(),
            failed: of(Phase::Failed).count(),
            fraction: if all > 0.0 { sum(Account::done) / all } else { 0.0 },
            eta_s,
            running: of(Phase::Running).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn account(cost: f64, phase: Phase) -> Account {
        Account { cost, phase, total_steps: 100, ..Account::default() }
    }

    fn step(step: u64) -> Value {
        json!({ "kind": "step", "step": step, "epoch": 1, "loss": 0.5, "images_per_s": 10.0 })
    }

    #[test]
    fn time_left_follows_from_the_work_that_this_sweep_did() {
        let mut tally = Tally { accounts: vec![account(300.0, Phase::Done), account(100.0, Phase::Running)] };
        tally.accounts.push(account(200.0, Phase::Waiting));
        assert_eq!(tally.summary(5.0).eta_s, None);
        // Resumed at step 40: ten steps of a hundred in five seconds are two units a second.
        (41..=50).for_each(|n| tally.accounts[1].hear(&step(n)));
        let summary = tally.summary(5.0);
        assert_eq!((summary.runs, summary.done, summary.failed), (3, 1, 0));
        assert!((summary.fraction - 350.0 / 600.0).abs() < 1e-12, "{summary:?}");
        assert!((summary.eta_s.unwrap() - 250.0 / 2.0).abs() < 1e-9, "{summary:?}");
        assert_eq!(summary.running[0].loss, Some(0.5));
    }

    #[test]
    fn a_run_that_failed_is_waited_for_no_longer() {
        let mut tally = Tally { accounts: vec![account(100.0, Phase::Running), account(100.0, Phase::Failed)] };
        (1..=50).for_each(|n| tally.accounts[0].hear(&step(n)));
        assert!((tally.summary(10.0).eta_s.unwrap() - 10.0).abs() < 1e-9);
    }

    #[test]
    fn what_a_training_prints_is_understood() {
        let mut account = Account::default();
        account.hear(
            &json!({ "kind": "status", "step": 0, "epoch": 0, "total_steps": 12, "total_epochs": 3, "loss": null }),
        );
        account.hear(&step(1));
        account.hear(&json!({ "kind": "epoch", "epoch": 1, "step": 4, "test_error": 0.25, "images_per_s": 11.0 }));
        account.hear(&json!({ "kind": "event", "event": "joined", "step": 0 }));
        account.hear(&json!("nonsense"));
        let expected = Account {
            step: 4,
            total_steps: 12,
            epoch: 1,
            total_epochs: 3,
            loss: Some(0.5),
            test_error: Some(0.25),
            images_per_s: Some(11.0),
            from: Some(0),
            ..Account::default()
        };
        assert_eq!(account, expected);
    }
}
