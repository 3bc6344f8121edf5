//! Images that cannot be read, with `data.image.bad = "skip"`: a step over the others is that step and no other, whoever
//! was to load the broken ones.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod mesh;
mod reference;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Barrier};

use lockstep_collective::{Collective, Solo};
use lockstep_data::image::ImageError;
use lockstep_data::{DataError, Dataset, Delivered, Loader, Part, Split};
use lockstep_proto::draws::Draws;
use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Epoch, Generation, SampleRange, Step};
use lockstep_proto::message::{DataIdentity, Skipped, StepPlan};
use lockstep_proto::order::SampleOrder;
use lockstep_proto::recipe::{BadImage, BatchNorm, DataKind, Precision, Recipe, Reduction};
use lockstep_worker::compute::{Compute, ComputeError, StepOutcome};
use lockstep_worker::device::{DeviceTrainer, HostGpu};
use lockstep_worker::trainer;
use reference::{Reference, relative, tensor};
use tch::{Kind, Tensor};

/// A set of which some images are broken.
struct Holey {
    whole: Arc<dyn Dataset>,
    broken: BTreeSet<(Split, u64)>,
}

impl Dataset for Holey {
    fn identity(&self) -> &DataIdentity {
        self.whole.identity()
    }

    fn shape(&self) -> [usize; 3] {
        self.whole.shape()
    }

    fn label(&self, split: Split, sample: u64) -> u32 {
        self.whole.label(split, sample)
    }

    fn image(&self, split: Split, sample: u64, draws: Option<&mut Draws>, out: &mut [f32]) -> Result<(), DataError> {
        if self.broken.contains(&(split, sample)) {
            out.fill(f32::NAN);
            let path = PathBuf::from(format!("{sample}.JPEG"));
            return Err(DataError::Image { path, error: ImageError::Kind { is: "text" }, root: PathBuf::new() });
        }
        self.whole.image(split, sample, draws, out)
    }
}

const BATCH: u64 = 40;
const TEST_BROKEN: [u64; 3] = [0, 7, 199];

fn recipe(precision: Precision, batch_norm: BatchNorm) -> Recipe {
    let mut recipe = Recipe::default();
    recipe.data.kind = DataKind::Shapes;
    recipe.data.test_limit = 200;
    recipe.data.image.bad = BadImage::Skip;
    recipe.model.n = 1;
    recipe.model.width = 8;
    recipe.train.batch = BATCH;
    recipe.train.chunk = 8;
    recipe.train.precision = precision;
    recipe.train.batch_norm = batch_norm;
    recipe
}

/// Of epoch 1: some of the first batch, with all of its second chunk; one of the second; none of the third.
fn positions() -> Vec<u64> {
    [3].into_iter().chain(8..16).chain([39, 55]).collect()
}

fn holey(recipe: &Recipe, positions: &[u64]) -> (Arc<dyn Dataset>, Arc<dyn Dataset>) {
    let whole = lockstep_data::open(&recipe.data, 0).unwrap();
    let order = order(recipe);
    let train = positions.iter().map(|&position| (Split::Train, order.sample(Epoch(1), position)));
    let broken = train.chain(TEST_BROKEN.map(|sample| (Split::Test, sample))).collect();
    (Arc::new(Holey { whole: Arc::clone(&whole), broken }), whole)
}

fn order(recipe: &Recipe) -> SampleOrder {
    SampleOrder::of(recipe, recipe.data.train_size)
}

/// Positions of the first three batches whose samples are those of `positions`.
fn all_positions(recipe: &Recipe, positions: &[u64]) -> Vec<u64> {
    let sample = |at: &u64| order(recipe).sample(Epoch(1), *at);
    let broken: BTreeSet<u64> = positions.iter().map(sample).collect();
    (0..3 * BATCH).filter(|at| broken.contains(&sample(at))).collect()
}

/// The same with everything that a batch's size and its order have a part in.
fn mixing(precision: Precision, batch_norm: BatchNorm) -> Recipe {
    let mut recipe = recipe(precision, batch_norm);
    (recipe.train.label_smoothing, recipe.train.mixup_alpha, recipe.train.cutmix_alpha) = (0.1, 0.4, 1.0);
    recipe.data.repeats = 4;
    recipe.optim.clip_norm = 0.5;
    recipe
}

fn plan(step: u64, shares: &[u32]) -> StepPlan {
    let batch = SampleRange { start: (step - 1) * BATCH, len: BATCH };
    StepPlan { step: Step(step), epoch: Epoch(1), lr: 0.1, batch, shards: shares.to_vec() }
}

