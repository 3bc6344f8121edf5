//! Slow ranks are named, and with `elastic.balance` given less.

use lockstep_proto::ids::Step;
use lockstep_proto::message::{FromWorker, Open, PlanItem, StepTimes, ToWorker};
use lockstep_proto::recipe::Recipe;

use super::cluster::Random;
use super::script::*;
use crate::engine::balance::Speeds;
use crate::engine::{Effect, Record};

fn long(balance: bool) -> Recipe {
    let mut recipe = recipe();
    recipe.train.epochs = 100;
    recipe.train.evaluate_every_epochs = 1000;
    recipe.checkpoint.every_steps = 0;
    recipe.checkpoint.every_epochs = 0;
    recipe.elastic.balance = balance;
    recipe
}

/// Steps `from..=to` in which a chunk costs the ranks so many seconds; all that followed.
fn steps(script: &mut Script, open: &Open, range: std::ops::RangeInclusive<u64>, costs: [f64; 2]) -> Vec<Effect> {
    let mut effects = Vec::new();
    for step in range {
        for (rank, cost) in (0..).zip(costs) {
            let mut report = step_report(open.generation, rank, step);
            let chunks = f64::from(shards(&script.plan, step)[rank as usize]);
            // Whoever is done first waits: all walls are equal.
            report.times = StepTimes { data: 0.1 * cost * chunks, compute: 0.9 * cost * chunks, comm: 0.0, wall: 1.0 };
            effects.extend(script.hear(u64::from(rank) + 1, FromWorker::Reported(report)));
        }
        effects.extend(script.persist());
    }
    effects
}

fn shards(plan: &[PlanItem], step: u64) -> Vec<u32> {
    let of = |item: &PlanItem| match item {
        PlanItem::Step(plan) if plan.step == Step(step) => Some(plan.shards.clone()),
        _ => None,
    };
    plan.iter().rev().find_map(of).expect("it is planned")
}

fn started(recipe: Recipe) -> (Script, Open) {
    let mut script = Script::new(recipe);
    let open = script.both();
    (script, open)
}

#[test]
fn a_three_times_slower_rank_is_named_once_within_twenty_steps() {
    let (mut script, open) = started(long(false));
    let effects = steps(&mut script, &open, 1..=19, [0.1, 0.3]);
    let named = notes(&effects, "straggler");
    assert_eq!(named.len(), 1);
    assert_eq!(named[0]["rank"], 1);
    assert!((named[0]["times_slower"].as_f64().expect("a number") - 3.0).abs() < 1e-9, "{named:?}");
    assert_eq!(shards(&script.plan, 19), [2, 2], "named, not relieved");
    assert_eq!(notes(&steps(&mut script, &open, 20..=60, [0.1, 0.3]), "straggler"), Vec::<serde_json::Value>::new());
    steps(&mut script, &open, 61..=80, [0.1, 0.1]);
    let again = notes(&steps(&mut script, &open, 81..=100, [0.1, 0.3]), "straggler");
    assert_eq!(again.len(), 1, "it had caught up");
}

#[test]
fn a_rank_that_is_a_little_slower_or_slow_for_a_moment_is_not_named() {
    let (mut script, open) = started(long(true));
    let mut effects = steps(&mut script, &open, 1..=30, [0.1, 0.13]);
    effects.extend(steps(&mut script, &open, 31..=34, [0.1, 2.0]));
    effects.extend(steps(&mut script, &open, 35..=60, [0.1, 0.13]));
    assert_eq!(notes(&effects, "straggler"), Vec::<serde_json::Value>::new());
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Persist { record: Record::Split { .. }, .. })));
}

#[test]
fn a_slow_rank_gets_fewer_chunks_once_that_is_durable() {
    let (mut script, open) = started(long(true));
    let effects = steps(&mut script, &open, 1..=40, [0.1, 0.3]);
    let splits: Vec<(Step, Vec<u64>)> = records(&effects)
        .into_iter()
        .filter_map(|record| match record {
            Record::Split { from, costs, .. } => Some((from, costs)),
            _ => None,
        })
        .collect();
    let [(from, costs)] = &splits[..] else { panic!("{splits:?}") };
    assert_eq!(costs[1] / costs[0], 3, "{costs:?}");
    assert_eq!(shards(&script.plan, from.0 - 1), [2, 2]);
    assert_eq!(shards(&script.plan, from.0), [3, 1]);
    let durable =
        effects.iter().position(|effect| matches!(effect, Effect::Persist { record: Record::Split { .. }, .. }));
    let told = effects.iter().position(|effect| {
        let Effect::Send { message: ToWorker::Plan(plan), .. } = effect else { return false };
        plan.items.iter().any(|item| matches!(item, PlanItem::Step(plan) if plan.step >= *from))
    });
    assert!(durable < told, "{durable:?} {told:?}");
    for record in records(&effects) {
        let Record::Committed(step) = record else { continue };
        let expected: Vec<u64> = if step.step < *from || step.samples == 6 { vec![] } else { vec![6, 2] };
        let has: Vec<u64> = step.shards.iter().map(|shard| shard.len).collect();
        assert!(expected.is_empty() || has == expected, "step {}: {has:?}", step.step);
    }
}

