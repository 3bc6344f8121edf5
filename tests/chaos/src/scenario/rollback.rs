//! Shows 4: all workers die between two checkpoints, the coordinator lives; new workers come.

use anyhow::{Result, ensure};

use crate::arena::{Arena, Plan, try_all};
use crate::figures::Samples;
use crate::lab::Lab;
use crate::random::Random;
use crate::recipe::Recipe;
use crate::table::Line;
use crate::trials::Trials;

pub fn run(lab: &Lab, count: u32) -> Result<Vec<Line>> {
    let mut random = lab.random("rollback");
    let plan = Plan { name: "rollback", recipe: Recipe::endless(&lab.options.sets), workers: 2, in_namespaces: false };
    let what = "all workers killed between two checkpoints, coordinator alive, then new workers";
    let mut trials = Trials::new("shows 4", what, "rolled back, event, no doubled row, bits of the undisturbed run");
    let mut back = Samples::default();
    try_all(lab, &plan, count, &mut trials, |arena| {
        back.push(once(arena, &mut random)? as f64);
        Ok(Ok(()))
    });
    let figures = format!("rolled back by p50 {} steps, max {}", back.quantile(0.5), back.max());
    Ok(vec![trials.line(figures)])
}

fn once(arena: &mut Arena<'_>, random: &mut Random) -> Result<u64> {
    let filled = arena.fill()?;
    // Beyond a checkpoint, and before the next one.
    let target = (filled.step / 50 + 1) * 50 + random.between(8, 35);
    arena.cluster.wait_for(&arena.watch, target, 0)?;
    let last_event = arena.watch.last_event()?;
    for worker in &arena.cluster.workers {
        worker.signal(rustix::process::Signal::KILL);
    }
    arena.cluster.workers.clear();
    let committed = arena.watch.step()?;
    arena.fill()?;
    let events = arena.watch.events_after(last_event)?;
    let back = events.iter().find(|event| event.kind == "rolled_back");
    let Some(back) = back else { anyhow::bail!("no event rolled_back after step {committed}") };
    let (from, to) = (back.detail["from"].as_u64().unwrap_or(0), back.detail["to"].as_u64().unwrap_or(0));
    ensure!(from == committed && to < from && to % 50 == 0, "rolled back {from} → {to} after step {committed}");
    let metrics = std::fs::read_to_string(arena.cluster.run.join("metrics.jsonl"))?;
    let mut steps = Vec::new();
    for line in metrics.lines() {
        // The last line may be half-written.
        let Ok(value) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        steps.push(value["step"].as_u64().unwrap_or(0));
    }
    let is_whole = steps.iter().zip(1..).all(|(step, number)| *step == number);
    ensure!(is_whole, "metrics.jsonl does not count 1, 2, 3 … after the rollback");
    Ok(from - to)
}
