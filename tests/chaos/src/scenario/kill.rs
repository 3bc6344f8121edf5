//! Promise 4: kill −9 of one of three workers.

use anyhow::{Result, ensure};

use crate::arena::{Arena, Plan, try_all};
use crate::cluster::PATIENCE;
use crate::figures::Samples;
use crate::lab::Lab;
use crate::process::{unix_s, until};
use crate::random::Random;
use crate::recipe::Recipe;
use crate::table::Line;
use crate::trials::Trials;
use crate::watch::Watch;

const BOUND_S: f64 = 5.0;

pub fn run(lab: &Lab, count: u32) -> Result<Vec<Line>> {
    let mut random = lab.random("kill");
    let plan = Plan { name: "kill", recipe: Recipe::endless(&lab.options.sets), workers: 3, in_namespaces: false };
    let mut trials =
        Trials::new("4", "kill −9 of one of 3 workers", "next commit p99 ≤ 5 s, ≤ 1 step redone, same pids");
    let (mut seconds, mut redone) = (Samples::default(), Samples::default());
    try_all(lab, &plan, count, &mut trials, |arena| {
        let (took, steps) = kill_one(arena, &mut random)?;
        seconds.push(took);
        redone.push(steps as f64);
        Ok(Ok(()))
    });
    let p99 = seconds.quantile(0.99);
    trials.must("p99", if p99 <= BOUND_S { Ok(()) } else { Err(anyhow::anyhow!("{p99:.2} s")) });
    let figures = format!("{}, max {:.2} s, redone at most {}", seconds.seconds(), seconds.max(), redone.max());
    Ok(vec![trials.line(figures)])
}

/// Seconds to the next commit, and steps that were done again.
pub fn kill_one(arena: &mut Arena<'_>, random: &mut Random) -> Result<(f64, u64)> {
    arena.fill_and_run(random, 20)?;
    let (watch, cluster) = (&arena.watch, &mut arena.cluster);
    let names = cluster.worker_names();
    let Some(victim) = random.choose(&names).cloned() else { anyhow::bail!("no worker") };
    let survivors: Vec<String> = names.iter().filter(|name| **name != victim).cloned().collect();
    let joins = num_joins(watch, &survivors)?;
    let generation = watch.generation()?;
    let last_event = watch.last_event()?;

    let mut worker = cluster.take_worker(&victim)?;
    let at = unix_s();
    worker.kill();
    let committed = watch.step()?;
    let next = until("the survivors commit a step", PATIENCE, || watch.first_commit_beyond(generation))?;

    ensure!(next.world_size == 2, "a world of {} after the kill of {victim}", next.world_size);
    cluster.must_live()?;
    ensure!(num_joins(watch, &survivors)? == joins, "a survivor of {victim} joined anew");
    let redone = redone(watch, (generation, next.generation), (committed, last_event))?;
    ensure!(redone <= 1, "{redone} steps were done again after the kill of {victim}");
    Ok((next.time - at, redone))
}

fn num_joins(watch: &Watch, workers: &[String]) -> Result<u64> {
    workers.iter().map(|worker| watch.joins_of(worker)).sum()
}

/// Steps that were begun, or committed, before generation `from` closed, and that `to` takes again.
fn redone(watch: &Watch, (from, to): (u64, u64), (committed, last_event): (u64, i64)) -> Result<u64> {
    let base = watch.base_of(to)?;
    ensure!(to == from + 1 || base >= committed, "committed up to step {committed}, begun again after step {base}");
    let complaints = watch.events_after(last_event)?;
    let begun = complaints.iter().filter(|event| event.kind == "complaint");
    let begun = begun.filter_map(|event| event.detail["at_step"].as_u64()).max().unwrap_or(committed);
    Ok(begun.max(committed).saturating_sub(base))
}