#[test]
fn a_change_that_makes_steps_longer_is_taken_back_and_the_next_one_waits() {
    let mut recipe = long(true);
    recipe.train.window = 1;
    let (mut script, open) = started(recipe);
    let mut changes: Vec<(u64, Vec<u32>)> = vec![(1, vec![2, 2])];
    for step in 1..=200 {
        let split = shards(&script.plan, step);
        if split != changes[changes.len() - 1].1 && step % 4 != 0 {
            changes.push((step, split.clone()));
        }
        for (rank, cost) in [(0, 0.1), (1, 0.3)] {
            let mut report = step_report(open.generation, rank, step);
            report.times.compute = cost * f64::from(split[rank as usize]);
            // Though it should be shorter.
            report.times.wall = if split == [3, 1] { 1.1 } else { 1.0 };
            script.hear(u64::from(rank) + 1, FromWorker::Reported(report));
        }
        script.persist();
    }
    let expected = [(22, [3, 1]), (43, [2, 2]), (84, [3, 1])].map(|(step, split)| (step, split.to_vec()));
    let near =
        |found: &(u64, Vec<u32>), wanted: &(u64, Vec<u32>)| found.1 == wanted.1 && found.0.abs_diff(wanted.0) <= 3;
    assert!(changes.len() >= 4, "{changes:?}");
    assert!(changes[1..4].iter().zip(&expected).all(|(found, wanted)| near(found, wanted)), "{changes:?}");
    let tries = changes.iter().filter(|(_, split)| *split == [3, 1]).count();
    assert!(tries <= 3, "each try waits longer: {changes:?}");
}

#[test]
fn a_restarted_coordinator_knows_how_steps_were_split() {
    use super::store::Tables;
    let recipe = long(true);
    let course = lockstep_proto::plan::Course::new(&recipe, data().num_train);
    let (mut script, open) = started(recipe.clone());
    let mut tables = Tables::default();
    for record in script.log.clone() {
        tables.apply(&record, &course);
    }
    for record in records(&steps(&mut script, &open, 1..=40, [0.1, 0.3])) {
        tables.apply(&record, &course);
    }
    // The next steps were reported, but not committed when the coordinator died.
    let next = tables.committed().next();
    let mut script = Script::resumed(recipe, tables.history(|_| true));
    script.plan = vec![];
    for (stream, rank) in [(1, 0), (2, 1)] {
        let mut hello = hello(&format!("w{stream}"));
        hello.run_id = Some("run".into());
        script.connect(stream, hello);
        let mut ready = ready();
        let state = lockstep_proto::ids::StateId { generation: open.generation, step: next, ..open.base };
        ready.state = Some(state);
        script.hear(stream, FromWorker::Ready(ready));
        let mut report = step_report(open.generation, rank, next.0);
        report.samples = course.at(next).batch.len;
        script.hear(stream, FromWorker::Reported(report));
    }
    let rows: Vec<_> = script.log.iter().filter(|record| matches!(record, Record::Committed(_))).cloned().collect();
    assert_eq!(rows.len(), 1, "{:?}", script.log);
    tables.apply(&rows[0], &course); // which compares its shards with what is durable
}

/// Seconds a chunk as a busy machine has them: around 10 ms, every thirtieth one five times as long.
fn noisy(random: &mut Random) -> f64 {
    let spread = 0.7 + 0.6 * random.below(1000) as f64 / 1000.0;
    0.010 * spread * if random.below(30) == 0 { 5.0 } else { 1.0 }
}

/// Ranks that are named in `num_steps` steps of eight ranks, of which the last is `factor` times slower; and when first.
fn named(seed: u64, num_steps: u64, factor: f64) -> (u64, Option<u64>) {
    let mut random = Random::new(seed);
    let (mut speeds, shards) = (Speeds::new(8), [2; 8]);
    let (mut num_named, mut first) = (0, None);
    for step in 1..=num_steps {
        let report = |rank: u32| {
            let mut report = step_report(lockstep_proto::ids::Generation(1), rank, step);
            report.times.compute = 2.0 * noisy(&mut random) * if rank == 7 { factor } else { 1.0 };
            report
        };
        let reports: Vec<_> = (0..8).map(report).collect();
        speeds.add(&shards, &reports);
        for (rank, ..) in speeds.stragglers() {
            num_named += 1;
            first = first.or((rank.0 == 7).then_some(step));
        }
        speeds.forget_who_was_named();
    }
    (num_named, first)
}

#[test]
fn in_ten_thousand_noisy_steps_nobody_is_named_who_is_not_slow() {
    assert_eq!(named(1, 10_000, 1.0), (0, None));
}

#[test]
fn a_three_times_slower_rank_is_found_in_noise_within_twenty_steps_in_a_thousand_trials() {
    let latest = (1..=1000).map(|seed| named(seed, 20, 3.0).1.expect("named")).max();
    assert!(latest <= Some(20), "{latest:?}");
    println!("named at step {latest:?} at the latest");
}
