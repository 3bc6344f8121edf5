//! What was found, written after every figure: a proof that is killed leaves what it had.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use lockstep_proto::exit::ExitCode;
use serde::Serialize;
use serde_json::Value;

use super::line::{Item, LINES};
use crate::exit::Exit;

/// How a figure stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It reaches its goal.
    Pass,
    /// It does not.
    Miss,
    /// It has none to reach.
    Measured,
    /// It was taken on a CPU at a tiny size, to try the proof: no word about a GPU.
    Trial,
    /// There is none that counts; the reason stands beside it.
    CouldNotRun,
}

impl Verdict {
    fn text(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Miss => "**miss**",
            Self::Measured => "measured",
            Self::Trial => "trial",
            Self::CouldNotRun => "could not run",
        }
    }
}

/// A figure and how it was found.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Line of the proof.
    pub line: &'static str,
    /// Name of the figure.
    pub key: &'static str,
    /// What it is.
    pub what: &'static str,
    /// What it is measured by.
    pub goal: String,
    /// How it stands.
    pub verdict: Verdict,
    /// The number; absent where none was measured.
    pub value: Option<f64>,
    /// The number with its spread, for people.
    pub figure: String,
    /// Why it could not run, or what else should be known.
    pub why: String,
    /// What else was measured: every pair, every seed.
    pub detail: Value,
}

/// A command as it was run.
#[derive(Clone, Debug, Serialize)]
pub struct Ran {
    /// For which line.
    pub line: String,
    /// As a shell takes it, with the variables that were set.
    pub command: String,
    /// Seconds.
    pub seconds: f64,
    /// How it ended.
    pub ended: String,
    /// What it said, below the folder: `.out` and `.err`.
    pub log: String,
}

/// Everything.
#[derive(Debug, Serialize)]
pub struct Table {
    /// When it began, UTC.
    pub date: String,
    /// Machine and versions, by name.
    pub machine: Vec<(String, String)>,
    /// Seconds so far.
    pub seconds: f64,
    /// Whether all lines had their turn.
    pub complete: bool,
    /// Every figure of every line that was asked for.
    pub rows: Vec<Row>,
    /// Every command.
    pub commands: Vec<Ran>,
    #[serde(skip)]
    folder: PathBuf,
}

impl Table {
    /// All figures of the lines `only`, none of them measured yet.
    pub fn new(folder: &Path, date: String, only: &[&str]) -> Self {
        let lines = LINES.iter().filter(|line| only.contains(&line.name));
        let row = |line: &'static str, item: &Item| Row {
            line,
            key: item.key,
            what: item.what,
            goal: item.goal.to_string(),
            verdict: Verdict::CouldNotRun,
            value: None,
            figure: String::new(),
            why: "not reached".into(),
            detail: Value::Null,
        };
        let rows = lines.flat_map(|line| line.items.iter().map(move |item| row(line.name, item))).collect();
        let folder = folder.to_owned();
        Self { date, machine: Vec::new(), seconds: 0.0, complete: false, rows, commands: Vec::new(), folder }
    }

    /// The row of a figure.
    pub fn row(&mut self, key: &str) -> Option<&mut Row> {
        self.rows.iter_mut().find(|row| row.key == key)
    }

    /// Writes both files, each whole or not at all.
    ///
    /// # Errors
    /// They cannot be written (73).
    pub fn write(&self) -> Result<(), Exit> {
        let json =
            serde_json::to_string_pretty(self).map_err(|error| Exit::new(ExitCode::Software, error.to_string()))?;
        for (name, text) in [("proof.json", json), ("proof.md", self.markdown())] {
            let (path, unfinished) = (self.folder.join(name), self.folder.join(format!(".{name}")));
            let written = std::fs::write(&unfinished, text).and_then(|()| std::fs::rename(&unfinished, &path));
            let cannot = |error| Exit::new(ExitCode::CantCreate, format!("cannot write {}: {error}", path.display()));
            written.map_err(cannot)?;
        }
        Ok(())
    }

    /// The table for people.
    pub fn markdown(&self) -> String {
        let mut text = format!("# Proof of {}\n\n", self.date);
        let count = |verdict: Verdict| self.rows.iter().filter(|row| row.verdict == verdict).count();
        let counts = [Verdict::Pass, Verdict::Miss, Verdict::Measured, Verdict::Trial, Verdict::CouldNotRun];
        let counts = counts.into_iter().filter(|verdict| count(*verdict) > 0);
        let counts: Vec<_> = counts.map(|verdict| format!("{} {}", count(verdict), verdict.text())).collect();
        let state = if self.complete { "" } else { ", not finished" };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}; {:.0} s{state}.\n\n| machine | |\n|---|---|", counts.join(", "), self.seconds);
        for (name, value) in &self.machine {
            let _ = writeln!(text, "| {name} | {} |", cell(value));
        }
        text.push_str("\n| line | what | figure | goal | | |\n|---|---|---|---|---|---|\n");
        for row in &self.rows {
            let verdict = row.verdict.text();
            let cells = [row.line, row.what, &row.figure, &row.goal, verdict, &row.why].map(cell);
            let _ = writeln!(text, "| {} |", cells.join(" | "));
        }
        text.push_str("\n## Commands\n");
        let mut line = "";
        for ran in &self.commands {
            if ran.line != line {
                line = &ran.line;
                let _ = writeln!(text, "\nLine {line}:\n");
            }
            let command = ran.command.split_whitespace().collect::<Vec<_>>().join(" ");
            let _ = writeln!(text, "- `{command}` — {}, {:.1} s, `{}`", ran.ended, ran.seconds, ran.log);
        }
        text
    }
}

/// Text that does not break a table.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_begins_with_every_figure_unmeasured_and_survives_anything_said() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = Table::new(dir.path(), "2026-01-01T00:00:00Z".into(), &["1", "6"]);
        assert_eq!(table.rows.len(), 7);
        assert!(table.rows.iter().all(|row| row.verdict == Verdict::CouldNotRun && row.why == "not reached"));
        let row = table.row("losses_fp32").unwrap();
        (row.verdict, row.value, row.figure) = (Verdict::Miss, Some(0.5), "0.5".into());
        row.why = "a | b\nc".into();
        table.write().unwrap();
        let markdown = std::fs::read_to_string(dir.path().join("proof.md")).unwrap();
        assert!(markdown.contains("| **miss** | a \\| b c |\n"), "{markdown}");
        assert!(markdown.contains("1 **miss**, 6 could not run; 0 s, not finished."), "{markdown}");
        let json: Value =
            serde_json::from_str(&std::fs::read_to_string(dir.path().join("proof.json")).unwrap()).unwrap();
        assert_eq!((&json["rows"][0]["verdict"], &json["rows"][0]["value"]), (&"miss".into(), &0.5.into()));
    }
}
