//! A cluster that trials use one after another: filled up before each, replaced after one that broke it.

use anyhow::{Result, bail};

use crate::cluster::{Cluster, PATIENCE, Place};
use crate::lab::Lab;
use crate::net::Net;
use crate::process::until;
use crate::random::Random;
use crate::recipe::Recipe;
use crate::trials::Trials;
use crate::watch::{Commit, Watch};

/// What it is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Names its folder.
    pub name: &'static str,
    /// What is trained.
    pub recipe: Recipe,
    /// Workers that a trial begins with.
    pub workers: u64,
    /// Whether each is a host of its own.
    pub in_namespaces: bool,
}

/// The cluster, while it is sound.
#[derive(Debug)]
pub struct Arena<'a> {
    /// The cluster.
    pub cluster: Cluster<'a>,
    /// What it writes down.
    pub watch: Watch,
    plan: Plan,
}

impl<'a> Arena<'a> {
    /// A new cluster of one run.
    pub fn new(lab: &'a Lab, plan: &Plan) -> Result<Self> {
        let place = if plan.in_namespaces { Place::Namespaces(Net::new()?) } else { Place::Loopback };
        let cluster = Cluster::start(lab, plan.name, plan.recipe.clone(), place)?;
        let watch = cluster.watch()?;
        Ok(Self { cluster, watch, plan: plan.clone() })
    }

    /// Replaces workers that are gone, and waits until all train together.
    pub fn fill(&mut self) -> Result<Commit> {
        self.cluster.workers.retain_mut(|worker| worker.is_alive());
        let num_old = self.cluster.workers.len();
        while (self.cluster.workers.len() as u64) < self.plan.workers {
            self.cluster.start_worker(&[])?;
        }
        let next = self.watch.step()? + 1;
        let (cluster, watch, wanted) = (&mut self.cluster, &self.watch, self.plan.workers);
        until(&format!("a step by {wanted} workers"), PATIENCE, || {
            for process in cluster.coordinator.iter_mut().chain(cluster.workers.iter_mut().skip(num_old)) {
                if let Some(status) = process.ended() {
                    bail!("{} ended with {status}: {}", process.name(), process.last_words());
                }
            }
            Ok(watch.last_commit()?.filter(|last| last.step >= next && last.world_size == wanted))
        })
    }

    /// Fills it, and goes on for a random number of steps.
    pub fn fill_and_run(&mut self, random: &mut Random, most: u64) -> Result<Commit> {
        let filled = self.fill()?;
        self.cluster.wait_for(&self.watch, filled.step + random.between(1, most), 0)
    }
}

/// Whether a figure was within its bound. Where it was not, the cluster is sound all the same.
pub type Within = std::result::Result<(), String>;

/// Compares a figure with its bound.
pub fn within(what: &str, seconds: f64, bound: f64) -> Within {
    if seconds <= bound { Ok(()) } else { Err(format!("{what} after {seconds:.1} s, promised {bound:.1} s")) }
}

/// Makes trials on an arena; one that fails costs the arena, not the trials that follow. At the end the run, or each of
/// the runs, is audited and compared with an undisturbed one, to the bit.
pub fn try_all(
    lab: &Lab,
    plan: &Plan,
    count: u32,
    trials: &mut Trials,
    mut trial: impl FnMut(&mut Arena<'_>) -> Result<Within>,
) {
    let mut arena: Option<Arena<'_>> = None;
    for _ in 0..count {
        let mut ready = match arena.take().map_or_else(|| Arena::new(lab, plan), Ok) {
            Ok(ready) => ready,
            Err(error) => {
                trials.record(Err(error));
                continue;
            }
        };
        match trial(&mut ready) {
            Ok(within) => {
                trials.record(within.map_err(anyhow::Error::msg));
                arena = Some(ready);
            }
            Err(error) => {
                trials.record(Err(error.context(ready.cluster.dir().display().to_string())));
            }
        }
    }
    if let Some(mut arena) = arena {
        let proved = arena.fill().and_then(|_| arena.cluster.stop_and_prove());
        trials.must("the bits of the undisturbed run, and the audit", proved.map(drop));
    }
}

/// The code of a worker that left because it was asked to.
pub const LEFT: Option<i32> = Some(75);
