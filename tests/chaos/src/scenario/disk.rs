//! Promise 9: a checkpoint that loads exists, whatever dies when, and when the disk is full.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use lockstep_proto::manifest::Manifest;

use super::flips::copy_folder;
use super::resume::kill_all;
use crate::arena::{Arena, Plan, try_all};
use crate::cluster::{Cluster, PATIENCE, Place};
use crate::disk::SmallDisk;
use crate::figures::Samples;
use crate::lab::Lab;
use crate::process::until;
use crate::random::Random;
use crate::recipe::Recipe;
use crate::table::Line;
use crate::trials::Trials;

/// Steps between two checkpoints.
const EVERY: u64 = 20;

pub fn run(lab: &Lab, count: u32) -> Result<Vec<Line>> {
    let mut random = lab.random("disk");
    let recipe = Recipe::endless(&lab.options.sets).with("checkpoint.every_steps", EVERY);
    let plan = Plan { name: "disk", recipe: recipe.clone(), workers: 2, in_namespaces: false };
    let what = "kill −9 of everything, of all workers, or of the coordinator, while a checkpoint is written";
    let bound = "one loads, ≤ 1 interval lost besides the one being written";
    let mut trials = Trials::new("9", what, bound);
    let (mut lost, mut torn) = (Samples::default(), 0);
    try_all(lab, &plan, count, &mut trials, |arena| {
        let (steps, was_torn) = die_while_saving(arena, &mut random)?;
        lost.push(steps as f64);
        torn += u32::from(was_torn);
        Ok(if steps <= 2 * EVERY { Ok(()) } else { Err(format!("{steps} steps lost")) })
    });
    let figures =
        format!("{torn} with half a checkpoint on disk; steps lost p50 {}, max {}", lost.quantile(0.5), lost.max());
    let mut lines = vec![trials.line(figures)];

    let what = "full disk; then resumed in another place, with space";
    if !lab.is_root() {
        lines.push(Line::left_out("9", what, "a small disk to fill needs root"));
        return Ok(lines);
    }
    let mut trials = Trials::new("9", what, "ends with 73, a checkpoint loads, same bits after the resume");
    let mut reached = Samples::default();
    for _ in 0..count.div_ceil(3) {
        let result = full_disk(lab, &recipe, &mut random);
        if let Ok(steps) = &result {
            reached.push(*steps as f64);
        }
        trials.record(result.map(drop));
    }
    lines.push(trials.line(format!("full after p50 {} steps", reached.quantile(0.5))));
    Ok(lines)
}

/// Steps of the newest checkpoint that loads.
fn newest(run: &Path) -> Result<u64> {
    let mut newest = None;
    for entry in std::fs::read_dir(run.join("checkpoints"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("step-") {
            continue;
        }
        // One that has its name is whole: it got it last.
        let manifest = Manifest::verify(&entry.path()).with_context(|| format!("{name} does not load"))?;
        newest = newest.max(Some(manifest.step.0));
    }
    newest.context("no checkpoint at all")
}

fn is_half_written(run: &Path) -> bool {
    let entries = std::fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| !entry.file_name().to_string_lossy().starts_with("step-"))
}

/// Steps that were lost, and whether a half-written checkpoint was left behind.
fn die_while_saving(arena: &mut Arena<'_>, random: &mut Random) -> Result<(u64, bool)> {
    arena.fill_and_run(random, EVERY)?;
    let run = arena.cluster.run.clone();
    let end = std::time::Instant::now() + PATIENCE;
    while !is_half_written(&run) {
        if std::time::Instant::now() > end {
            bail!("no checkpoint was begun");
        }
        std::thread::yield_now();
    }
    // Anywhere in the files, the flushes and the renames.
    std::thread::sleep(std::time::Duration::from_micros(random.below(15_000)));
    match random.below(3) {
        0 => kill_all(&mut arena.cluster, random),
        1 => arena.cluster.workers.clear(),
        _ => arena.cluster.coordinator = None,
    }
    let torn = is_half_written(&run);
    let committed = arena.watch.step()?;
    let lost = committed.saturating_sub(newest(&run)?);
    if arena.cluster.coordinator.is_none() {
        arena.cluster.resume()?;
    }
    arena.fill()?;
    Ok((lost, torn))
}

/// The step at which the disk was full.
fn full_disk(lab: &Lab, recipe: &Recipe, random: &mut Random) -> Result<u64> {
    let dir = lab.fresh("full-disk")?;
    let small = dir.join("small");
    std::fs::create_dir_all(&small)?;
    let disk = SmallDisk::mount(&small, 1_800_000 + random.below(1_500_000))?;
    let run = small.join("run");
    let own = recipe.clone().with("checkpoint.keep", 0);
    let mut cluster = Cluster::start_in(lab, (dir.clone(), run.clone()), own.clone(), Place::Loopback)?;
    cluster.start_workers(2)?;
    let Some(mut coordinator) = cluster.coordinator.take() else { bail!("no coordinator") };
    let status = coordinator.wait(PATIENCE).context("on a full disk")?;
    let words = coordinator.last_words();
    // Whoever is left behind must end too.
    for worker in &mut cluster.workers {
        until(&format!("{} ends", worker.name()), PATIENCE, || Ok(worker.ended()))?;
    }
    newest(&run)?;
    ensure!(status.code() == Some(73), "the coordinator ended with {status}: {words}");
    drop(cluster);

    let elsewhere = lab.fresh("full-disk-resumed")?;
    copy_folder(&run, &elsewhere.join("run"))?;
    drop(disk);
    let mut cluster = Cluster::resume_in(lab, (elsewhere.clone(), elsewhere.join("run")), own)?;
    let full_at = cluster.watch()?.step()?;
    cluster.start_workers(1)?;
    let watch = cluster.watch()?;
    cluster.wait_for(&watch, full_at + 30, 0)?;
    cluster.stop_and_prove()?;
    Ok(full_at)
}
