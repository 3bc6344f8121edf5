//! Invariant 1 within one process: ranks are threads, joined over TCP on loopback. The same bits for every number of
//! ranks and threads, every way to share out the chunks, every precision that has an order to keep.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod mesh;

use std::sync::Arc;

use lockstep_collective::Collective;
use lockstep_data::Dataset;
use lockstep_proto::ids::{Epoch, Generation, SampleRange, Step};
use lockstep_proto::message::StepPlan;
use lockstep_proto::recipe::{
    Activation, BatchNorm, BnMomentum, BnOrder, BnPosition, BnRule, DataKind, Evaluate, Init, Model, Precision, Recipe,
    Reduction, Shortcut, Solver,
};
use lockstep_worker::trainer;

const STEPS: u64 = 12;

fn recipe(precision: Precision, batch_norm: BatchNorm) -> Recipe {
    let mut recipe = Recipe::default();
    recipe.data.kind = DataKind::Shapes;
    recipe.model.n = 1;
    recipe.model.width = 8;
    recipe.train.batch = 40;
    recipe.train.chunk = 8;
    recipe.train.eval_chunk = 100;
    recipe.train.bucket_bytes = 1 << 14;
    recipe.data.test_limit = 500;
    recipe.train.precision = precision;
    recipe.train.batch_norm = batch_norm;
    recipe
}

/// Losses, digests, the evaluation and the final hash: all that a run is.
#[derive(Debug, PartialEq)]
struct Course {
    steps: Vec<(u64, u64, u64)>,
    evaluation: (u64, u64, u64),
    state: String,
}

fn plan(step: u64, shares: &[u32]) -> StepPlan {
    // 40 samples are five chunks of 8; every fourth batch is short: 33 samples, the last chunk has one
    let len = if step.is_multiple_of(4) { 33 } else { 40 };
    StepPlan {
        step: Step(step),
        epoch: Epoch(1),
        lr: 0.05,
        batch: SampleRange { start: (step - 1) * 40, len },
        shards: shares.to_vec(),
    }
}

fn rank(recipe: &Recipe, data: Arc<dyn Dataset>, threads: usize, on: Arc<dyn Collective>, shares: &[u32]) -> Course {
    let mut trainer = trainer::cpu(recipe, data, threads).unwrap();
    trainer.initialise();
    trainer.join(on);
    let mut steps = Vec::new();
    for step in 1..=STEPS {
        let outcome = trainer.step(Generation(1), &plan(step, shares)).unwrap();
        steps.push((outcome.loss.to_bits(), outcome.wrong, outcome.digest));
    }
    let found = trainer.evaluate(Step(STEPS)).unwrap();
    let evaluation = (found.loss.to_bits(), found.error.to_bits(), found.error_top5.to_bits());
    trainer.leave();
    Course { steps, evaluation, state: trainer.sha256() }
}

/// The course that every rank of a world saw; they must agree.
fn course(recipe: &Recipe, data: &Arc<dyn Dataset>, threads: usize, shares: &[u32]) -> Course {
    let mut courses = mesh::ranks(shares.len(), |on| rank(recipe, Arc::clone(data), threads, on, shares));
    let first = courses.remove(0);
    for other in courses {
        assert_eq!(other, first, "ranks of one world differ");
    }
    first
}

fn same_everywhere(precision: Precision, batch_norm: BatchNorm) {
    let recipe = recipe(precision, batch_norm);
    let data = lockstep_data::open(&recipe.data, 0).unwrap();
    let alone = course(&recipe, &data, 1, &[5]);
    assert_eq!(course(&recipe, &data, 2, &[5]), alone, "two threads");
    for shares in [&[3, 2][..], &[1, 4], &[0, 5], &[2, 2, 1], &[1, 0, 4], &[2, 1, 1, 1], &[1, 1, 1, 1, 1, 0, 0]] {
        assert_eq!(course(&recipe, &data, 1, shares), alone, "{precision:?} {batch_norm:?} shares {shares:?}");
    }
    assert_eq!(course(&recipe, &data, 2, &[2, 3]), alone, "two ranks of two threads");
}

#[test]
fn over_nccl_the_course_is_that_over_tcp() {
    for batch_norm in [BatchNorm::Global, BatchNorm::Chunk] {
        let recipe = recipe(Precision::Fp32, batch_norm);
        let data = lockstep_data::open(&recipe.data, 0).unwrap();
        let alone = course(&recipe, &data, 1, &[5]);
        for shares in [&[5][..], &[3, 2], &[0, 5], &[2, 1, 2]] {
            let courses = mesh::ranks_over_nccl(shares.len(), |on| rank(&recipe, Arc::clone(&data), 1, on, shares));
            assert!(courses.iter().all(|course| *course == alone), "{batch_norm:?} shares {shares:?}");
        }
    }
}

#[test]
fn the_course_of_a_run_does_not_depend_on_the_number_of_workers() {
    same_everywhere(Precision::Fp32, BatchNorm::Global);
}

#[test]
fn the_course_with_chunk_statistics_does_not_depend_on_the_number_of_workers() {
    same_everywhere(Precision::Fp32, BatchNorm::Chunk);
}

#[test]
fn the_course_in_bf16_does_not_depend_on_the_number_of_workers() {
    same_everywhere(Precision::Bf16, BatchNorm::Global);
}

#[test]
fn the_course_in_fp64_does_not_depend_on_the_number_of_workers() {
    same_everywhere(Precision::Fp64, BatchNorm::Global);
}

