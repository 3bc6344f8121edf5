//! Shows 2: speed and bits beside a throttled worker, with `elastic.balance` and without.

use anyhow::{Context as _, Result};

use crate::cluster::{Cluster, Place};
use crate::lab::Lab;
use crate::recipe::Recipe;
use crate::table::Line;
use crate::throttle::Throttle;
use crate::trials::Trials;

/// Enough for the shares to settle in the first half; the second is measured.
const STEPS: u64 = 80;
const WITH: f64 = 0.9;
const WITHOUT: f64 = 0.55;

/// A run: how many workers, whether the first is throttled, whether shares are balanced.
#[derive(Clone, Copy, Debug)]
struct Case {
    workers: u32,
    is_throttled: bool,
    balance: bool,
}

pub fn run(lab: &Lab, count: u32) -> Result<Vec<Line>> {
    let what = "2 workers, one throttled to a third: share of the speed that both have alone";
    let mut trials = Trials::new("shows 2", what, "≥ 0.9 with elastic.balance, ≤ 0.55 without, same hash");
    // Twelve chunks: nine and three are balanced. They are large, so that what a rank does between two meetings of all
    // (a BatchNorm layer) takes longer than a turn of the throttle: while it is stopped, nobody gets past the next one.
    let recipe = Recipe::endless(&lab.options.sets).with("train.batch", 768).with("train.chunk", 64);
    // Whole batches, and a short window, so that shares soon are what they will be.
    let recipe = recipe.with("data.train_size", 4 * 768).with("train.window", 4);
    let recipe = recipe.with("train.evaluate_every_epochs", 0).with("checkpoint.every_steps", 0).steps(STEPS);
    let mut figures = Vec::new();
    for _ in 0..count {
        let result = once(lab, &recipe);
        if let Ok((with, without)) = &result {
            figures.push(format!("{with:.2} with, {without:.2} without"));
        }
        trials.record(result.and_then(|(with, without)| {
            anyhow::ensure!(with >= WITH, "with elastic.balance {with:.2} of the speed that there is");
            anyhow::ensure!(without <= WITHOUT, "without it {without:.2}: the worker was hardly slowed down");
            Ok(())
        }));
    }
    Ok(vec![trials.line(figures.join("; "))])
}

/// Shares of the hardware's speed: with balance, and without.
fn once(lab: &Lab, recipe: &Recipe) -> Result<(f64, f64)> {
    let speed = |workers, is_throttled, balance| {
        let case = Case { workers, is_throttled, balance };
        measure(lab, recipe, case).with_context(|| format!("{case:?}"))
    };
    let hardware = speed(1, false, false)? + speed(1, true, false)?;
    let without = speed(2, true, false)?;
    let with = speed(2, true, true)?;
    Ok((with / hardware, without / hardware))
}

/// Images a second in the second half of a run, whose bits must be the undisturbed one's.
fn measure(lab: &Lab, recipe: &Recipe, case: Case) -> Result<f64> {
    let own = recipe.clone().with("elastic.balance", case.balance).with("elastic.min_workers", case.workers);
    let mut cluster = Cluster::start(lab, "balance", own, Place::Loopback)?;
    cluster.start_workers(case.workers)?;
    let watch = cluster.watch()?;
    cluster.wait_for(&watch, 5, 0)?;
    let throttle = case.is_throttled.then(|| Throttle::to_a_third(cluster.workers[0].pid()));
    cluster.finish()?;
    drop(throttle);
    lab.prove(recipe, &cluster.run)?;
    let times = watch.commit_times(STEPS / 2, STEPS)?;
    let (first, last) = (times.first().context("no steps")?.1, times.last().context("no steps")?.1);
    let images = watch.count(&format!("SELECT sum(samples) FROM steps WHERE step > {}", STEPS / 2))?;
    Ok(images as f64 / (last - first))
}