#[test]
fn a_step_over_the_others_is_what_plain_autograd_makes_of_them() {
    let recipe = recipe(Precision::Fp64, BatchNorm::Global);
    let (data, whole) = holey(&recipe, &positions());
    let mut ours = trainer::cpu(&recipe, data, 2).unwrap();
    ours.initialise();
    let mut theirs = Reference::new(&ours.tensors().0, &recipe.model);
    let loader = Loader::new(whole, &recipe);
    for step in 1..=3 {
        let plan = plan(step, &[5]);
        let left: Vec<u64> = (plan.batch.start..plan.batch.end()).filter(|at| !positions().contains(at)).collect();
        let (mut images, mut labels) = (vec![0.0; left.len() * 32 * 32 * 3], vec![0; left.len()]);
        for ((at, image), label) in left.iter().zip(images.chunks_mut(32 * 32 * 3)).zip(labels.chunks_mut(1)) {
            loader.load_train(Epoch(1), SampleRange { start: *at, len: 1 }, image, label).unwrap();
        }
        let x = Tensor::from_slice(&images).view([left.len() as i64, 32, 32, 3]).permute([0, 3, 1, 2]).contiguous();
        let want = theirs.step(&x.to_kind(Kind::Double), &Tensor::from_slice(&labels), plan.lr);
        let have = ours.step(Generation(1), &plan).unwrap();
        assert_eq!(have.samples, left.len() as u64);
        assert!((have.loss - want).abs() / want <= 1e-9, "step {step}: loss {} against {want}", have.loss);
    }
    for named in &ours.tensors().0 {
        let want = theirs.params.get(&named.name).or(theirs.running.get(&named.name)).unwrap();
        let off = relative(&tensor(named), want);
        assert!(off <= 1e-9, "{} differs by {off:e}", named.name);
    }
}

#[test]
fn with_smoothed_and_mixed_targets_too() {
    let mut recipe = mixing(Precision::Fp64, BatchNorm::Global);
    (recipe.optim.weight_decay, recipe.optim.clip_norm) = (0.0, 0.0);
    let (data, _) = holey(&recipe, &positions());
    let mut ours = trainer::Trainer::<f64>::new(&recipe, Arc::clone(&data), 2).unwrap();
    ours.initialise();
    let mut theirs = Reference::new(&ours.tensors().0, &recipe.model);
    let plan = plan(1, &[5]);
    let mut rows = Delivered::default();
    let part = Part { epoch: plan.epoch, batch: plan.batch, positions: plan.batch };
    Loader::new(data, &recipe).load_part(part, &mut rows).unwrap();
    let n = rows.labels.len() as i64;
    assert!(n < 40 && rows.skipped.len() as i64 == 40 - n);
    let x = Tensor::from_slice(&rows.images).view([n, 32, 32, 3]).permute([0, 3, 1, 2]).contiguous();
    let hot = |labels: &[i64]| Tensor::from_slice(labels).one_hot(10).to_kind(Kind::Double);
    let keep: Vec<f64> = rows.partners.iter().map(|partner| partner.keep).collect();
    let keep = Tensor::from_slice(&keep).view([n, 1]);
    let others: Vec<i64> = rows.partners.iter().map(|partner| partner.label).collect();
    let target = (hot(&rows.labels) * &keep + hot(&others) * (1.0 - &keep)) * 0.9 + 0.01;
    let (want, gradients) = theirs.gradient_of(&x.to_kind(Kind::Double), |logits| {
        -(&target * logits.log_softmax(-1, Kind::Double)).sum(Kind::Double) / n as f64
    });
    let have = ours.step(Generation(1), &plan).unwrap();
    assert_eq!(have.samples as i64, n);
    assert!((have.loss - want).abs() <= 1e-12 * want, "{} and {want}", have.loss);
    for (name, have) in ours.gradients().unwrap() {
        let off = relative(&have, &gradients[&name]);
        assert!(off <= 1e-11, "{name} differs by {off:e}");
    }
}

/// Losses, what was left out, the evaluation and the final hash.
#[derive(Debug, PartialEq)]
struct Course {
    steps: Vec<(u64, u64, u64, Vec<Skipped>)>,
    evaluation: (u64, u64, u64, Vec<Skipped>),
    state: String,
}

