//! What can go wrong, and how it heals.

use std::time::Duration;

use lockstep_worker::session::Signal;

use crate::cluster::Cluster;
use crate::coordinator::Cut;
use crate::worker::COORDINATOR;

/// What a schedule did, to know that it did something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub num_killed: u32,
    pub num_lost_machines: u32,
    pub num_half_dead: u32,
    pub num_partitions: u32,
    pub num_one_way: u32,
    pub num_delays: u32,
    pub num_stalls: u32,
    pub num_drained: u32,
    pub num_joins: u32,
    pub num_restarts: u32,
    pub num_stopped: u32,
    /// Ends of the run that were not its last.
    pub num_resumed: u32,
    pub num_torn: u32,
    pub num_zombies: u32,
    pub num_lost_everyone: u32,
    pub num_rollbacks: u32,
    pub num_generations: u32,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in self.fields().into_iter().zip(other.clone().fields()) {
            *sum += *more;
        }
    }

    fn fields(&mut self) -> [&mut u32; 17] {
        [
            &mut self.num_killed,
            &mut self.num_lost_machines,
            &mut self.num_half_dead,
            &mut self.num_partitions,
            &mut self.num_one_way,
            &mut self.num_delays,
            &mut self.num_stalls,
            &mut self.num_drained,
            &mut self.num_joins,
            &mut self.num_restarts,
            &mut self.num_stopped,
            &mut self.num_resumed,
            &mut self.num_torn,
            &mut self.num_zombies,
            &mut self.num_lost_everyone,
            &mut self.num_rollbacks,
            &mut self.num_generations,
        ]
    }
}

/// The end of a fault.
#[derive(Clone, Debug)]
pub enum Heal {
    /// Messages between two hosts get through again.
    Repair(String, String),
    /// Messages that were held arrive now.
    Release(String, String),
    /// Whoever was given up counts again, if it still lives.
    Forgive(u64),
    /// One worker fewer is wanted.
    Shrink,
    /// What was ill dies.
    Kill(u64),
}

impl Heal {
    pub fn apply(self, cluster: &mut Cluster) {
        match self {
            Self::Repair(a, b) => {
                cluster.log(format!("repair {a} and {b}"));
                cluster.sim.repair(a, b);
            }
            Self::Release(a, b) => {
                cluster.log(format!("release {a} and {b}"));
                cluster.sim.release(a, b);
            }
            Self::Forgive(number) => {
                for life in cluster.slots.iter_mut().flat_map(|slot| &mut slot.life) {
                    life.is_zombie &= life.process.number != number;
                }
            }
            Self::Kill(number) => {
                let is_it = |index: &usize| {
                    cluster.slots[*index].life.as_ref().is_some_and(|life| life.process.number == number)
                };
                if let Some(index) = cluster.living().into_iter().find(is_it) {
                    cluster.kill_worker(index);
                }
            }
            Self::Shrink => {
                let least = cluster.witness.recipe.elastic.min_workers as usize;
                cluster.target = (cluster.target - 1).max(least);
            }
        }
    }
}

impl Cluster {
    fn heal_in(&mut self, time: Duration, heal: Heal) {
        let key = (self.now + time, self.heals.len() as u64 * 1000 + self.random.below(1000));
        self.heals.insert(key, heal);
    }

    /// Hosts that exist, for links.
    fn hosts(&self) -> Vec<String> {
        self.living().into_iter().map(Self::host).collect()
    }

    fn cut_link(&mut self, a: &str, b: &str, time: Duration) {
        // A link that is held would keep what a partition must lose.
        match self.random.below(3) {
            0 => {
                self.log(format!("one-way partition from {a} to {b} for {time:?}"));
                self.tally.num_one_way += 1;
                self.sim.partition_oneway(a, b);
            }
            1 => {
                self.log(format!("one-way partition from {b} to {a} for {time:?}"));
                self.tally.num_one_way += 1;
                self.sim.partition_oneway(b, a);
            }
            _ => {
                self.log(format!("partition between {a} and {b} for {time:?}"));
                self.tally.num_partitions += 1;
                self.sim.partition(a, b);
            }
        }
        self.heal_in(time, Heal::Repair(a.to_owned(), b.to_owned()));
    }

    /// Cuts a worker off from the coordinator; its peers still hear it.
    pub fn isolate(&mut self, index: usize, time: Duration) {
        let host = Self::host(index);
        self.sim.partition(host.clone(), COORDINATOR);
        self.heal_in(time, Heal::Repair(host, COORDINATOR.into()));
        if let Some(life) = &mut self.slots[index].life {
            life.is_zombie = true;
            let number = life.process.number;
            self.heal_in(time, Heal::Forgive(number));
        }
    }

