//! Promise 12: a worker that is three times as slow as it was is named.

use anyhow::{Result, ensure};

use crate::arena::{Arena, Plan, try_all};
use crate::cluster::PATIENCE;
use crate::figures::Samples;
use crate::lab::Lab;
use crate::process::until;
use crate::random::Random;
use crate::recipe::Recipe;
use crate::table::Line;
use crate::throttle::Throttle;
use crate::trials::Trials;

/// Named within so many.
const BOUND: u64 = 20;

pub fn run(lab: &Lab, count: u32) -> Result<Vec<Line>> {
    let mut random = lab.random("straggler");
    // Four large chunks each: computing is most of a step, and between two meetings it takes longer than a turn of the
    // throttle, which would not be felt otherwise.
    let recipe = Recipe::endless(&lab.options.sets).with("train.batch", 512).with("train.chunk", 64);
    let recipe = recipe.with("data.train_size", 4 * 512);
    let plan = Plan { name: "straggler", recipe, workers: 2, in_namespaces: false };
    let mut trials = Trials::new("12", "a worker throttled to a third", "named within 20 steps, nobody else is");
    let mut steps = Samples::default();
    try_all(lab, &plan, count, &mut trials, |arena| {
        let named = once(arena, &mut random)?;
        steps.push(named as f64);
        Ok(if named <= BOUND { Ok(()) } else { Err(format!("named after {named} steps")) })
    });
    let figures = if steps.len() == 0 {
        "never named".to_owned()
    } else {
        format!("named after p50 {} steps, max {}", steps.quantile(0.5), steps.max())
    };
    Ok(vec![trials.line(figures)])
}

/// Steps until it is named.
fn once(arena: &mut Arena<'_>, random: &mut Random) -> Result<u64> {
    let filled = arena.fill()?;
    // What is usual must be known first.
    arena.cluster.wait_for(&arena.watch, filled.step + 20, 0)?;
    let names = arena.cluster.worker_names();
    let Some(victim) = random.choose(&names).cloned() else { anyhow::bail!("no worker") };
    let last_event = arena.watch.last_event()?;
    let pid = arena.cluster.worker(&victim)?.pid();
    let from = arena.watch.step()?;
    let throttle = Throttle::to_a_third(pid);
    let watch = &arena.watch;
    let event = until(&format!("{victim} is named by an event of kind straggler"), PATIENCE, || {
        ensure!(watch.step()? < from + 10 * BOUND, "{victim} was not named within {} steps", 10 * BOUND);
        Ok(watch.events_after(last_event)?.into_iter().find(|event| event.kind == "straggler"))
    })?;
    drop(throttle);
    let named = event.worker.clone().unwrap_or_default();
    ensure!(named == victim, "{victim} was throttled, {named:?} was named: {}", event.detail);
    Ok(event.step.saturating_sub(from))
}