fn rank(recipe: &Recipe, data: Arc<dyn Dataset>, on: Arc<dyn Collective>, shares: &[u32]) -> Course {
    let mut trainer = trainer::cpu(recipe, data, 1).unwrap();
    trainer.initialise();
    trainer.join(on);
    (1..=3).for_each(|step| trainer.announce(&plan(step, shares)));
    let steps = (1..=3).map(|step| {
        let outcome = trainer.step(Generation(1), &plan(step, shares)).unwrap();
        (outcome.loss.to_bits(), outcome.samples, outcome.digest, outcome.skipped)
    });
    let steps = steps.collect();
    let found = trainer.evaluate(Step(3)).unwrap();
    let evaluation = (found.loss.to_bits(), found.error.to_bits(), found.samples, found.skipped);
    trainer.leave();
    Course { steps, evaluation, state: trainer.sha256() }
}

#[test]
fn whoever_was_to_load_the_broken_ones_the_bits_are_the_same() {
    let fp32 = Precision::Fp32;
    let parts = |accumulate| {
        let mut recipe = mixing(fp32, BatchNorm::Chunk);
        recipe.train.accumulate = accumulate;
        recipe
    };
    let recipes = [BatchNorm::Global, BatchNorm::Chunk].into_iter().flat_map(|of| [recipe(fp32, of), mixing(fp32, of)]);
    let mut accumulated = Vec::new();
    for recipe in recipes.chain([parts(2), parts(3)]) {
        let what = format!("{:?}, mixup {}", recipe.train.batch_norm, recipe.train.mixup_alpha);
        let (data, _) = holey(&recipe, &positions());
        let world = |shares: &[u32]| {
            let mut courses = mesh::ranks(shares.len(), |on| rank(&recipe, Arc::clone(&data), on, shares));
            let first = courses.remove(0);
            assert!(courses.iter().all(|course| *course == first), "{what}: ranks of {shares:?} differ");
            first
        };
        let alone = world(&[5]);
        let left_out: Vec<u64> = alone.steps.iter().flat_map(|step| step.3.iter().map(|s| s.position)).collect();
        let expected = all_positions(&recipe, &positions());
        assert_eq!(left_out, expected, "{what}");
        for (step, batch) in alone.steps.iter().zip(0..) {
            let own = BATCH * batch..BATCH * (batch + 1);
            assert_eq!(step.1, BATCH - expected.iter().filter(|at| own.contains(at)).count() as u64, "{what}");
        }
        assert_eq!(alone.steps[0].3[0].reason, "not a JPEG or PNG but text");
        assert_eq!(alone.evaluation.2, 197);
        assert_eq!(alone.evaluation.3.iter().map(|s| s.position).collect::<Vec<_>>(), TEST_BROKEN);
        for shares in [&[2, 3][..], &[1, 4], &[1, 3, 1], &[1, 1, 1, 1, 1], &[0, 1, 4]] {
            assert_eq!(world(shares), alone, "{what}, shares {shares:?}");
        }
        if recipe.train.batch_norm == BatchNorm::Chunk && recipe.train.mixup_alpha > 0.0 {
            accumulated.push(alone);
        }
    }
    assert_eq!(accumulated.len(), 3);
    assert!(accumulated.iter().all(|course| *course == accumulated[0]), "in however many parts");
}

#[test]
fn a_rank_of_which_nothing_is_left_takes_part_with_local_statistics_too() {
    let mut recipe = recipe(Precision::Fp32, BatchNorm::Local);
    recipe.train.reduction = Reduction::Fast;
    let (data, _) = holey(&recipe, &positions());
    let courses = mesh::ranks(3, |on| rank(&recipe, Arc::clone(&data), on, &[1, 1, 3]));
    assert!(courses.iter().all(|course| course.steps[0].1 == 30 && course.state == courses[0].state));
    assert!(f64::from_bits(courses[0].evaluation.0).is_finite());
}

#[test]
fn a_batch_of_which_nothing_is_left_ends_the_run_as_wrong_data() {
    let recipe = recipe(Precision::Fp32, BatchNorm::Global);
    let (data, _) = holey(&recipe, &(0..BATCH).collect::<Vec<_>>());
    let mut trainer = trainer::cpu(&recipe, data, 1).unwrap();
    assert_eq!(trainer.canary().unwrap().len(), 64, "one chunk of nothing is no reason to end");
    trainer.initialise();
    let Err(ComputeError::Fatal(exit)) = trainer.step(Generation(1), &plan(1, &[5])) else { panic!("it went on") };
    assert_eq!(exit.code, ExitCode::Data);
    let expected = "step 1 (positions [0, 40) of epoch 1) has no image that can be read; the first is training sample ";
    assert!(exit.reason.starts_with(expected), "{}", exit.reason);
    assert!(trainer.step(Generation(1), &plan(2, &[5])).is_ok(), "the state is as it was");
}

