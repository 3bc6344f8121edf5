//! Whether a worker that died is replaced: a pure decision.

use std::time::Duration;

use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::Step;

/// The first wait before a new worker; doubled at each further death.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// More deaths than this end the run.
const MAX_DEATHS: usize = 10;

/// How a worker's process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    /// Its exit code; `None` when a signal killed it.
    pub code: Option<u8>,
    /// What it said last, or what killed it.
    pub error: String,
    /// The last committed step at that time.
    pub step: Step,
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It left in order; the run goes on without it, or is ending.
    Leave,
    /// Start another after this wait.
    Replace(Duration),
    /// Another would fare no better: end the run.
    Stop(ExitCode, String),
}

/// Deaths so far.
#[derive(Debug, Default)]
pub struct Replacement {
    deaths: Vec<Death>,
}

impl Replacement {
    /// Decides about one more death.
    pub fn on_death(&mut self, death: Death) -> Verdict {
        let code = death.code.and_then(ExitCode::from_code);
        match code {
            Some(ExitCode::Done | ExitCode::TempFail) => return Verdict::Leave,
            // The same recipe, data and machine would give the same answer.
            Some(
                code @ (ExitCode::Usage
                | ExitCode::Data
                | ExitCode::NoInput
                | ExitCode::CantCreate
                | ExitCode::Protocol
                | ExitCode::NoPermission
                | ExitCode::Config),
            ) => return Verdict::Stop(code, death.error),
            // It did not reach the coordinator, which runs in this process: its own trouble.
            Some(ExitCode::Unavailable | ExitCode::Software) | None => {}
        }
        let code = code.unwrap_or(ExitCode::Software);
        if self.deaths.iter().any(|before| before.step == death.step && before.error == death.error) {
            let reason = format!("a worker failed twice at step {} in the same way: {}", death.step, death.error);
            return Verdict::Stop(code, reason);
        }
        self.deaths.push(death);
        let num_deaths = self.deaths.len();
        if num_deaths > MAX_DEATHS {
            return Verdict::Stop(code, format!("{num_deaths} workers died; the logs say why"));
        }
        let doublings = u32::try_from(num_deaths - 1).unwrap_or(u32::MAX).min(16);
        Verdict::Replace((FIRST_WAIT * 2u32.pow(doublings)).min(LONGEST_WAIT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn death(code: Option<u8>, step: u64, error: &str) -> Death {
        Death { code, error: error.into(), step: Step(step) }
    }

    #[test]
    fn a_killed_worker_is_replaced_after_growing_waits() {
        let mut replacement = Replacement::default();
        let waits: Vec<_> = (1..=3).map(|step| replacement.on_death(death(None, step, "signal 9"))).collect();
        let expected = [500, 1000, 2000].map(|ms| Verdict::Replace(Duration::from_millis(ms)));
        assert_eq!(waits, expected);
    }

    #[test]
    fn twice_the_same_error_at_the_same_step_ends_the_run() {
        let mut replacement = Replacement::default();
        replacement.on_death(death(Some(70), 4, "loss is NaN"));
        let verdict = replacement.on_death(death(Some(70), 4, "loss is NaN"));
        let reason = "a worker failed twice at step 4 in the same way: loss is NaN".to_owned();
        assert_eq!(verdict, Verdict::Stop(ExitCode::Software, reason));
    }

    #[test]
    fn what_another_worker_would_meet_too_ends_the_run_at_once() {
        let verdict = Replacement::default().on_death(death(Some(66), 0, "no such folder"));
        assert_eq!(verdict, Verdict::Stop(ExitCode::NoInput, "no such folder".into()));
    }

    #[test]
    fn a_worker_that_left_in_order_is_not_replaced() {
        assert_eq!(Replacement::default().on_death(death(Some(75), 9, "drained")), Verdict::Leave);
        assert_eq!(Replacement::default().on_death(death(Some(0), 9, "")), Verdict::Leave);
    }

    #[test]
    fn replacing_has_an_end() {
        let mut replacement = Replacement::default();
        let last = (0..=MAX_DEATHS as u64).map(|step| replacement.on_death(death(None, step, "signal 9"))).last();
        assert!(matches!(last, Some(Verdict::Stop(ExitCode::Software, _))), "{last:?}");
    }
}
