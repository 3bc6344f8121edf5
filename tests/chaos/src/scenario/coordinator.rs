//! Promise 7: the coordinator dies.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::arena::{Arena, Plan, try_all, within};
use crate::cluster::PATIENCE;
use crate::figures::Samples;
use crate::lab::Lab;
use crate::process::{unix_s, until};
use crate::random::Random;
use crate::recipe::Recipe;
use crate::table::Line;
use crate::trials::Trials;

const BOUND_S: f64 = 10.0;

pub fn run(lab: &Lab, count: u32) -> Result<Vec<Line>> {
    let plan = |name| Plan { name, recipe: Recipe::endless(&lab.options.sets), workers: 2, in_namespaces: false };
    let mut random = lab.random("coordinator");
    let bound = "going again ≤ 10 s after its restart, workers stay";
    let mut trials = Trials::new("7", "kill −9 of the coordinator, away for 0 to 3 s", bound);
    let (mut going, mut total) = (Samples::default(), Samples::default());
    try_all(lab, &plan("coordinator"), count, &mut trials, |arena| {
        let away = Duration::from_millis(random.below(3) * random.below(1500));
        let (seconds, since_kill) = kill(arena, &mut random, away)?;
        going.push(seconds);
        total.push(since_kill);
        Ok(within("going again", seconds, BOUND_S))
    });
    let figures =
        format!("going again {}, max {:.2} s; since the kill {}", going.seconds(), going.max(), total.seconds());
    let mut lines = vec![trials.line(figures)];

    let what = format!("kill −9 of the coordinator, away for {} s", lab.options.absent.as_secs());
    let mut trials = Trials::new("7", &what, "workers wait ≥ 10 min; going again ≤ 10 s");
    let mut going = Samples::default();
    try_all(lab, &plan("absent"), 1, &mut trials, |arena| {
        let (seconds, _) = kill(arena, &mut random, lab.options.absent)?;
        going.push(seconds);
        Ok(within("going again", seconds, BOUND_S))
    });
    lines.push(trials.line(format!("going again {}", going.seconds())));
    Ok(lines)
}

/// Seconds from the restart, and from the kill, to the next commit.
pub fn kill(arena: &mut Arena<'_>, random: &mut Random, away: Duration) -> Result<(f64, f64)> {
    arena.fill_and_run(random, 60)?;
    // Anywhere inside a step.
    std::thread::sleep(Duration::from_micros(random.below(30_000))); // a random moment, not a synchronisation
    let killed = unix_s();
    if let Some(coordinator) = &mut arena.cluster.coordinator {
        coordinator.kill();
    }
    let committed = arena.watch.step()?;
    std::thread::sleep(away); // this is the fault
    let names = arena.cluster.worker_names();
    for worker in &mut arena.cluster.workers {
        ensure!(worker.is_alive(), "{} has not waited: {}", worker.name(), worker.last_words());
    }
    let restarted = unix_s();
    arena.cluster.resume()?;
    let watch = &arena.watch;
    let next = until("a step is committed again", PATIENCE, || {
        Ok(watch.last_commit()?.filter(|last| last.step > committed && last.time > restarted))
    })?;
    let first = watch
        .commit_times(committed + 1, next.step)?
        .into_iter()
        .find(|(_, time)| *time > restarted)
        .map_or(next.time, |(_, time)| time);
    arena.cluster.must_live()?;
    ensure!(arena.cluster.worker_names() == names, "workers were replaced");
    Ok((first - restarted, first - killed))
}
