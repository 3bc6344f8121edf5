//! Promise 3: the same bits on every world.

use anyhow::Result;

use crate::cluster::{Cluster, Place};
use crate::lab::Lab;
use crate::recipe::Recipe;
use crate::table::Line;
use crate::trials::Trials;

/// Replicas of each process.
const WORLDS: [&[u32]; 8] = [&[2, 1], &[1, 1], &[2, 2, 1], &[1, 1, 1, 1], &[3, 3], &[4, 2, 1], &[2, 2, 2, 2], &[1]];
const STEPS: u64 = 40;

pub fn run(lab: &Lab, count: u32) -> Result<Vec<Line>> {
    let what = "40 steps on worlds of 1 to 8 replicas in 1 to 4 processes; 5 chunks: uneven and empty shards";
    let mut trials = Trials::new("3", what, "same losses and same hash as one worker");
    // Batches of 37 in chunks of 8: 8, 8, 8, 8, 5; the last of an epoch has 12: 8, 4.
    let recipe = Recipe::endless(&lab.options.sets).with("data.train_size", 456).with("train.batch", 37).steps(STEPS);
    let mut worlds = Vec::new();
    for world in WORLDS.iter().take(count as usize) {
        let replicas: u32 = world.iter().sum();
        worlds.push(replicas.to_string());
        trials.record(once(lab, &recipe, world).map_err(|error| error.context(format!("replicas {world:?}"))));
    }
    Ok(vec![trials.line(format!("worlds {}", worlds.join(", ")))])
}

fn once(lab: &Lab, recipe: &Recipe, world: &[u32]) -> Result<()> {
    let own = recipe.clone().with("elastic.min_workers", world.len());
    let mut cluster = Cluster::start(lab, "worlds", own, Place::Loopback)?;
    for replicas in world {
        let devices = vec!["cpu"; *replicas as usize].join(",");
        cluster.start_worker(&["--devices", &devices])?;
    }
    cluster.finish()?;
    lab.prove(recipe, &cluster.run).map(drop)
}
