//! A coordinator that dies in a write, whichever it is.

use crate::cluster::Cluster;
use crate::coordinator::Cut;
use crate::course::recipe;
use crate::schedule::{Report, Seed, end, is_sample, seeds};

/// A run of two workers in which nothing goes wrong but the write of this number.
fn run(seed: u64, cut: Option<(u64, Cut)>) -> (Report, u64) {
    let _name = Seed(seed);
    let mut recipe = recipe(seed);
    recipe.train.epochs = 2;
    recipe.elastic.min_workers = 2;
    let mut cluster = Cluster::new(seed, recipe);
    *cluster.desk.cut.lock().unwrap() = cut;
    let report = end(&mut cluster);
    let num_writes = *cluster.desk.num_writes.lock().unwrap();
    (report, num_writes)
}

#[test]
fn a_coordinator_killed_at_any_write_goes_on_from_what_is_durable() {
    let (mut num_runs, mut num_writes) = (0, 0);
    for seed in seeds(1) {
        let (_, writes) = run(seed, None);
        num_writes += writes;
        assert!(writes > 12, "{writes} writes are too few to mean anything");
        for at in 1..=writes {
            for cut in [Cut::Before, Cut::After, Cut::Torn] {
                let (report, _) = run(seed, Some((at, cut)));
                assert_eq!(report.tally.num_restarts, 1, "write {at}, {cut:?}");
                num_runs += 1;
            }
        }
    }
    println!("{num_runs} runs: killed before, after and within each of {num_writes} writes");
    assert!(!is_sample() || num_runs > 36);
}
