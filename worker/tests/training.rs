//! Smoothing, mixing, averaging, clipping and accumulation: each against what it is by definition.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test may panic")]

mod reference;

use std::sync::Arc;

use lockstep_data::{Dataset, Delivered, Loader, Part, Split};
use lockstep_proto::draws::Draws;
use lockstep_proto::ids::{Epoch, Generation, SampleRange, Step};
use lockstep_proto::message::{DataIdentity, StepPlan};
use lockstep_proto::recipe::{BatchNorm, DataKind, Evaluate, Precision, Recipe};
use lockstep_worker::compute::{Compute, Named};
use lockstep_worker::trainer::{self, Trainer};
use reference::{Reference, relative, tensor};
use tch::{Kind, Tensor};

const BATCH: u64 = 24;

fn recipe(precision: Precision) -> Recipe {
    let mut recipe = Recipe::default();
    recipe.data.kind = DataKind::Shapes;
    (recipe.data.train_size, recipe.data.test_size) = (240, 60);
    (recipe.model.n, recipe.model.width) = (1, 8);
    (recipe.train.batch, recipe.train.chunk) = (BATCH, 8);
    recipe.train.precision = precision;
    recipe
}

fn plan(step: u64) -> StepPlan {
    let batch = SampleRange { start: (step - 1) % 10 * BATCH, len: BATCH };
    StepPlan { step: Step(step), epoch: Epoch(1 + (step - 1) / 10), lr: 0.05, batch, shards: vec![3] }
}

fn open(recipe: &Recipe) -> Arc<dyn Dataset> {
    recipe.check().unwrap();
    lockstep_data::open(&recipe.data, 0).unwrap()
}

#[test]
fn a_step_with_smoothed_and_mixed_targets_equals_plain_autograd() {
    let mut recipe = recipe(Precision::Fp64);
    recipe.optim.weight_decay = 0.0;
    (recipe.train.label_smoothing, recipe.train.mixup_alpha, recipe.train.cutmix_alpha) = (0.1, 0.4, 1.0);
    let data = open(&recipe);
    let mut ours = Trainer::<f64>::new(&recipe, Arc::clone(&data), 2).unwrap();
    ours.initialise();
    let mut theirs = Reference::new(&ours.tensors().0, &recipe.model);

    let (n, plan) = (BATCH as usize, plan(2));
    let mut loaded = Delivered::default();
    let part = Part { epoch: plan.epoch, batch: plan.batch, positions: plan.batch };
    Loader::new(data, &recipe).load_part(part, &mut loaded).unwrap();
    let Delivered { images, labels, partners, .. } = loaded;
    let x = Tensor::from_slice(&images).view([n as i64, 32, 32, 3]).permute([0, 3, 1, 2]).contiguous();
    let hot = |labels: &[i64]| Tensor::from_slice(labels).one_hot(10).to_kind(Kind::Double);
    let keep: Vec<f64> = partners.iter().map(|partner| partner.keep).collect();
    assert!(keep.iter().filter(|keep| **keep < 0.99).count() > 10, "{keep:?}");
    let keep = Tensor::from_slice(&keep).view([n as i64, 1]);
    let others: Vec<i64> = partners.iter().map(|partner| partner.label).collect();
    let target = (hot(&labels) * &keep + hot(&others) * (1.0 - &keep)) * 0.9 + 0.01;
    let (want, gradients) = theirs.gradient_of(&x.to_kind(Kind::Double), |logits| {
        -(&target * logits.log_softmax(-1, Kind::Double)).sum(Kind::Double) / n as f64
    });

    let have = ours.step(Generation(1), &plan).unwrap().loss;
    assert!((have - want).abs() <= 1e-12 * want, "the loss that is reported is with smoothing: {have} and {want}");
    for (name, have) in ours.gradients().unwrap() {
        let off = relative(&have, &gradients[&name]);
        assert!(off <= 1e-11, "{name} differs by {off:e}");
    }
}

#[test]
fn an_accumulated_step_is_the_whole_one_to_the_bit() {
    for precision in [Precision::Fp32, Precision::Bf16] {
        for chunk in [3, 4, 8] {
            let mut recipe = recipe(precision);
            (recipe.train.batch_norm, recipe.train.chunk) = (BatchNorm::Chunk, chunk);
            recipe.train.mixup_alpha = 0.2;
            let data = open(&recipe);
            let whole = course_in(&mut recipe, &data, 1);
            for parts in [2, 3, 5, 100] {
                assert_eq!(course_in(&mut recipe, &data, parts), whole, "chunks of {chunk} in {parts} parts");
            }
        }
    }
}