/// On the other kind of replica, whatever is a batch of its own there.
#[test]
fn a_device_leaves_out_the_same_samples() {
    let mut recipes: Vec<Recipe> = Vec::new();
    for batch_norm in [BatchNorm::Global, BatchNorm::Chunk, BatchNorm::Local] {
        for reduction in [Reduction::Fast, Reduction::Canonical] {
            let mut recipe = mixing(Precision::Fp64, batch_norm);
            recipe.train.reduction = reduction;
            recipe.model.bn_precise = 2;
            recipes.push(recipe);
        }
    }
    for mut recipe in recipes {
        let what = format!("{:?}, {:?}", recipe.train.batch_norm, recipe.train.reduction);
        let (data, _) = holey(&recipe, &positions());
        let course = |device: &mut dyn Compute, on: Arc<dyn Collective>, (shares, done): (&[u32], &Barrier)| {
            device.initialise();
            device.join(on);
            (1..=3).for_each(|step| device.announce(&plan(step, shares)));
            let steps: Vec<StepOutcome> =
                (1..=3).map(|step| device.step(Generation(1), &plan(step, shares)).unwrap()).collect();
            let found = device.evaluate(Step(3)).unwrap();
            let state = device.tensors().0;
            // Who leaves aborts: not while others still wait for their sum.
            done.wait();
            device.leave();
            (steps, found, state)
        };
        for shares in [&[5][..], &[2, 3], &[1, 1, 3]] {
            if recipe.train.batch_norm == BatchNorm::Local && shares.len() > 1 {
                continue; // statistics of a rank are over other samples there
            }
            let accumulate = if recipe.train.batch_norm == BatchNorm::Chunk { shares.len() as u32 } else { 1 };
            recipe.train.accumulate = accumulate;
            let mut plain = trainer::cpu(&recipe, Arc::clone(&data), 1).unwrap();
            let want = course(&mut *plain, Arc::new(Solo::new()), (&[5], &Barrier::new(1)));
            let done = Barrier::new(shares.len());
            let all = mesh::ranks(shares.len(), |on| {
                let mut gpu =
                    DeviceTrainer::new(&recipe, Arc::clone(&data), Box::new(HostGpu::new().unwrap()), 2).unwrap();
                assert_eq!(gpu.canary().unwrap().len(), 64);
                course(&mut gpu, on, (shares, &done))
            });
            for (steps, found, state) in all {
                assert!(steps.iter().all(|step| step.ready.is_some()), "what was announced is read ahead");
                for (have, want) in steps.iter().zip(&want.0) {
                    assert!((have.loss - want.loss).abs() <= 1e-9 * want.loss, "{what}, {shares:?}: {}", have.loss);
                    assert_eq!((have.samples, have.digest), (want.samples, want.digest), "{what}, {shares:?}");
                    assert_eq!((have.wrong, &have.skipped), (want.wrong, &want.skipped), "{what}, {shares:?}");
                }
                assert!((found.loss - want.1.loss).abs() <= 1e-9 * want.1.loss, "{what}, {shares:?}: evaluation");
                assert_eq!((found.samples, &found.skipped), (want.1.samples, &want.1.skipped), "{what}, {shares:?}");
                for (have, want) in state.iter().zip(&want.2) {
                    let off = relative(&tensor(have), &tensor(want));
                    assert!(off <= 1e-9, "{what}, {shares:?}: {} differs by {off:e}", have.name);
                }
            }
        }
    }
}

#[test]
fn a_batch_of_which_nothing_is_left_ends_the_run_on_a_device_too() {
    let recipe = recipe(Precision::Fp32, BatchNorm::Global);
    let (data, _) = holey(&recipe, &(0..BATCH).collect::<Vec<_>>());
    let mut trainer = DeviceTrainer::new(&recipe, data, Box::new(HostGpu::new().unwrap()), 1).unwrap();
    assert_eq!(trainer.canary().unwrap().len(), 64, "one chunk of nothing is no reason to end");
    trainer.initialise();
    let Err(ComputeError::Fatal(exit)) = trainer.step(Generation(1), &plan(1, &[5])) else { panic!("it went on") };
    assert_eq!(exit.code, ExitCode::Data);
    assert!(exit.reason.starts_with("step 1 (positions [0, 40) of epoch 1) has no image"), "{}", exit.reason);
    assert!(trainer.step(Generation(1), &plan(2, &[5])).is_ok(), "the state is as it was");
}
