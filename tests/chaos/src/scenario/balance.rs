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
    // Twelve chunks: nine and three are balanced. They and the layers are large, so that what a rank does between two
    // meetings of all (a BatchNorm layer) takes many turns of the throttle: while it is stopped, nobody gets past the
    // next one.
    let recipe = Recipe::endless(&lab.options.sets).with("train.batch", 768).with("train.chunk", 64);
    let recipe = recipe.with("model.width", 16);
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
    let speed = |balance| {
        let case = Case { workers: 2, is_throttled: true, balance };
        let run = || Measured::begin(lab, recipe, case)?.end()?.speed(lab);
        run().with_context(|| format!("{case:?}"))
    };
    let hardware = apart(lab, recipe)?;
    let without = speed(false)?;
    let with = speed(true)?;
    Ok((with / hardware, without / hardware))
}

/// What the hardware adds up to: a free worker and a throttled one at the same time, each with a run of its own, so that
/// they share caches and memory, and wait for nobody.
fn apart(lab: &Lab, recipe: &Recipe) -> Result<f64> {
    let case = |is_throttled| Case { workers: 1, is_throttled, balance: false };
    let free = Measured::begin(lab, recipe, case(false))?;
    // So that they end at about the same time.
    let throttled = Measured::begin(lab, &recipe.clone().steps(STEPS / 4), case(true))?;
    let ended = [free.end(), throttled.end()];
    let [free, throttled] = ended;
    Ok(free?.speed(lab)? + throttled?.speed(lab)?)
}

/// A run that goes on.
struct Measured<'a> {
    recipe: Recipe,
    cluster: Cluster<'a>,
    throttle: Option<Throttle>,
}

impl<'a> Measured<'a> {
    fn begin(lab: &'a Lab, recipe: &Recipe, case: Case) -> Result<Self> {
        let own = recipe.clone().with("elastic.balance", case.balance).with("elastic.min_workers", case.workers);
        let mut cluster = Cluster::start(lab, "balance", own, Place::Loopback)?;
        cluster.start_workers(case.workers)?;
        cluster.wait_for(&cluster.watch()?, 2, 0)?;
        let throttle = case.is_throttled.then(|| Throttle::to_a_third(cluster.workers[0].pid()));
        Ok(Self { recipe: recipe.clone(), cluster, throttle })
    }

    fn end(mut self) -> Result<Self> {
        self.cluster.finish()?;
        self.throttle = None;
        Ok(self)
    }

    /// Images a second in the second half, once its bits are the undisturbed one's.
    fn speed(&self, lab: &Lab) -> Result<f64> {
        lab.prove(&self.recipe, &self.cluster.run)?;
        let watch = self.cluster.watch()?;
        let half = watch.step()? / 2;
        let times = watch.commit_times(half, u64::MAX >> 1)?;
        let (first, last) = (times.first().context("no steps")?.1, times.last().context("no steps")?.1);
        let images = watch.count(&format!("SELECT sum(samples) FROM steps WHERE step > {half}"))?;
        Ok(images as f64 / (last - first))
    }
}
