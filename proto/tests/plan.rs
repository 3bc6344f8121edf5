//! The course of a run: epochs, batches, boundaries, counted as the contract counts.

#![allow(clippy::unwrap_used)]

use lockstep_proto::ids::{Epoch, SampleRange, Step};
use lockstep_proto::order::SampleOrder;
use lockstep_proto::plan::{Boundary, Course};
use lockstep_proto::recipe::{Recipe, Sampling};
use lockstep_proto::split::{num_chunks, ranges, shard_positions, split_by_cost, split_even};
use proptest::prelude::*;

fn course(num_train: u64, change: impl FnOnce(&mut Recipe)) -> Course {
    let mut recipe = Recipe::default();
    recipe.train.epochs = 3;
    recipe.train.batch = 4;
    recipe.train.chunk = 2;
    recipe.train.evaluate_first = false;
    recipe.checkpoint.every_steps = 0;
    recipe.checkpoint.every_epochs = 0;
    change(&mut recipe);
    recipe.check().unwrap();
    Course::new(&recipe, num_train)
}

fn evaluate(epoch: u64) -> Boundary {
    Boundary::Evaluate { epoch: Epoch(epoch) }
}

fn checkpoint(epoch: u64) -> Boundary {
    Boundary::Checkpoint { epoch: Epoch(epoch) }
}

#[test]
fn the_last_batch_of_an_epoch_is_short() {
    let course = course(50_000, |recipe| recipe.train.batch = 128);
    assert_eq!((course.steps_per_epoch(), course.total_steps(), course.total_epochs()), (391, 1173, 3));
    let first = course.at(Step(1));
    assert_eq!((first.epoch, first.batch, first.ends_epoch), (Epoch(1), SampleRange { start: 0, len: 128 }, false));
    let last = course.at(Step(391));
    assert_eq!((last.epoch, last.batch, last.ends_epoch), (Epoch(1), SampleRange { start: 49_920, len: 80 }, true));
    let next = course.at(Step(392));
    assert_eq!((next.epoch, next.batch, next.ends_epoch), (Epoch(2), SampleRange { start: 0, len: 128 }, false));
}

#[test]
fn the_next_position_starts_over_with_the_epoch() {
    let course = course(10, |_| {});
    assert_eq!([0, 1, 2, 3, 4].map(|step| course.next_position(Step(step))), [0, 4, 8, 0, 4]);
}

#[test]
fn a_batch_larger_than_the_data_is_one_short_step_an_epoch() {
    let course = course(3, |_| {});
    assert_eq!((course.steps_per_epoch(), course.total_steps()), (1, 3));
    assert_eq!(course.at(Step(2)).batch, SampleRange { start: 0, len: 3 });
    assert!(course.at(Step(2)).ends_epoch);
}

#[test]
fn the_rate_comes_from_the_schedule() {
    let course = course(8, |recipe| recipe.schedule.milestones = vec![1]);
    assert_eq!([1, 2, 3].map(|step| course.at(Step(step)).lr), [0.1, 0.1, 0.1 * 0.1]);
}

#[test]
fn limits_of_zero_are_none() {
    let limited =
        |epochs, max_steps| course(10, |recipe| (recipe.train.epochs, recipe.train.max_steps) = (epochs, max_steps));
    assert_eq!((limited(3, 0).total_steps(), limited(3, 0).total_epochs()), (9, 3));
    assert_eq!((limited(3, 100).total_steps(), limited(3, 100).total_epochs()), (9, 3));
    assert_eq!((limited(3, 4).total_steps(), limited(3, 4).total_epochs()), (4, 2));
    assert_eq!((limited(0, 100).total_steps(), limited(0, 100).total_epochs()), (100, 34));
}

#[test]
fn without_samples_there_are_no_steps() {
    let course = course(0, |recipe| recipe.train.max_steps = 5);
    assert_eq!((course.total_steps(), course.total_epochs(), course.steps_per_epoch()), (0, 0, 0));
    assert!(course.at(Step(1)).batch.is_empty());
}

#[test]
fn step_zero_is_saved_and_evaluated_if_asked() {
    assert_eq!(course(10, |_| {}).after(Step(0)), [checkpoint(0)]);
    assert_eq!(course(10, |recipe| recipe.train.evaluate_first = true).after(Step(0)), [evaluate(0), checkpoint(0)]);
}

