//! Half a minute of random faults, and a few trials of every scenario that is cheap; all of it is `cargo xtask chaos`.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use lockstep_chaos::{Amount, Options, Table, Verdict};

fn chaos(only: &[&str], change: impl FnOnce(&mut Options)) -> Table {
    let lockstep = Path::new(env!("CARGO_BIN_EXE_lockstep"));
    let mut options = Options::new(lockstep.into(), lockstep.with_file_name("lockstep-worker"));
    options.amount = Amount::Few;
    options.only = only.iter().map(|name| (*name).to_owned()).collect();
    change(&mut options);
    let table = lockstep_chaos::run(options).unwrap();
    // What was left out says why: without root there are no namespaces and no small disks.
    eprintln!("{}", table.markdown());
    table
}

#[track_caller]
fn holds(table: &Table) {
    assert!(table.misses().is_empty(), "{}", table.markdown());
    assert!(table.lines.iter().any(|line| line.verdict == Verdict::Pass), "{}", table.markdown());
}

#[test]
fn half_a_minute_of_faults_leaves_the_run_as_it_would_have_been() {
    holds(&chaos(&["soak"], |options| {
        options.soak = Duration::from_secs(30);
        options.fault_every_s = (1, 3);
    }));
}

#[test]
fn whoever_dies_joins_or_comes_back_the_run_is_the_same() {
    holds(&chaos(&["resume", "kill", "join", "coordinator", "rollback"], |options| {
        options.absent = Duration::from_secs(5);
    }));
}

#[test]
fn a_checkpoint_loads_whatever_happens_to_it_or_while_it_is_written() {
    holds(&chaos(&["disk", "flips"], |_| ()));
}
