//! The whole protocol in virtual time: the product's engine, runtime, service and store, its session and replica, over
//! a simulated network that loses, delays and parts, with processes that die at any moment. Parameters are one
//! integer, so every sample lost, repeated or invented shows.
//!
//! ```text
//! cluster ─ faults ─► turmoil: hosts, links, time
//!    │                  ├─ coordinator   Engine · Runtime · Service · Store      hurdle: delay, rules, death in a write
//!    │                  └─ worker        Session · Replica (coroutine) · Integer   mesh: datagrams
//!    └─ after each tick: witness ◄─ states that replicas hold, records that became durable
//! ```
//! `LOCKSTEP_SEED=n` runs one seed, `LOCKSTEP_SEEDS_TIMES=k` k times as many. A failure prints how to repeat it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests are tests too

mod cluster;
mod coordinator;
mod coroutine;
mod course;
mod faults;
mod integer;
mod mesh;
mod random;
mod rules;
mod schedule;
mod silence;
mod states;
mod witness;
mod worker;
mod writes;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use faults::Tally;
use schedule::{Report, finish, is_sample, seeds};

/// What several schedules did together.
#[derive(Debug, Default)]
struct Sum {
    num_seeds: u32,
    tally: Tally,
    /// Numbers of ranks that a generation had.
    worlds: BTreeSet<u32>,
    virtual_time: Duration,
    /// The longest from the last fault to the end of the last process.
    longest_end: Duration,
}

impl Sum {
    fn add(&mut self, report: &Report) {
        self.num_seeds += 1;
        self.tally.add(&report.tally);
        self.worlds.extend(&report.worlds);
        self.virtual_time += report.elapsed;
        self.longest_end = self.longest_end.max(report.ending);
    }
}

#[test]
fn whatever_happens_the_run_ends_and_every_sample_is_in_exactly_one_committed_step() {
    let (started, mut sum) = (Instant::now(), Sum::default());
    for seed in seeds(100) {
        sum.add(&finish(seed, 2 + (seed % 11) as u32));
    }
    println!("{sum:#?} in {:.0} s", started.elapsed().as_secs_f64());
    if !is_sample() {
        return;
    }
    let tally = &sum.tally;
    assert!(sum.worlds.is_superset(&(1..=8).collect()), "worlds of one to eight: {:?}", sum.worlds);
    assert!(
        tally.num_killed > 50
            && tally.num_lost_machines > 20
            && tally.num_half_dead > 20
            && tally.num_lost_everyone > 20,
        "{tally:?}"
    );
    assert!(tally.num_partitions > 20 && tally.num_one_way > 40, "{tally:?}");
    assert!(tally.num_delays > 20 && tally.num_stalls > 20 && tally.num_zombies > 20, "{tally:?}");
    assert!(tally.num_joins > 20 && tally.num_drained > 20, "{tally:?}");
    assert!(tally.num_restarts > 50 && tally.num_torn > 4 && tally.num_resumed > 5, "{tally:?}");
    assert!(tally.num_rollbacks > 10 && tally.num_generations > 300, "{tally:?}");
}

#[test]
fn the_same_seed_gives_the_same_history() {
    for seed in seeds(4) {
        let (one, two) = (finish(seed, 10), finish(seed, 10));
        let differs = one.history.iter().zip(&two.history).find(|(one, two)| one != two);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!((one.history.len(), one.tally, one.elapsed), (two.history.len(), two.tally, two.elapsed));
    }
}
