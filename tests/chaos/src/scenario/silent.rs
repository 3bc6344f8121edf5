//! Promise 5: a worker that falls silent, and comes back.

use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;

use crate::arena::{Arena, Plan, try_all, within};
use crate::cluster::{PATIENCE, Place};
use crate::figures::Samples;
use crate::lab::Lab;
use crate::process::{unix_s, until};
use crate::random::Random;
use crate::recipe::Recipe;
use crate::table::Line;
use crate::trials::Trials;

/// How a worker falls silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Silence {
    Stop,
    Cable,
    OneWay,
    /// To the other workers, not to the coordinator.
    Peers,
}

/// Deadline of a collective where only the way between workers is cut: nothing else tells of it.
const ESTRANGED_S: f64 = 3.0;
/// So many of these deadlines may pass until it is left out.
const MEETINGS: f64 = 8.0;
const BOUND: &str = "evicted ≤ max(10 s, 5 median steps), nothing stale committed";

pub fn run(lab: &Lab, count: u32) -> Result<Vec<Line>> {
    let mut lines = vec![of(lab, count, Silence::Stop, "SIGSTOP, then SIGCONT")];
    for (kind, what) in [
        (Silence::Cable, "cable pulled, then put in"),
        (Silence::OneWay, "a worker's packets lost, not those to it"),
        (Silence::Peers, "a worker's packets to other workers lost, not those to the coordinator"),
    ] {
        if lab.is_root() {
            lines.push(of(lab, count, kind, what));
        } else {
            lines.push(Line::left_out("5", what, "network namespaces need root"));
        }
    }
    Ok(lines)
}

fn of(lab: &Lab, count: u32, kind: Silence, what: &str) -> Line {
    let mut random = lab.random(what);
    let in_namespaces = kind != Silence::Stop;
    let mut recipe = Recipe::endless(&lab.options.sets);
    if kind == Silence::Peers {
        recipe = recipe.with("elastic.collective_timeout_s", ESTRANGED_S);
    }
    let plan = Plan { name: "silent", recipe, workers: 3, in_namespaces };
    let bound = if kind == Silence::Peers {
        "left out ≤ 8 collective deadlines of 3 s, nothing stale committed"
    } else {
        BOUND
    };
    let mut trials = Trials::new("5", what, bound);
    let mut evicted = Samples::default();
    let mut commits = Samples::default();
    try_all(lab, &plan, count, &mut trials, |arena| {
        let (seconds, next, bound) = silence_one(arena, &mut random, kind)?;
        evicted.push(seconds);
        commits.push(next);
        Ok(within("evicted", seconds, bound))
    });
    trials.line(format!("evicted {}, max {:.2} s; next commit {}", evicted.seconds(), evicted.max(), commits.seconds()))
}

fn set(arena: &Arena<'_>, victim: &str, kind: Silence, is_silent: bool) -> Result<()> {
    match (kind, &arena.cluster.place) {
        (Silence::Cable, Place::Namespaces(net)) => net.cable(victim, !is_silent),
        (Silence::OneWay, Place::Namespaces(net)) => net.mute(victim, is_silent),
        (Silence::Peers, Place::Namespaces(net)) => net.estrange(victim, is_silent),
        _ => {
            let worker = arena.cluster.workers.iter().find(|worker| worker.name() == victim);
            if let Some(worker) = worker {
                worker.signal(if is_silent { Signal::STOP } else { Signal::CONT });
            }
            Ok(())
        }
    }
}

/// Seconds to the eviction and to the next commit, and what was promised.
fn silence_one(arena: &mut Arena<'_>, random: &mut Random, kind: Silence) -> Result<(f64, f64, f64)> {
    arena.fill_and_run(random, 20)?;
    let names = arena.cluster.worker_names();
    let Some(victim) = random.choose(&names).cloned() else { anyhow::bail!("no worker") };
    let generation = arena.watch.generation()?;
    let bound = (5.0 * arena.watch.median_step_s()?).max(10.0);
    let at = unix_s();
    set(arena, &victim, kind, true)?;
    let watch = &arena.watch;
    let next = until("the others commit a step", PATIENCE, || watch.first_commit_beyond(generation));
    let lost = watch.commit(&format!(
        "SELECT base_step, generation, 0, opened_at FROM generations WHERE generation > {generation} ORDER BY 2 LIMIT 1"
    ))?;
    // Some more steps, so that it comes back to another world than it left.
    if next.is_ok() {
        let step = watch.step()? + random.between(1, 30);
        arena.cluster.wait_for(&arena.watch, step, 0)?;
    }
    set(arena, &victim, kind, false)?;
    let next = next?;
    ensure!(next.world_size <= 2, "a world of {} after {victim} fell silent", next.world_size);

    // It comes back and is healed, or it has left with a code that says so; either way nothing of its past counts.
    let watch = &arena.watch;
    let worker = arena.cluster.worker(&victim)?;
    until("it comes back, or leaves", Duration::from_secs(90), || {
        let is_back = watch.last_commit()?.is_some_and(|last| last.world_size == 3);
        Ok((is_back || !worker.is_alive()).then_some(()))
    })?;
    let stale = watch.num_stale()?;
    ensure!(stale == 0, "{stale} commits of a generation that was over");
    let next = next.time - at;
    if kind == Silence::Peers {
        // A collective fails, then meetings do, until it shows who is cut off.
        return Ok((next, next, MEETINGS * ESTRANGED_S));
    }
    Ok((lost.map_or(f64::NAN, |lost| lost.time) - at, next, bound))
}
