//! Promise 11: whoever is asked to leave saves and goes.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::process::Signal;

use crate::arena::{Arena, LEFT, Plan, try_all, within};
use crate::cluster::PATIENCE;
use crate::figures::Samples;
use crate::lab::Lab;
use crate::process::Process;
use crate::random::Random;
use crate::recipe::Recipe;
use crate::table::Line;
use crate::trials::Trials;
use crate::watch::Event;

const BOUND_S: f64 = 20.0;
const TEXT: &str = "saved and gone p99 ≤ 20 s, code 75, nothing lost";

/// Who is asked.
#[derive(Clone, Copy, Debug)]
enum Whom {
    One,
    All,
    Coordinator,
}

pub fn run(lab: &Lab, count: u32) -> Result<Vec<Line>> {
    let cases = [
        (Whom::One, "SIGTERM or SIGUSR1 to one of 3 workers"),
        (Whom::All, "SIGTERM or SIGUSR1 to all 3 workers at once"),
        (Whom::Coordinator, "SIGTERM or SIGINT to the coordinator"),
    ];
    Ok(cases.into_iter().map(|(whom, what)| of(lab, count, whom, what)).collect())
}

fn of(lab: &Lab, count: u32, whom: Whom, what: &str) -> Line {
    let mut random = lab.random(what);
    let plan = Plan { name: "signals", recipe: Recipe::endless(&lab.options.sets), workers: 3, in_namespaces: false };
    let mut trials = Trials::new("11", what, TEXT);
    let mut seconds = Samples::default();
    let mut lost = Samples::default();
    try_all(lab, &plan, count, &mut trials, |arena| {
        arena.fill_and_run(&mut random, 70)?;
        std::thread::sleep(Duration::from_micros(random.below(30_000))); // a random moment, not a synchronisation
        let (took, steps) = match whom {
            Whom::One => one(arena, &mut random)?,
            Whom::All => all(arena, &mut random)?,
            Whom::Coordinator => coordinator(arena, &mut random)?,
        };
        seconds.push(took.as_secs_f64());
        lost.push(steps as f64);
        let nothing_lost = if steps == 0 { Ok(()) } else { Err(format!("{steps} committed steps were lost")) };
        Ok(within("gone", took.as_secs_f64(), BOUND_S).and(nothing_lost))
    });
    trials.line(format!("gone {}, max {:.2} s; lost at most {} steps", seconds.seconds(), seconds.max(), lost.max()))
}

fn polite(random: &mut Random) -> Signal {
    if random.below(2) == 0 { Signal::TERM } else { Signal::USR1 }
}

fn one(arena: &mut Arena<'_>, random: &mut Random) -> Result<(Duration, u64)> {
    let names = arena.cluster.worker_names();
    let Some(name) = random.choose(&names).cloned() else { anyhow::bail!("no worker") };
    let mut worker = arena.cluster.take_worker(&name)?;
    let (committed, last_event) = (arena.watch.step()?, arena.watch.last_event()?);
    let since = Instant::now();
    worker.signal(polite(random));
    let status = worker.wait(PATIENCE)?;
    let took = since.elapsed();
    ensure!(status.code() == LEFT, "{name} ended with {status}: {}", worker.last_words());
    arena.cluster.wait_for(&arena.watch, committed + 1, 2)?;
    arena.cluster.must_live()?;
    Ok((took, lost(arena, last_event)?))
}

fn all(arena: &mut Arena<'_>, random: &mut Random) -> Result<(Duration, u64)> {
    let (signal, last_event) = (polite(random), arena.watch.last_event()?);
    let since = Instant::now();
    for worker in &arena.cluster.workers {
        worker.signal(signal);
    }
    // With the last one the run ends too, once it is saved.
    let Some(coordinator) = arena.cluster.coordinator.take() else { anyhow::bail!("no coordinator") };
    all_gone(arena, coordinator)?;
    let took = since.elapsed();
    arena.cluster.resume()?;
    arena.fill()?;
    Ok((took, lost(arena, last_event)?))
}

/// Everyone ends with the code of one that left.
fn all_gone(arena: &mut Arena<'_>, coordinator: Process) -> Result<()> {
    let mut processes = std::mem::take(&mut arena.cluster.workers);
    processes.push(coordinator);
    for process in &mut processes {
        let status = process.wait(PATIENCE)?;
        ensure!(status.code() == LEFT, "{} ended with {status}: {}", process.name(), process.last_words());
    }
    Ok(())
}

fn coordinator(arena: &mut Arena<'_>, random: &mut Random) -> Result<(Duration, u64)> {
    let Some(coordinator) = arena.cluster.coordinator.take() else { anyhow::bail!("no coordinator") };
    let last_event = arena.watch.last_event()?;
    let since = Instant::now();
    coordinator.signal(if random.below(2) == 0 { Signal::TERM } else { Signal::INT });
    all_gone(arena, coordinator)?;
    let took = since.elapsed();
    arena.cluster.resume()?;
    arena.fill()?;
    Ok((took, lost(arena, last_event)?))
}

/// Committed steps that were taken back since an event.
fn lost(arena: &Arena<'_>, last_event: i64) -> Result<u64> {
    let events = arena.watch.events_after(last_event)?;
    let backs = events.iter().filter(|event| event.kind == "rolled_back");
    Ok(backs.map(|event| number(event, "from").saturating_sub(number(event, "to"))).sum())
}

fn number(event: &Event, key: &str) -> u64 {
    event.detail[key].as_u64().unwrap_or(0)
}
