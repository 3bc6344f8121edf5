//! Promise 6: a hung collective is aborted and the culprit named; whoever is only slow is left alone.

use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;

use crate::arena::{Arena, Plan, try_all};
use crate::cluster::{PATIENCE, Place};
use crate::figures::Samples;
use crate::lab::Lab;
use crate::process::{unix_s, until};
use crate::proxy::Proxy;
use crate::random::Random;
use crate::recipe::Recipe;
use crate::table::Line;
use crate::trials::Trials;

pub fn run(lab: &Lab, count: u32) -> Result<Vec<Line>> {
    let mut random = lab.random("hung");
    let plan =
        |name, in_namespaces| Plan { name, recipe: Recipe::endless(&lab.options.sets), workers: 3, in_namespaces };
    let mut lines = Vec::new();
    for (signal, what) in [(Signal::STOP, "a stalled rank"), (Signal::KILL, "a dead rank")] {
        let mut trials = Trials::new("6", what, "the others abort and go on, the event names it and nobody else");
        let mut seconds = Samples::default();
        try_all(lab, &plan("hung", false), count, &mut trials, |arena| {
            seconds.push(stall(arena, &mut random, signal)?);
            Ok(Ok(()))
        });
        lines.push(trials.line(format!("going on {}, max {:.2} s", seconds.seconds(), seconds.max())));
    }

    let mut trials = Trials::new("6", "pauses of 50 to 1,000 ms of a rank", "left alone");
    try_all(lab, &plan("pauses", false), count, &mut trials, |arena| {
        alone(arena, |arena| {
            let names = arena.cluster.worker_names();
            let Some(name) = random.choose(&names) else { anyhow::bail!("no worker") };
            let worker = arena.cluster.worker(name)?;
            worker.signal(Signal::STOP);
            std::thread::sleep(Duration::from_millis(random.between(50, 1000))); // this is the pause
            worker.signal(Signal::CONT);
            Ok(())
        })
        .map(Ok)
    });
    let figures = alone_figures(&trials);
    lines.push(trials.line(figures));

    let mut trials = Trials::new("6", "200 ms of delay between workers and coordinator, 400 steps", "left alone");
    trials.record(delayed(lab));
    let figures = alone_figures(&trials);
    lines.push(trials.line(figures));

    let what = "a rank behind a cable of 4 Mbit/s";
    if lab.is_root() {
        let mut trials = Trials::new("6", what, "left alone");
        let mut steps = Samples::default();
        try_all(lab, &plan("slow-cable", true), 1, &mut trials, |arena| {
            arena.fill()?;
            let names = arena.cluster.worker_names();
            if let (Place::Namespaces(net), Some(name)) = (&arena.cluster.place, names.first()) {
                net.rate(name, Some("4mbit"))?;
            }
            alone(arena, |_| Ok(()))?;
            steps.push(arena.watch.median_step_s()?);
            Ok(Ok(()))
        });
        let figures = format!("{}a step takes {:.2} s", alone_figures(&trials), steps.max());
        lines.push(trials.line(figures));
    } else {
        lines.push(Line::left_out("6", what, "network namespaces need root"));
    }
    Ok(lines)
}

fn alone_figures(trials: &Trials) -> String {
    if trials.are_good() { "no generation closed; ".into() } else { String::new() }
}

/// Seconds until the others commit a step.
fn stall(arena: &mut Arena<'_>, random: &mut Random, signal: Signal) -> Result<f64> {
    arena.fill_and_run(random, 20)?;
    let names = arena.cluster.worker_names();
    let Some(victim) = random.choose(&names).cloned() else { anyhow::bail!("no worker") };
    let generation = arena.watch.generation()?;
    let last_event = arena.watch.last_event()?;
    let mut worker = arena.cluster.take_worker(&victim)?;
    let at = unix_s();
    worker.signal(signal);
    let watch = &arena.watch;
    let next = until("the others commit a step", PATIENCE, || watch.first_commit_beyond(generation))?;
    worker.kill();
    let events = watch.events_after(last_event)?;
    let mut named = Vec::new();
    for event in &events {
        match event.kind.as_str() {
            "lost" => named.extend(event.worker.clone()),
            "complaint" => named.extend(event.detail["culprit_worker"].as_str().map(str::to_owned)),
            _ => {}
        }
    }
    ensure!(named.contains(&victim), "{victim} is not named: {events:?}");
    ensure!(named.iter().all(|name| *name == victim), "{victim} was to be named, {named:?} were");
    Ok(next.time - at)
}

/// Fifty steps from a disturbance on: no generation closes.
fn alone(arena: &mut Arena<'_>, disturb: impl FnOnce(&mut Arena<'_>) -> Result<()>) -> Result<()> {
    arena.fill()?;
    let generation = arena.watch.generation()?;
    disturb(arena)?;
    let step = arena.watch.step()?;
    arena.cluster.wait_for(&arena.watch, step + 50, 0)?;
    arena.cluster.must_live()?;
    let now = arena.watch.generation()?;
    ensure!(now == generation, "generation {generation} was closed");
    Ok(())
}

fn delayed(lab: &Lab) -> Result<()> {
    let plan = Plan { name: "delay", recipe: Recipe::endless(&lab.options.sets), workers: 3, in_namespaces: false };
    let mut arena = Arena::new(lab, &plan)?;
    let proxy = Proxy::start(arena.cluster.address())?;
    proxy.delay(Duration::from_millis(200));
    arena.cluster.through = Some(proxy.url());
    let filled = arena.fill()?;
    let generation = arena.watch.generation()?;
    arena.cluster.wait_for(&arena.watch, filled.step + 400, 0)?;
    ensure!(arena.watch.generation()? == generation, "generation {generation} was closed");
    arena.cluster.stop_and_prove().map(drop)
}