/// Losses' bits of some steps, and the state.
fn course_in(recipe: &mut Recipe, data: &Arc<dyn Dataset>, parts: u32) -> (Vec<u64>, String) {
    recipe.train.accumulate = parts;
    let hash = recipe.sha256();
    recipe.train.accumulate = 1;
    assert_eq!(recipe.sha256(), hash, "in how many parts is no part of the recipe's identity");
    recipe.train.accumulate = parts;
    let chunks =
        |plan: StepPlan| StepPlan { shards: vec![plan.batch.len.div_ceil(recipe.train.chunk.into()) as u32], ..plan };
    let mut trainer = trainer::cpu(recipe, Arc::clone(data), 2).unwrap();
    trainer.initialise();
    let step = |step| {
        // a short batch now and then
        let mut plan = plan(step);
        if step % 3 == 0 {
            plan.batch.len = 17;
        }
        trainer.step(Generation(1), &chunks(plan)).unwrap().loss.to_bits()
    };
    ((1..=6).map(step).collect(), trainer.sha256())
}

fn find<'a>(tensors: &'a [Named], name: &str) -> &'a Named {
    tensors.iter().find(|tensor| tensor.name == name).unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn the_average_is_the_sum_that_it_is_by_definition_running_statistics_too() {
    let mut recipe = recipe(Precision::Fp64);
    (recipe.train.ema_decay, recipe.train.ema_every, recipe.train.ema_after_epochs) = (0.9, 2, 1);
    let data = open(&recipe);
    let mut ours = trainer::cpu(&recipe, data, 2).unwrap();
    ours.initialise();
    let mut average: Vec<(String, Tensor)> = ours.tensors().0.iter().map(|t| (t.name.clone(), tensor(t))).collect();
    let names = ours.tensors().1.iter().filter(|t| t.name.starts_with("ema.")).count();
    assert_eq!(names, average.len(), "parameters and running statistics");
    for step in 1..=16 {
        ours.step(Generation(1), &plan(step)).unwrap();
        let (model, optimizer) = ours.tensors();
        for (name, average) in &mut average {
            let now = tensor(find(&model, name));
            // ten steps an epoch: a copy in the first, an average in the second
            if step % 2 == 0 {
                *average = if step <= 10 { now } else { &*average * 0.9 + now * 0.1 };
            }
            let off = relative(&tensor(find(&optimizer, &format!("ema.{name}"))), average);
            assert!(off <= 1e-14, "step {step}: {name} differs by {off:e}");
        }
    }
}

#[test]
fn evaluations_look_at_the_average_and_leave_the_weights_as_they_are() {
    for precision in [Precision::Fp32, Precision::Bf16] {
        let mut recipe = recipe(precision);
        recipe.train.ema_decay = 0.8;
        let data = open(&recipe);
        let mut raw = trainer::cpu(&recipe, Arc::clone(&data), 2).unwrap();
        recipe.train.evaluate = Evaluate::Ema;
        let mut ours = trainer::cpu(&recipe, Arc::clone(&data), 2).unwrap();
        raw.initialise();
        ours.initialise();
        for step in 1..=8 {
            let one = raw.step(Generation(1), &plan(step)).unwrap().loss;
            assert_eq!(ours.step(Generation(1), &plan(step)).unwrap().loss.to_bits(), one.to_bits());
            let before = ours.sha256();
            ours.evaluate(Step(step)).unwrap();
            assert_eq!(ours.sha256(), before);
        }
        // A model whose own weights are the average.
        let (_, optimizer) = ours.tensors();
        let named = |tensor: &Named| Some(Named { name: tensor.name.strip_prefix("ema.")?.into(), ..tensor.clone() });
        let averaged: Vec<Named> = optimizer.iter().filter_map(named).collect();
        let mut other = trainer::cpu(&recipe_without_average(&recipe), data, 1).unwrap();
        other.initialise();
        let momentum = other.tensors().1;
        other.load(&averaged, &momentum).unwrap();
        let (found, want) = (ours.evaluate(Step(8)).unwrap(), other.evaluate(Step(8)).unwrap());
        assert_eq!((found.loss.to_bits(), found.error.to_bits()), (want.loss.to_bits(), want.error.to_bits()));
        assert_ne!(found.loss, raw.evaluate(Step(8)).unwrap().loss, "{precision:?}");
    }
}

fn recipe_without_average(recipe: &Recipe) -> Recipe {
    let mut plain = recipe.clone();
    (plain.train.ema_decay, plain.train.evaluate) = (0.0, Evaluate::Model);
    plain
}

#[test]
fn an_average_goes_on_from_a_checkpoint_and_from_a_broadcast_to_the_bit() {
    for precision in [Precision::Fp32, Precision::Fp64] {
        let mut recipe = recipe(precision);
        (recipe.train.ema_decay, recipe.train.ema_every) = (0.9, 3);
        let data = open(&recipe);
        let replica = || trainer::cpu(&recipe, Arc::clone(&data), 1).unwrap();
        let mut whole = replica();
        whole.initialise();
        for step in 1..=7 {
            whole.step(Generation(1), &plan(step)).unwrap();
        }
        let (model, optimizer) = whole.tensors();
        let (mut loaded, mut sent) = (replica(), replica());
        loaded.load(&model, &optimizer).unwrap();
        sent.take_bytes(&whole.to_bytes()).unwrap();
        for step in 8..=13 {
            for replica in [&mut whole, &mut loaded, &mut sent] {
                replica.step(Generation(1), &plan(step)).unwrap();
            }
        }
        assert_eq!(loaded.sha256(), whole.sha256(), "{precision:?}: from a checkpoint");
        assert_eq!(sent.sha256(), whole.sha256(), "{precision:?}: from a broadcast");

        let mut plain = trainer::cpu(&recipe_without_average(&recipe), Arc::clone(&data), 1).unwrap();
        let refusal = plain.load(&model, &optimizer).unwrap_err().to_string();
        assert!(refusal.contains("`ema."), "{refusal}");
    }
}

