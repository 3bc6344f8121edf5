//! Shows 1: 300 steps of 4 workers with 8 kills, 4 joins and 2 deaths of the coordinator, against one undisturbed worker.

use anyhow::{Result, ensure};

use crate::cluster::{Cluster, Place};
use crate::lab::Lab;
use crate::process::until;
use crate::random::Random;
use crate::recipe::Recipe;
use crate::table::Line;
use crate::trials::Trials;
use crate::watch::Watch;

const STEPS: u64 = 300;

#[derive(Clone, Copy, Debug)]
enum Act {
    /// One worker; another is started in its place.
    Kill,
    Join,
    Coordinator,
}

pub fn run(lab: &Lab, count: u32) -> Result<Vec<Line>> {
    let what = "4 workers, ResNet (n = 1), 300 steps: 8 kills, 4 joins, 2 coordinator kills at random steps";
    let mut trials = Trials::new("shows 1", what, "every loss and the final hash as one undisturbed worker's; audit");
    let recipe = Recipe::endless(&lab.options.sets).with("checkpoint.every_steps", 25).steps(STEPS);
    let mut worlds = Vec::new();
    for number in 0..count {
        let mut random = Random::new(lab.options.seed + u64::from(number), "bits");
        let result = once(lab, &recipe, &mut random);
        if let Ok(generations) = &result {
            worlds.push(generations.to_string());
        }
        let seed = lab.options.seed + u64::from(number);
        trials.record(result.map(drop).map_err(|error| error.context(format!("--seed {seed}"))));
    }
    Ok(vec![trials.line(format!("generations in each: {}", worlds.join(", ")))])
}

/// Generations that the run went through.
fn once(lab: &Lab, recipe: &Recipe, random: &mut Random) -> Result<u64> {
    let mut acts = [vec![Act::Kill; 8], vec![Act::Join; 4], vec![Act::Coordinator; 2]].concat();
    random.shuffle(&mut acts);
    let mut steps: Vec<u64> = acts.iter().map(|_| random.between(5, STEPS - 15)).collect();
    steps.sort_unstable();

    let own = recipe.clone().with("elastic.min_workers", 1);
    let mut cluster = Cluster::start(lab, "bits", own, Place::Loopback)?;
    cluster.start_workers(4)?;
    let watch = cluster.watch()?;
    for (step, act) in steps.into_iter().zip(acts) {
        cluster.wait_for(&watch, step, 0)?;
        do_act(&mut cluster, &watch, act, random)?;
    }
    cluster.finish()?;
    let course = lab.prove(recipe, &cluster.run)?;
    ensure!(course.last_step() == STEPS, "{} steps", course.last_step());
    watch.generation()
}

fn do_act(cluster: &mut Cluster<'_>, watch: &Watch, act: Act, random: &mut Random) -> Result<()> {
    match act {
        Act::Kill => {
            let names = cluster.worker_names();
            let Some(name) = random.choose(&names) else { anyhow::bail!("no worker") };
            cluster.take_worker(name)?.kill();
            cluster.start_worker(&[])?;
        }
        Act::Join => {
            let name = cluster.start_worker(&[])?;
            // So that a join is one, however short the rest of the run.
            until("the newcomer is there", crate::cluster::PATIENCE, || {
                let is_over = watch.step()? >= STEPS - 1;
                Ok((is_over || watch.joins_of(&name)? > 0).then_some(()))
            })?;
        }
        Act::Coordinator => {
            cluster.coordinator = None;
            cluster.resume()?;
        }
    }
    Ok(())
}
