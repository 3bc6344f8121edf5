//! One seed from its beginning to the end of its run.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::course::recipe;
use crate::faults::Tally;

/// Once faults have stopped, the run and all its processes end within this.
const LIVENESS: Duration = Duration::from_secs(1800);

/// Seeds to run: one that was asked for, or the first `count`, times what was asked for.
pub fn seeds(count: u64) -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match number("LOCKSTEP_SEED") {
        Some(seed) => vec![seed],
        None => (1..=count * number("LOCKSTEP_SEEDS_TIMES").unwrap_or(1)).collect(),
    }
}

/// Whether there are enough seeds for tallies to mean something.
pub fn is_sample() -> bool {
    std::env::var_os("LOCKSTEP_SEED").is_none()
}

/// Says how to repeat what failed.
pub struct Seed(pub u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let test = std::thread::current().name().unwrap_or_default().to_owned();
            eprintln!("reproduce: LOCKSTEP_SEED={} cargo test -p lockstep-worker --test simulation {test}", self.0);
        }
    }
}

/// What is left of a simulation.
#[derive(Debug)]
pub struct Report {
    pub tally: Tally,
    pub worlds: BTreeSet<u32>,
    pub elapsed: Duration,
    /// From the last fault to the end of the last process.
    pub ending: Duration,
    pub history: Vec<String>,
}

/// Runs a seed with so many faults to the end of its run, and of everyone in it.
pub fn finish(seed: u64, num_faults: u32) -> Report {
    let _name = Seed(seed);
    let mut cluster = Cluster::new(seed, recipe(seed));
    let mut faults_left = num_faults;
    while faults_left > 0 && !cluster.is_done {
        cluster.step();
        if cluster.random.below(150) == 0 {
            faults_left -= 1;
            cluster.fault();
        }
    }
    cluster.log("no more faults");
    cluster.heal_all();
    end(&mut cluster)
}

/// From the last fault to the end of everyone.
pub fn end(cluster: &mut Cluster) -> Report {
    let since = cluster.now;
    while !(cluster.is_done && cluster.living().is_empty()) {
        cluster.step();
        if cluster.now - since > LIVENESS {
            panic!(
                "{:?} after the last fault the run is not at its end: done {}, living {:?}",
                cluster.now - since,
                cluster.is_done,
                cluster.living()
            );
        }
    }
    if let Err(what) = cluster.audit() {
        panic!("{what}");
    }
    let rules = cluster.witness.rules.lock().unwrap();
    cluster.tally.num_rollbacks = rules.num_rollbacks;
    cluster.tally.num_generations = rules.num_generations() as u32;
    Report {
        tally: cluster.tally,
        worlds: rules.worlds.clone(),
        elapsed: cluster.now,
        ending: cluster.now - since,
        history: cluster.witness.history(),
    }
}