#[test]
fn a_clipped_step_is_a_shorter_one_of_the_same_direction() {
    let mut recipe = recipe(Precision::Fp64);
    (recipe.optim.momentum, recipe.optim.nesterov, recipe.optim.weight_decay) = (0.0, false, 0.0);
    let data = open(&recipe);
    let gradient = |clip_norm: f64| {
        let mut recipe = recipe.clone();
        recipe.optim.clip_norm = clip_norm;
        let mut trainer = Trainer::<f64>::new(&recipe, Arc::clone(&data), 2).unwrap();
        trainer.initialise();
        let before = trainer.tensors().0;
        trainer.step(Generation(1), &plan(1)).unwrap();
        let moved = before.iter().zip(trainer.tensors().0).filter(|(a, _)| !a.name.contains("running"));
        let moved: Vec<Tensor> = moved.map(|(a, b)| (tensor(a) - tensor(&b)).reshape([-1]) / 0.05).collect();
        Tensor::cat(&moved, 0)
    };
    let plain = gradient(0.0);
    let norm = plain.norm().double_value(&[]);
    let clipped = gradient(norm / 3.0);
    let off = relative(&clipped, &(&plain * (norm / 3.0 / (norm + 1e-6))));
    assert!(off < 1e-9, "{off:e}");
    assert!(relative(&gradient(norm * 1.01), &plain) < 1e-12);
}

/// A set in which some samples are no numbers, and all have names.
struct Broken(Arc<dyn Dataset>, Vec<u64>, f32);

impl Dataset for Broken {
    fn identity(&self) -> &DataIdentity {
        self.0.identity()
    }

    fn shape(&self) -> [usize; 3] {
        self.0.shape()
    }

    fn label(&self, split: Split, sample: u64) -> u32 {
        self.0.label(split, sample)
    }

    fn image(
        &self,
        split: Split,
        sample: u64,
        draws: Option<&mut Draws>,
        out: &mut [f32],
    ) -> Result<(), lockstep_data::DataError> {
        self.0.image(split, sample, draws, out)?;
        if self.1.contains(&sample) {
            out.fill(self.2);
        }
        Ok(())
    }

    fn name(&self, _: Split, sample: u64) -> Option<String> {
        Some(format!("train/class/{sample}.jpeg"))
    }
}

#[test]
fn a_loss_that_is_not_a_number_stops_with_70_and_names_position_sample_and_file() {
    for accumulate in [1, 3] {
        let mut recipe = recipe(Precision::Fp32);
        // so that one sample's numbers do not reach all others of the batch
        (recipe.train.batch_norm, recipe.train.chunk, recipe.train.accumulate) = (BatchNorm::Chunk, 1, accumulate);
        let good = open(&recipe);
        let at = |position| Loader::new(Arc::clone(&good), &recipe).named(Epoch(1), position).0;
        let (first, second) = (at(5), at(20));
        let data = Arc::new(Broken(Arc::clone(&good), vec![first, second], f32::NAN));
        let mut trainer = trainer::cpu(&recipe, data, 2).unwrap();
        trainer.initialise();
        let before = trainer.sha256();
        let error = trainer.step(Generation(1), &StepPlan { shards: vec![24], ..plan(1) }).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("the loss is NaN in step 1 (positions [0, 24) of epoch 1): "), "{text}");
        let named = format!(
            "not finite at 2 of 24: position 5 (sample {first}, train/class/{first}.jpeg); \
             position 20 (sample {second}, train/class/{second}.jpeg); lower the learning rate"
        );
        assert!(text.contains(&named), "{text}");
        assert_eq!(lockstep_worker::exit::Exit::from(error).code.code(), 70);
        assert_eq!(trainer.sha256(), before, "the state is as it was");
    }
}

#[test]
fn where_everything_is_lost_it_says_so() {
    let recipe = recipe(Precision::Fp32);
    let good = open(&recipe);
    let sample = Loader::new(Arc::clone(&good), &recipe).named(Epoch(1), 5).0;
    // Global statistics take one sample's infinity to all.
    let mut trainer = trainer::cpu(&recipe, Arc::new(Broken(good, vec![sample], f32::INFINITY)), 2).unwrap();
    trainer.initialise();
    let text = trainer.step(Generation(1), &plan(1)).unwrap_err().to_string();
    assert!(text.contains("not finite at 24 of 24: all of them, so look at the rate"), "{text}");
}