    /// A process that stands still: nothing comes from it, nothing reaches it, until later everything does.
    pub fn stall(&mut self, index: usize, time: Duration) {
        let host = Self::host(index);
        self.log(format!("{host} stands still for {time:?}"));
        let others: Vec<String> =
            self.hosts().into_iter().filter(|other| *other != host).chain([COORDINATOR.to_owned()]).collect();
        for other in others {
            self.sim.hold(host.clone(), other.clone());
            self.heal_in(time, Heal::Release(host.clone(), other));
        }
    }

    /// One more thing goes wrong.
    pub fn fault(&mut self) {
        let living = self.living();
        let victim = self.random.pick(&living);
        let hosts = self.hosts();
        let (a, b) = (self.random.pick(&hosts), self.random.pick(&hosts));
        match (self.random.below(18), victim) {
            (0 | 1, Some(victim)) => {
                self.tally.num_killed += 1;
                self.kill_worker(victim);
            }
            (2, Some(victim)) => {
                // No farewell of its kernel reaches anyone.
                self.tally.num_lost_machines += 1;
                let host = Self::host(victim);
                self.log(format!("{host} goes dark"));
                let others: Vec<String> =
                    hosts.into_iter().filter(|other| *other != host).chain([COORDINATOR.to_owned()]).collect();
                for other in others {
                    self.sim.partition(host.clone(), other.clone());
                    self.heal_in(Duration::from_secs(30), Heal::Repair(host.clone(), other));
                }
                self.kill_worker(victim);
            }
            (3 | 4, Some(victim)) => {
                let time = self.random.between(200, 40_000);
                self.cut_link(&Self::host(victim), COORDINATOR, time);
            }
            (5 | 6, _) => {
                if let (Some(a), Some(b)) = (a, b)
                    && a != b
                {
                    let time = self.random.between(200, 20_000);
                    self.cut_link(&a, &b, time);
                }
            }
            (7, Some(victim)) => {
                self.tally.num_delays += 1;
                let (host, time) = (Self::host(victim), self.random.between(100, 8000));
                self.log(format!("what {host} and the coordinator say is late by {time:?}"));
                self.sim.hold(host.clone(), COORDINATOR);
                self.heal_in(time, Heal::Release(host, COORDINATOR.into()));
            }
            (8, Some(victim)) => {
                self.tally.num_stalls += 1;
                let time = self.random.between(500, 40_000);
                self.stall(victim, time);
            }
            (9, Some(victim)) => {
                self.tally.num_drained += 1;
                self.log(format!("SIGTERM to {}", Self::host(victim)));
                if let Some(life) = &self.slots[victim].life {
                    let _ = life.signals.try_send(Signal("SIGTERM"));
                }
            }
            (10, _) => {
                self.target = (self.target + 1).min(6);
                if self.start_worker().is_some() {
                    self.tally.num_joins += 1;
                }
                let time = self.random.between(2000, 60_000);
                self.heal_in(time, Heal::Shrink);
            }
            (11, _) if self.is_coordinator_up() => self.kill_coordinator(None),
            (12 | 15, _) => {
                let cut = [Cut::Before, Cut::After, Cut::Torn][self.random.below(3) as usize];
                let at = *self.desk.num_writes.lock().unwrap() + 1 + self.random.below(4);
                *self.desk.cut.lock().unwrap() = Some((at, cut));
            }
            (13, _) => {
                // The whole world loses the coordinator, and another world takes its place.
                self.log("everyone is cut off");
                self.tally.num_zombies += 1;
                let time = self.random.between(3000, 35_000);
                for index in living {
                    self.isolate(index, time);
                }
            }
            (14, _) => {
                self.tally.num_lost_everyone += 1;
                self.log("everyone is lost");
                for index in living {
                    self.kill_worker(index);
                }
            }
            (17, Some(victim)) => {
                // It takes steps that its peers cannot take, says so, and dies before it could be asked.
                self.tally.num_half_dead += 1;
                let host = Self::host(victim);
                self.log(format!("the peers of {host} do not hear it"));
                let time = self.random.between(100, 6000);
                for other in hosts.into_iter().filter(|other| *other != host) {
                    self.sim.partition_oneway(host.clone(), other.clone());
                    self.heal_in(time, Heal::Repair(host.clone(), other));
                }
                if let Some(life) = &self.slots[victim].life {
                    let number = life.process.number;
                    self.heal_in(time, Heal::Kill(number));
                }
            }
            (16, _) if self.is_coordinator_up() => {
                self.tally.num_stopped += 1;
                self.log("SIGTERM to the coordinator");
                self.desk.stop.notify_waiters();
            }
            _ => {}
        }
    }
}
