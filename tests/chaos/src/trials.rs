//! Trials of one line: counted, noted, and none hides the next.

use anyhow::Result;

use crate::table::{Line, Verdict};

/// Collects what trials say.
#[derive(Debug)]
pub struct Trials {
    line: Line,
    num_good: u32,
    num_bad: u32,
}

impl Trials {
    /// Of a promise: what is done, and what is promised.
    pub fn new(promise: &str, what: &str, bound: &str) -> Self {
        eprintln!("── {promise}: {what}");
        let line = Line {
            promise: promise.into(),
            what: what.into(),
            count: String::new(),
            figures: String::new(),
            bound: bound.into(),
            verdict: Verdict::Pass,
            notes: Vec::new(),
        };
        Self { line, num_good: 0, num_bad: 0 }
    }

    /// One trial; whether it was good.
    pub fn record(&mut self, result: Result<()>) -> bool {
        match result {
            Ok(()) => {
                self.num_good += 1;
                true
            }
            Err(error) => {
                self.num_bad += 1;
                self.note(format!("trial {}: {error:#}", self.num_good + self.num_bad));
                false
            }
        }
    }

    /// Something worth saying that is no trial.
    pub fn note(&mut self, note: String) {
        eprintln!("   {note}");
        self.line.notes.push(note);
    }

    /// Something that must hold over all trials.
    pub fn must(&mut self, what: &str, result: Result<()>) {
        if let Err(error) = result {
            self.line.verdict = Verdict::Miss;
            self.note(format!("{what}: {error:#}"));
        }
    }

    /// Whether all were good so far.
    pub fn are_good(&self) -> bool {
        self.num_bad == 0
    }

    /// The line, with its figures.
    pub fn line(mut self, figures: String) -> Line {
        let total = self.num_good + self.num_bad;
        if self.num_bad > 0 || total == 0 {
            self.line.verdict = Verdict::Miss;
        }
        self.line.count = if self.num_bad > 0 { format!("{} of {total}", self.num_good) } else { total.to_string() };
        self.line.figures = figures;
        eprintln!("   {} {:?}: {}", self.line.count, self.line.verdict, self.line.figures);
        self.line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_trial_is_a_miss_and_so_is_no_trial() {
        let mut trials = Trials::new("4", "kill", "≤ 5 s");
        assert!(trials.record(Ok(())));
        assert!(!trials.record(Err(anyhow::anyhow!("7 s"))));
        let line = trials.line(String::new());
        assert_eq!((line.verdict, line.count.as_str()), (Verdict::Miss, "1 of 2"));
        assert_eq!(line.notes, ["trial 2: 7 s"]);
        assert_eq!(Trials::new("4", "kill", "").line(String::new()).verdict, Verdict::Miss);
    }
}
