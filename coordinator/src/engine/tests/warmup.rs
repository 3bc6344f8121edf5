//! A rate that depends on results: decided by committed steps, a plan window back, whatever happens to the run.

use lockstep_proto::ids::{Generation, Lineage, Step};
use lockstep_proto::message::{FromWorker, PlanItem};
use lockstep_proto::recipe::{Recipe, Warmup};

use super::script::*;
use crate::engine::{Effect, History, Record};

const LOW: f64 = 0.01;
const OWN: f64 = 0.1;

/// 0.01 until the mean error over two steps is below one half; a window of 4.
fn waiting() -> Recipe {
    let mut recipe = recipe();
    recipe.train.evaluate_every_epochs = 0;
    recipe.schedule.warmup = Warmup::UntilError;
    recipe.schedule.warmup_lr = LOW;
    recipe.schedule.warmup_error = 0.5;
    recipe.schedule.warmup_over = 2;
    recipe
}

fn planned_rates(effects: &[Effect], rates: &mut Vec<(u64, f64)>) {
    rates.extend(planned(effects, 1).iter().filter_map(|item| match item {
        PlanItem::Step(plan) => Some((plan.step.0, plan.lr)),
        _ => None,
    }));
}

fn committed_rates(effects: &[Effect], rates: &mut Vec<(u64, f64)>) {
    rates.extend(records(effects).into_iter().filter_map(|record| match record {
        Record::Committed(step) => Some((step.step.0, step.lr)),
        _ => None,
    }));
}

/// Three of eight are wrong from step `low` on, six before. So the mean is below one half at `low + 1`, and step
/// `low + 5` is the first with the schedule's own rate.
fn wrong(step: u64, low: u64) -> u64 {
    if step >= low { 3 } else { 6 }
}

fn expected(step: u64, low: u64) -> f64 {
    if step >= low + 5 { OWN } else { LOW }
}

#[test]
fn the_rate_follows_the_committed_error_a_window_later_in_plans_and_in_records() {
    let low = 3;
    let mut script = Script::new(waiting());
    script.join(&[1]);
    let open = script.train(&[1]);
    let (mut plans, mut commits) = (Vec::new(), Vec::new());
    script.hear(1, saved(open.generation, open.base, 0));
    planned_rates(&script.persist(), &mut plans);
    for step in 1..=12 {
        let mut report = step_report(open.generation, 0, step);
        report.wrong = wrong(step, low);
        let effects = script.hear(1, FromWorker::Reported(report));
        planned_rates(&effects, &mut plans);
        committed_rates(&effects, &mut commits);
        planned_rates(&script.persist(), &mut plans);
    }
    let want: Vec<(u64, f64)> = (1..=12).map(|step| (step, expected(step, low))).collect();
    assert_eq!(plans, want);
    assert_eq!(commits, want);
}

/// What a restarted coordinator plans first, when `committed` steps are in the store and the checkpoint is that of `saved`.
fn first_plan(committed: u64, saved_step: u64, low: u64) -> Vec<(u64, f64)> {
    let history = History {
        settled: Some((data(), "avx2".into(), Some("canary".into()))),
        generation: Generation(2),
        world_size: 1,
        lineage: Lineage(1),
        committed: Step(committed),
        spans: vec![(Step(1), Generation(2))],
        errors: (1..=committed).map(|step| (wrong(step, low), 8)).collect(),
        checkpoints: vec![super::store::stored(2, saved_step, 1)],
        ..History::default()
    };
    let mut script = Script::resumed(waiting(), history);
    script.join(&[1]);
    let mut rates = Vec::new();
    let open = script.train(&[1]);
    assert_eq!(open.base.step, Step(saved_step));
    planned_rates(&script.effects, &mut rates);
    rates
}

#[test]
fn a_restart_and_a_rollback_decide_the_same_rates() {
    let low = 3;
    for committed in 1..=8 {
        for saved_step in 1..=committed {
            let rates = first_plan(committed, saved_step, low);
            assert!(!rates.is_empty(), "committed {committed}, saved {saved_step}");
            for (step, rate) in rates {
                assert_eq!(rate, expected(step, low), "step {step}; committed {committed}, saved {saved_step}");
            }
        }
    }
}

#[test]
fn after_a_rollback_the_steps_that_were_taken_again_decide() {
    let low = 3;
    let history = History {
        settled: Some((data(), "avx2".into(), Some("canary".into()))),
        generation: Generation(2),
        world_size: 1,
        lineage: Lineage(1),
        committed: Step(6),
        spans: vec![(Step(1), Generation(2))],
        errors: (1..=6).map(|step| (wrong(step, low), 8)).collect(),
        checkpoints: vec![super::store::stored(2, 2, 1)],
        ..History::default()
    };
    let mut script = Script::resumed(waiting(), history);
    script.join(&[1]);
    let open = script.train(&[1]);
    assert_eq!(open.base.step, Step(2));
    let mut commits = Vec::new();
    // Another order of addition, and this time the error stays high.
    for step in 3..=12 {
        let mut report = step_report(open.generation, 0, step);
        report.wrong = 6;
        committed_rates(&script.hear(1, FromWorker::Reported(report)), &mut commits);
        script.persist();
    }
    assert_eq!(commits, (3..=12).map(|step| (step, LOW)).collect::<Vec<_>>());
}