#[test]
fn evaluation_comes_before_the_checkpoint_that_it_judges() {
    let course = course(10, |recipe| recipe.checkpoint.every_epochs = 1);
    assert_eq!(course.after(Step(2)), []);
    assert_eq!(course.after(Step(3)), [evaluate(1), checkpoint(1)]);
    assert_eq!(course.after(Step(9)), [evaluate(3), checkpoint(3)]);
    assert_eq!(course.after(Step(10)), [], "past the end");
}

#[test]
fn periods_count_steps_and_epochs_of_the_whole_run() {
    let course = course(10, |recipe| {
        recipe.train.evaluate_every_epochs = 2;
        recipe.checkpoint.every_steps = 4;
        recipe.checkpoint.every_epochs = 2;
    });
    let expected = [
        vec![checkpoint(0)],
        vec![],
        vec![],
        vec![],
        vec![checkpoint(2)],
        vec![],
        vec![evaluate(2), checkpoint(2)],
        vec![],
        vec![checkpoint(3)],
        vec![evaluate(3), checkpoint(3)],
    ];
    for (step, expected) in expected.into_iter().enumerate() {
        assert_eq!(course.after(Step(step as u64)), expected, "after step {step}");
    }
}

#[test]
fn a_run_that_ends_inside_an_epoch_is_judged_there() {
    let course = course(10, |recipe| recipe.train.max_steps = 5);
    assert!(!course.at(Step(5)).ends_epoch);
    assert_eq!(course.after(Step(5)), [evaluate(2), checkpoint(2)]);
}

#[test]
fn a_run_that_never_evaluates_still_saves_its_end() {
    let course = course(10, |recipe| {
        recipe.train.evaluate_every_epochs = 0;
        recipe.train.evaluate_first = true;
    });
    assert_eq!(course.after(Step(0)), [checkpoint(0)]);
    assert_eq!(course.after(Step(9)), [checkpoint(3)]);
}

proptest! {
    /// The whole promise in one: steps tile epochs, shards tile steps, and the order maps each position to one sample.
    #[test]
    fn in_an_epoch_every_sample_is_in_exactly_one_shard(
        num in 1u64..1_500,
        batch in 1u64..200,
        chunk in 1u32..40,
        world in 1u32..12,
        costs in proptest::option::of(proptest::collection::vec(0u64..3_000, 12)),
        seed: u64,
    ) {
        let chunk = chunk.min(batch as u32);
        let course = course(num, |recipe| (recipe.train.batch, recipe.train.chunk) = (batch, chunk));
        let order = SampleOrder::new(seed, num, Sampling::Once);
        let mut seen = vec![0; num as usize];
        for step in (course.steps_per_epoch() + 1..).map(Step) {
            let at = course.at(step);
            prop_assert_eq!(at.epoch, Epoch(2));
            let chunks = num_chunks(at.batch.len, chunk);
            let counts = match &costs {
                Some(costs) => split_by_cost(chunks, &costs[..world as usize], u32::MAX),
                None => split_even(chunks, world),
            };
            for chunks in ranges(&counts) {
                let shard = shard_positions(at.batch, chunk, chunks);
                for position in shard.start..shard.end() {
                    seen[order.sample(at.epoch, position) as usize] += 1;
                }
            }
            if at.ends_epoch {
                break;
            }
        }
        prop_assert!(seen.iter().all(|&count| count == 1));
    }

    #[test]
    fn the_last_step_always_judges_and_saves(
        num in 1u64..1_000, batch in 1u64..64, epochs in 0u64..5, max_steps in 0u64..50, every in 0u64..4,
    ) {
        prop_assume!(epochs > 0 || max_steps > 0);
        let course = course(num, |recipe| {
            recipe.train.batch = batch;
            recipe.train.chunk = 1;
            (recipe.train.epochs, recipe.train.max_steps) = (epochs, max_steps);
            recipe.train.evaluate_every_epochs = every + 1;
            (recipe.checkpoint.every_epochs, recipe.checkpoint.every_steps) = (every, every);
        });
        let last = Step(course.total_steps());
        let epoch = course.total_epochs();
        prop_assert_eq!(course.after(last), [evaluate(epoch), checkpoint(epoch)]);
        prop_assert_eq!(course.at(last).epoch, Epoch(epoch));
        prop_assert_eq!(course.after(last.next()), []);
        for step in 0..=last.0 {
            let judged_later = matches!(course.after(Step(step)).as_slice(), [Boundary::Checkpoint { .. }, _, ..]);
            prop_assert!(!judged_later, "after step {}", step);
        }
    }
}
