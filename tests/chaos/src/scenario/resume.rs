//! Promise 2: everything dies at a random step; whoever resumes the run, on whatever world, ends with the same bits.

use anyhow::{Result, ensure};

use crate::cluster::{Cluster, Place};
use crate::figures::Samples;
use crate::lab::Lab;
use crate::random::Random;
use crate::recipe::Recipe;
use crate::table::Line;
use crate::trials::Trials;

/// Of each run: two epochs, the second cut short.
const STEPS: u64 = 60;

pub fn run(lab: &Lab, count: u32) -> Result<Vec<Line>> {
    let mut random = lab.random("resume");
    let what = "kill −9 of everything at a random step, resumed on another number of workers";
    let mut trials = Trials::new("2", what, "same losses and same hash as undisturbed");
    let recipe = Recipe::endless(&lab.options.sets);
    let recipe = recipe.with("data.train_size", 838).with("checkpoint.every_steps", 4).steps(STEPS);
    let (mut again, mut moved) = (Samples::default(), 0);
    for _ in 0..count {
        let before = random.between(1, 3);
        let after = 1 + (before + random.below(2)) % 3;
        let result = once(lab, &recipe, (before as u32, after as u32), &mut random);
        if let Ok(steps) = &result {
            again.push(*steps as f64);
            moved += u32::from(before != after);
        }
        trials.record(result.map(drop).map_err(|error| error.context(format!("{before} → {after} workers"))));
    }
    let figures =
        format!("{moved} on another world; steps done again p50 {}, max {}", again.quantile(0.5), again.max());
    Ok(vec![trials.line(figures)])
}

/// Steps that were done again.
fn once(lab: &Lab, recipe: &Recipe, (before, after): (u32, u32), random: &mut Random) -> Result<u64> {
    let begin = recipe.clone().with("elastic.min_workers", before);
    let mut cluster = Cluster::start(lab, "resume", begin, Place::Loopback)?;
    cluster.start_workers(before)?;
    let watch = cluster.watch()?;
    cluster.wait_for(&watch, random.between(1, STEPS - 5), 0)?;
    kill_all(&mut cluster, random);
    let died = watch.step()?;
    cluster.recipe = recipe.clone().with("elastic.min_workers", after);
    cluster.resume()?;
    cluster.start_workers(after)?;
    cluster.finish()?;
    let course = lab.prove(recipe, &cluster.run)?;
    ensure!(course.last_step() == STEPS, "{} steps", course.last_step());
    Ok(died - watch.base_of(watch.generation()?)?.min(died))
}

/// The coordinator and its workers, in any order.
pub fn kill_all(cluster: &mut Cluster<'_>, random: &mut Random) {
    let mut processes: Vec<_> = cluster.workers.drain(..).chain(cluster.coordinator.take()).collect();
    random.shuffle(&mut processes);
    for process in &processes {
        process.signal(rustix::process::Signal::KILL);
    }
}
