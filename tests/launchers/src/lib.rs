//! Launchers: `deploy/slurm` and `deploy/docker` as people use them, on a Slurm and a Docker that are started here from
//! Debian's packages; and a table of what held.
//!
//! ```text
//! slurm ──► cluster   munged, slurmctld, two slurmd: own configuration, own state, own ports
//!    └────► job       sbatch, scontrol, scancel
//! docker ─► daemon    dockerd, where none runs
//!    └────► images    both Dockerfiles, on a base of debootstrap
//! both ───► program   the run that is tried everywhere, and what it must come to
//! ```
//! May never: link libtorch, or take a sleep for a synchronisation: sleeps here stand between two looks at something
//! with a deadline.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))] // a panic is how a test fails

pub mod docker;
pub mod program;
pub mod slurm;
mod wait;

use std::time::Instant;

use anyhow::Result;
use lockstep_chaos::{Line, Table, Verdict};

/// One thing that must hold.
struct Check<S> {
    /// What is done.
    what: &'static str,
    /// What must come of it.
    bound: &'static str,
    /// Does it: what was seen, or what went wrong.
    run: fn(&S) -> Result<String>,
}

/// Makes checks one after another, or those with one of the words of `only` in what they do; one that fails never hides
/// the next.
fn table<S>((shows, only): (&str, &[String]), checks: &[Check<S>], site: &S) -> Table {
    let mut table = Table::default();
    let is_wanted = |check: &&Check<S>| only.is_empty() || only.iter().any(|word| check.what.contains(word));
    for check in checks.iter().filter(is_wanted) {
        let started = Instant::now();
        let result = (check.run)(site);
        let mut line = Line::left_out(shows, check.what, "");
        line.count = "1".into();
        line.bound = check.bound.into();
        (line.figures, line.verdict, line.notes) = match result {
            Ok(figures) => (figures, Verdict::Pass, Vec::new()),
            Err(error) => (String::new(), Verdict::Miss, vec![format!("{error:#}")]),
        };
        let (seconds, figures) = (started.elapsed().as_secs_f64(), &line.figures);
        eprintln!("{:?} in {seconds:.0} s: {}: {figures}{}", line.verdict, check.what, line.notes.join(""));
        table.lines.push(line);
    }
    table
}
