//! What a scenario found, and the table of all.

use std::fmt::Write as _;

/// Whether a promise held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// In every trial.
    Pass,
    /// Not in every trial, or the scenario could not be carried through.
    Miss,
    /// Not tried; the note says why.
    LeftOut,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Miss => "MISS",
            Self::LeftOut => "left out",
        }
    }
}

/// A line of the table.
#[derive(Clone, Debug)]
pub struct Line {
    /// Number of the promise, or `shows N`.
    pub promise: String,
    /// What was done.
    pub what: String,
    /// How often.
    pub count: String,
    /// What was seen.
    pub figures: String,
    /// What was promised.
    pub bound: String,
    /// Whether that held.
    pub verdict: Verdict,
    /// What went wrong, trial by trial; why it was left out.
    pub notes: Vec<String>,
}

impl Line {
    /// A line that says why something was not tried.
    pub fn left_out(promise: &str, what: &str, why: &str) -> Self {
        Self {
            promise: promise.into(),
            what: what.into(),
            count: "0".into(),
            figures: String::new(),
            bound: String::new(),
            verdict: Verdict::LeftOut,
            notes: vec![why.into()],
        }
    }
}

/// All lines of a call.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// In the order in which scenarios ran.
    pub lines: Vec<Line>,
}

/// A promise is noted at most so often; the rest is counted.
const MAX_NOTES: usize = 8;

impl Table {
    /// Lines that missed.
    pub fn misses(&self) -> Vec<&Line> {
        self.lines.iter().filter(|line| line.verdict == Verdict::Miss).collect()
    }

    /// As Markdown: the table, then the notes.
    pub fn markdown(&self) -> String {
        let mut text = String::from("| # | what | count | figures | bound | verdict |\n|---|---|---|---|---|---|\n");
        for line in &self.lines {
            let Line { promise, what, count, figures, bound, verdict, .. } = line;
            let verdict = verdict.name();
            let _ = writeln!(text, "| {promise} | {what} | {count} | {figures} | {bound} | {verdict} |");
        }
        for line in self.lines.iter().filter(|line| !line.notes.is_empty()) {
            let _ = writeln!(text, "\n{} ({}), {}:\n", line.promise, line.what, line.verdict.name());
            for note in line.notes.iter().take(MAX_NOTES) {
                let _ = writeln!(text, "- {}", note.replace('\n', "\n  "));
            }
            if line.notes.len() > MAX_NOTES {
                let _ = writeln!(text, "- and {} more", line.notes.len() - MAX_NOTES);
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_miss_and_what_was_left_out_can_be_read_from_the_page() {
        let mut miss = Line::left_out("4", "kill −9 of a worker", "trial 3: 7 s");
        miss.verdict = Verdict::Miss;
        let table = Table { lines: vec![miss, Line::left_out("5", "interface down", "needs root")] };
        let page = table.markdown();
        assert!(page.contains("| 4 | kill −9 of a worker | 0 |  |  | MISS |\n"), "{page}");
        assert!(page.contains("5 (interface down), left out:\n\n- needs root\n"), "{page}");
        assert_eq!(table.misses().len(), 1);
    }
}