#[test]
fn variants_of_the_block_do_not_depend_on_the_number_of_workers() {
    type Change = fn(&mut Model);
    let variants: [(&str, Change); 4] = [
        ("biases in bf16", |m| (m.conv_bias, m.bn_order) = (true, BnOrder::AfterActivation)),
        ("leaky ReLU, projections", |m| (m.activation, m.shortcut) = (Activation::LeakyRelu, Shortcut::C)),
        ("BN after the addition", |m| (m.bn_position, m.final_relu) = (BnPosition::AfterAdd, false)),
        ("as the original starts", |m| m.init = Init::SeedNninit),
    ];
    for (what, change) in variants {
        let mut recipe = recipe(Precision::Bf16, BatchNorm::Global);
        change(&mut recipe.model);
        let data = lockstep_data::open(&recipe.data, 0).unwrap();
        let alone = course(&recipe, &data, 2, &[5]);
        assert_eq!(course(&recipe, &data, 1, &[2, 1, 2]), alone, "{what}");
    }
}

#[test]
fn every_solver_gives_the_same_bits_on_one_and_on_three_workers() {
    let mut seen = Vec::new();
    for solver in [
        Solver::Sgd,
        Solver::Rmsprop,
        Solver::Adagrad,
        Solver::Adadelta,
        Solver::Adam,
        Solver::Adamw,
        Solver::Lars,
        Solver::Lamb,
    ] {
        let mut recipe = recipe(Precision::Fp32, BatchNorm::Global);
        recipe.optim.solver = solver;
        let data = lockstep_data::open(&recipe.data, 0).unwrap();
        let alone = course(&recipe, &data, 2, &[5]);
        assert_eq!(course(&recipe, &data, 1, &[2, 1, 2]), alone, "{solver:?}");
        assert!(!seen.contains(&alone.state), "{solver:?} is another solver in disguise");
        seen.push(alone.state);
    }
}

#[test]
fn mixing_repeats_clipping_averages_and_parts_do_not_depend_on_the_number_of_workers() {
    for batch_norm in [BatchNorm::Global, BatchNorm::Chunk] {
        let mut recipe = recipe(Precision::Fp32, batch_norm);
        recipe.data.repeats = 3;
        (recipe.train.label_smoothing, recipe.train.mixup_alpha, recipe.train.cutmix_alpha) = (0.1, 0.2, 1.0);
        recipe.optim.clip_norm = 0.5;
        (recipe.train.ema_decay, recipe.train.ema_every, recipe.train.evaluate) = (0.9, 5, Evaluate::Ema);
        let data = lockstep_data::open(&recipe.data, 0).unwrap();
        let alone = course(&recipe, &data, 2, &[5]);
        if batch_norm == BatchNorm::Chunk {
            // Parts of two ranks: 2 + 1 chunks and 1 + 1; with three, a rank has none.
            recipe.train.accumulate = 2;
        }
        for shares in [&[3, 2][..], &[2, 0, 3], &[1, 1, 1, 1, 1]] {
            assert_eq!(course(&recipe, &data, 1, shares), alone, "{batch_norm:?} shares {shares:?}");
        }
        recipe.optim.clip_norm = 0.0;
        assert_ne!(course(&recipe, &data, 2, &[5]).state, alone.state, "it is clipped");
    }
}

#[test]
fn precise_and_dynamic_statistics_do_not_depend_on_the_number_of_workers() {
    for batch_norm in [BatchNorm::Global, BatchNorm::Chunk] {
        let mut recipe = recipe(Precision::Fp32, batch_norm);
        let data = lockstep_data::open(&recipe.data, 0).unwrap();
        let plain = course(&recipe, &data, 2, &[5]);
        recipe.model.bn_momentum = BnMomentum::Rule(BnRule::Dynamic);
        let dynamic = course(&recipe, &data, 2, &[5]);
        recipe.model.bn_precise = 3;
        let precise = course(&recipe, &data, 2, &[5]);
        assert_eq!(course(&recipe, &data, 1, &[2, 1, 2]), precise, "{batch_norm:?}");
        // the course of training does not hear of them, evaluations do
        assert_eq!((&plain.steps, &plain.steps), (&dynamic.steps, &precise.steps));
        assert_eq!(dynamic.state, precise.state, "an evaluation leaves the state as it is");
        assert_ne!(plain.state, dynamic.state);
        assert_ne!(plain.evaluation, dynamic.evaluation);
        assert_ne!(dynamic.evaluation, precise.evaluation);
    }
}

#[test]
fn local_statistics_depend_on_the_world_so_the_tests_above_can_tell() {
    let recipe = recipe(Precision::Fp32, BatchNorm::Local);
    let data = lockstep_data::open(&recipe.data, 0).unwrap();
    let loss = |shares: &[u32]| f64::from_bits(course(&recipe, &data, 1, shares).steps[STEPS as usize - 1].0);
    let (one, two) = (loss(&[5]), loss(&[3, 2]));
    assert!((one - two).abs() / one > 1e-3, "{one} and {two}");
}

#[test]
fn the_fast_order_is_equal_to_rounding() {
    let mut recipe = recipe(Precision::Fp64, BatchNorm::Global);
    recipe.train.reduction = Reduction::Fast;
    let data = lockstep_data::open(&recipe.data, 0).unwrap();
    let last = |shares: &[u32]| f64::from_bits(course(&recipe, &data, 1, shares).steps[STEPS as usize - 1].0);
    let one = last(&[5]);
    for shares in [&[3, 2][..], &[2, 0, 3]] {
        let other = last(shares);
        assert!((one - other).abs() / one < 1e-9, "{one} and {other} with {shares:?}");
    }
}
