//! A worker that falls silent without dying: how long until the others go on without it, and that nothing of what it
//! still has to say counts when it is back.

use std::time::Duration;

use crate::cluster::Cluster;
use crate::course::recipe;
use crate::faults::Heal;
use crate::random::Random;
use crate::schedule::{Seed, end, is_sample, seeds};
use crate::worker::COORDINATOR;

/// The others have gone on by then, steps being short: 10 s, and what the simulated store may need to record it.
const BOUND: Duration = Duration::from_secs(10 + 3);

/// Ways to fall silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Silence {
    /// Nobody hears it, it hears nobody.
    Apart,
    /// The same, and later everything arrives at once.
    Still,
    /// Nobody hears it.
    Mute,
    /// The coordinator and it do not hear each other; its peers do.
    Unled,
    /// The coordinator does not hear it.
    Unheard,
    /// It does not hear the coordinator.
    Deaf,
}

const WAYS: [Silence; 6] =
    [Silence::Apart, Silence::Still, Silence::Mute, Silence::Unled, Silence::Unheard, Silence::Deaf];

impl Silence {
    fn begin(self, cluster: &mut Cluster, host: &str, others: &[String]) {
        cluster.log(format!("{host} falls silent: {self:?}"));
        let sim = &cluster.sim;
        match self {
            Self::Apart => others.iter().for_each(|other| sim.partition(host, other.as_str())),
            Self::Still => others.iter().for_each(|other| sim.hold(host, other.as_str())),
            Self::Mute => others.iter().for_each(|other| sim.partition_oneway(host, other.as_str())),
            Self::Unled => sim.partition(host, COORDINATOR),
            Self::Unheard => sim.partition_oneway(host, COORDINATOR),
            Self::Deaf => sim.partition_oneway(COORDINATOR, host),
        }
    }

    fn end(self, cluster: &mut Cluster, host: &str, others: &[String]) {
        for other in others {
            let (host, other) = (host.to_owned(), other.clone());
            let heal = if self == Self::Still { Heal::Release(host, other) } else { Heal::Repair(host, other) };
            heal.apply(cluster);
        }
    }
}

/// Gives the time from silence to the generation without the silent one.
fn trial(seed: u64) -> Duration {
    let _name = Seed(seed);
    let mut random = Random::new(seed ^ 0x0051_1e4c);
    let mut recipe = recipe(seed);
    recipe.train.epochs = 20;
    recipe.elastic.min_workers = 1;
    let mut cluster = Cluster::new(seed, recipe);
    while cluster.living().len() < 3 {
        cluster.start_worker();
    }
    cluster.target = 0;
    let first = 1 + random.below(12);
    let victim = random.below(3) as usize;
    let host = Cluster::host(victim);
    let worker = cluster.slots[victim].life.as_ref().expect("just started").process.worker();
    let is_due = |cluster: &Cluster| {
        let rules = cluster.witness.rules.lock().unwrap();
        rules.committed().0 >= first && rules.has_member(&worker)
    };
    while !is_due(&cluster) {
        cluster.step();
    }
    for _ in 0..random.below(80) {
        cluster.step();
    }
    let others: Vec<String> = cluster
        .living()
        .into_iter()
        .map(Cluster::host)
        .filter(|other| *other != host)
        .chain([COORDINATOR.to_owned()])
        .collect();
    let way = WAYS[random.below(WAYS.len() as u64) as usize];
    let since = cluster.now;
    way.begin(&mut cluster, &host, &others);
    while cluster.witness.rules.lock().unwrap().has_member(&worker) {
        cluster.step();
        // Over TCP a deaf one falls silent too, for want of acknowledgements. Here it goes on talking, so it is found only
        // when it does not answer `Close`.
        let bound = if way == Silence::Deaf { BOUND + Duration::from_secs(9) } else { BOUND };
        assert!(cluster.now - since <= bound, "{way:?}: {worker} still has ranks after {bound:?} of silence");
    }
    let waited = cluster.now - since;
    let back = cluster.now + random.between(0, 30_000);
    while cluster.now < back {
        cluster.step();
    }
    way.end(&mut cluster, &host, &others);
    end(&mut cluster);
    waited
}

#[test]
fn a_silent_worker_is_left_behind_in_time_and_nothing_stale_counts_when_it_is_back() {
    let mut waits: Vec<Duration> = seeds(40).into_iter().map(trial).collect();
    waits.sort();
    let at = |share: usize| waits[(waits.len() - 1) * share / 100];
    println!("{} trials: median {:?}, 99 % {:?}, longest {:?}", waits.len(), at(50), at(99), at(100));
    assert!(!is_sample() || waits.len() >= 40);
}
