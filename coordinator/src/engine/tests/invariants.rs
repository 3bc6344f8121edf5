//! The invariants of a run under seeded schedules; `tests/store.rs` and `tests/cluster.rs` assert most of them as
//! they go. A failure names its seed: `LOCKSTEP_SEED=n cargo test -p lockstep-coordinator invariants`.
//! `LOCKSTEP_SEEDS_TIMES=100` tries a hundred times as many.

use lockstep_proto::ids::Step;

use super::cluster::{Cluster, Tally};
use super::script::recipe;
use super::worker::{INITIAL, advance, hash, loss};

fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("LOCKSTEP_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => {
            let times = std::env::var("LOCKSTEP_SEEDS_TIMES").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
            (1..=count * times).collect()
        }
    }
}

/// A name for the failure of a seed.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("reproduce: LOCKSTEP_SEED={} cargo test -p lockstep-coordinator invariants", self.0);
        }
    }
}

fn finish(seed: u64, num_faults: u32) -> Cluster {
    let _name = Seed(seed);
    let mut recipe = recipe();
    recipe.train.epochs = 5;
    recipe.train.window = 1 + seed % 7;
    recipe.elastic.min_workers = 1 + (seed / 3 % 2) as u32;
    recipe.checkpoint.keep = (seed / 2 % 4) as u32;
    let mut cluster = Cluster::new(seed, recipe, num_faults);
    cluster.run();
    cluster
}

#[test]
fn the_course_of_a_run_does_not_depend_on_the_number_of_workers_nor_on_what_befell_them() {
    let mut sum = Tally::default();
    for seed in seeds(400) {
        let cluster = finish(seed, (seed % 12) as u32);
        let _name = Seed(seed);
        let mut parameters = INITIAL;
        for (step, row) in &cluster.tables.steps {
            let at = cluster.course.at(*step);
            assert_eq!(row.loss, loss(parameters), "loss of step {step}");
            parameters = advance(parameters, at.epoch, at.batch);
        }
        let last = Step(cluster.course.total_steps());
        assert_eq!(cluster.tables.finished, Some((last, hash(last, parameters))));
        sum.num_killed += cluster.tally.num_killed;
        sum.num_restarts += cluster.tally.num_restarts;
        sum.num_reconnects += cluster.tally.num_reconnects;
        sum.num_generations += cluster.tally.num_generations;
        sum.num_rollbacks += cluster.tally.num_rollbacks;
    }
    if seeds(2).len() > 1 {
        println!("{sum:?}");
        assert!(sum.num_killed > 50 && sum.num_restarts > 50 && sum.num_reconnects > 50, "{sum:?}");
        assert!(sum.num_rollbacks > 20 && sum.num_generations > 800, "{sum:?}");
    }
}

#[test]
fn in_an_epoch_each_position_is_in_exactly_one_committed_step() {
    for seed in seeds(60) {
        let cluster = finish(1000 + seed, 8);
        let _name = Seed(1000 + seed);
        let mut seen = std::collections::BTreeMap::new();
        for row in cluster.tables.steps.values() {
            for shard in &row.shards {
                for position in shard.start..shard.end() {
                    *seen.entry((row.epoch, position)).or_insert(0) += 1;
                }
            }
        }
        assert_eq!(seen.len() as u64, 5 * cluster.course.num_positions());
        assert!(seen.values().all(|times| *times == 1));
        assert_eq!(cluster.tables.epochs.len(), 6, "a row an epoch, and one for the evaluation before training");
    }
}

#[test]
fn nobody_waits_for_ever() {
    for seed in seeds(200) {
        let _name = Seed(seed);
        let mut cluster = Cluster::new(seed, recipe(), 3);
        for _ in 0..seed * 13 % 900 {
            if cluster.ended.is_none() {
                cluster.step();
            }
        }
        let num_deadlines = cluster.everyone_falls_silent();
        assert!(num_deadlines <= 40, "{num_deadlines} deadlines until the end");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let (one, two) = (finish(7, 10), finish(7, 10));
    assert_eq!(one.tally, two.tally);
    assert_eq!(one.tables.steps, two.tables.steps);
}
