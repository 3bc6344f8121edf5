//! Chaos: Lockstep's own executables, as an operator starts them, under real faults; and a table of what held.
//!
//! ```text
//! scenario ──► cluster   coordinator and workers: processes, on loopback or each in a network namespace
//!     │           └──── faults   signals · proxy (delay, one-way loss, cut) · cables · small disks · flipped bits
//!     ├──► watch     what the run wrote down: commits, generations, events
//!     └──► table     promise, count, figures, bound, verdict; a scenario that fails never hides the next
//! ```
//! Runs are compared with undisturbed ones, to the bit, and audited by `lockstep audit`.
//! May never: link libtorch, look inside a process, or take a sleep for a synchronisation: sleeps here are faults, or
//! stand between two looks at something with a deadline.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))] // a panic is how a test fails

mod arena;
mod cluster;
mod course;
mod disk;
mod figures;
mod lab;
mod net;
mod options;
mod process;
mod proxy;
mod random;
mod recipe;
mod scenario;
mod table;
mod throttle;
mod trials;
mod watch;

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Result, bail};

pub use self::course::Course;
pub use self::options::{Amount, Options};
pub use self::process::{Process, run as run_program, signal, until_every};
pub use self::table::{Line, Table, Verdict};
pub use self::watch::{Commit, Event, Watch};

/// Runs all scenarios that were asked for, one after another. What breaks one is a line of the table.
///
/// # Errors
/// When nothing can be begun: an executable is missing, a name is unknown.
pub fn run(options: Options) -> Result<Table> {
    for wanted in &options.only {
        if !scenario::ALL.iter().any(|scenario| scenario.is_in(std::slice::from_ref(wanted))) {
            bail!("--only {wanted}: neither a promise nor a scenario; see --list");
        }
    }
    net::sweep();
    let lab = lab::Lab::new(options)?;
    let mut table = Table::default();
    for scenario in scenario::ALL.iter().filter(|scenario| scenario.is_in(&lab.options.only)) {
        let result = catch_unwind(AssertUnwindSafe(|| scenario.run(&lab)));
        let broken = match result {
            Ok(Ok(lines)) => {
                table.lines.extend(lines);
                continue;
            }
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => "the scenario panicked".to_owned(),
        };
        let mut line = Line::left_out(scenario.promises[0], scenario.about, &broken);
        line.verdict = Verdict::Miss;
        eprintln!("   {broken}");
        table.lines.push(line);
    }
    table.lines.push(audits(&lab));
    Ok(table)
}

/// Promise 1, by every run that was compared.
fn audits(lab: &lab::Lab) -> Line {
    let (count, steps) = lab.audits();
    let what = "audits of all runs above: each position in exactly one committed step";
    let mut line = Line::left_out("1", what, "no run was audited");
    if count > 0 {
        line.count = count.to_string();
        line.figures = format!("{steps} steps");
        line.bound = "no finding".into();
        line.verdict = Verdict::Pass;
        line.notes.clear();
    }
    line
}

/// Scenarios with their promises: what `--only` may name.
pub fn list() -> String {
    let lines = scenario::ALL.iter().map(|s| format!("{:16} {:10} {}\n", s.name, s.promises.join(","), s.about));
    lines.collect()
}
