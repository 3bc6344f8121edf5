//! A replica's course on an accelerator, without one: on CPU tensors, watched by a recorder, over collectives that are
//! sound, that fail, and that complete with junk.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test may panic")]

mod kernels;
#[path = "../mesh/mod.rs"]
mod mesh;
mod recorder;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use lockstep_collective::{Collective, CollectiveError, Layout, Op, Solo};
use lockstep_proto::ids::{Epoch, Generation, Lineage, Rank, SampleRange, StateId, Step};
use lockstep_proto::message::StepPlan;
use lockstep_proto::recipe::{Arch, BatchNorm, DataKind, Evaluate, FrozenBn, Group, Precision, Recipe, Reduction};
use lockstep_worker::compute::{Compute, ComputeError, Named};
use lockstep_worker::device::{DeviceTrainer, HostGpu};
use lockstep_worker::trainer;
use recorder::{Log, Recorder};

fn recipe(precision: Precision) -> Recipe {
    let mut recipe = Recipe::default();
    recipe.data.kind = DataKind::Shapes;
    recipe.data.test_size = 600;
    recipe.model.n = 1;
    recipe.train.batch = 32;
    recipe.train.chunk = 8;
    recipe.train.bucket_bytes = 64 << 10;
    recipe.train.precision = precision;
    recipe.train.reduction = Reduction::Fast;
    recipe
}

fn plan(step: u64, len: u64, shards: &[u32]) -> StepPlan {
    let batch = SampleRange { start: (step - 1) * 32, len };
    StepPlan { step: Step(step), epoch: Epoch(1), lr: 0.1, batch, shards: shards.to_vec() }
}

fn on_host(recipe: &Recipe) -> DeviceTrainer {
    let data = lockstep_data::open(&recipe.data, 0).unwrap();
    let mut trainer = DeviceTrainer::new(recipe, data, Box::new(HostGpu::new().unwrap()), 1).unwrap();
    begin(&mut trainer);
    trainer
}

fn recorded(recipe: &Recipe, captures: bool) -> (DeviceTrainer, Arc<Mutex<Log>>) {
    let data = lockstep_data::open(&recipe.data, 0).unwrap();
    let (gpu, log) = Recorder::new(captures);
    let mut trainer = DeviceTrainer::new(recipe, data, Box::new(gpu), 1).unwrap();
    begin(&mut trainer);
    (trainer, log)
}

fn begin(compute: &mut dyn Compute) {
    compute.initialise();
    compute.set_id(Some(StateId { lineage: Lineage(1), generation: Generation(1), step: Step(0) }));
}

/// Largest difference of two states, relative to the largest number of each tensor.
fn distance(a: &[Named], b: &[Named]) -> f64 {
    let numbers = |named: &Named| -> Vec<f64> {
        match named.dtype {
            lockstep_worker::compute::Dtype::F64 => {
                named.bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
            }
            lockstep_worker::compute::Dtype::F32 => {
                named.bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect()
            }
        }
    };
    let one = |(a, b): (&Named, &Named)| {
        assert_eq!(a.name, b.name);
        let (a, b) = (numbers(a), numbers(b));
        let scale = a.iter().fold(1e-30_f64, |m, x| m.max(x.abs()));
        a.iter().zip(&b).fold(0.0_f64, |m, (x, y)| m.max((x - y).abs())) / scale
    };
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(one).fold(0.0, f64::max)
}

fn variants() -> Vec<(&'static str, Recipe)> {
    let mut all = Vec::new();
    for batch_norm in [BatchNorm::Global, BatchNorm::Local] {
        let mut recipe = recipe(Precision::Fp64);
        recipe.train.batch_norm = batch_norm;
        all.push(("basic blocks", recipe.clone()));
        recipe.model.arch = Arch::Resnet18;
        recipe.model.width = 8;
        all.push(("torchvision's, with max pooling", recipe));
    }
    let mut chunked = recipe(Precision::Fp64);
    chunked.train.batch_norm = BatchNorm::Chunk;
    chunked.train.reduction = Reduction::Canonical;
    all.push(("canonical order, statistics of chunks", chunked.clone()));
    chunked.train.reduction = Reduction::Fast;
    all.push(("statistics of chunks, in any order", chunked.clone()));
    chunked.train.accumulate = 3;
    all.push(("statistics of chunks, in any order, in parts", chunked.clone()));
    chunked.train.reduction = Reduction::Canonical;
    all.push(("canonical order, statistics of chunks, in parts", chunked.clone()));
    chunked.train.accumulate = 1;
    chunked.train.batch_norm = BatchNorm::Global;
    all.push(("canonical order", chunked.clone()));
    chunked.train.batch_norm = BatchNorm::Local;
    all.push(("canonical order, statistics of ranks", chunked));
    let mut mixed = recipe(Precision::Fp64);
    mixed.train.label_smoothing = 0.1;
    mixed.train.mixup_alpha = 0.4;
    mixed.train.cutmix_alpha = 1.0;
    all.push(("smoothed and mixed", mixed));
    let mut averaged = recipe(Precision::Fp64);
    averaged.train.ema_decay = 0.75;
    averaged.train.ema_every = 2;
    averaged.train.evaluate = Evaluate::Ema;
    averaged.optim.clip_norm = 0.5;
    all.push(("averaged, and clipped", averaged));
    let mut tuned = recipe(Precision::Fp64);
    tuned.model.freeze = vec![Group::Stem, Group::Layer1];
    tuned.optim.lr_scale.head = 3.0;
    all.push(("frozen in part", tuned.clone()));
    tuned.model.frozen_bn = FrozenBn::Batch;
    all.push(("frozen in part, statistics of batches", tuned));
    all
}

#[test]
fn enqueued_and_gated_it_is_the_same_mathematics() {
    for (name, recipe) in variants() {
        let data = lockstep_data::open(&recipe.data, 0).unwrap();
        let mut plain = trainer::cpu(&recipe, data, 2).unwrap();
        begin(&mut *plain);
        let mut device = on_host(&recipe);
        for step in 1..=8 {
            // A batch that is not a multiple of the chunk now and then.
            let plan = plan(step, if step % 3 == 0 { 29 } else { 32 }, &[4]);
            let want = plain.step(Generation(1), &plan).unwrap();
            let have = device.step(Generation(1), &plan).unwrap();
            assert!((have.loss - want.loss).abs() <= 1e-9 * want.loss, "{name} {step}: {} {}", have.loss, want.loss);
            assert_eq!((have.wrong, have.samples, have.digest), (want.wrong, want.samples, want.digest), "{name}");
        }
        let off = distance(&plain.tensors().0, &device.tensors().0);
        assert!(off <= 1e-9, "{name}: weights and statistics differ by {off:e}");
        let off = distance(&plain.tensors().1, &device.tensors().1);
        assert!(off <= 1e-9, "{name}: momentum differs by {off:e}");
        let (want, have) = (plain.evaluate(Step(8)).unwrap(), device.evaluate(Step(8)).unwrap());
        assert!((want.loss - have.loss).abs() <= 1e-9 * want.loss, "{name}: evaluation");
        assert_eq!((want.error, want.error_top5, want.samples), (have.error, have.error_top5, have.samples));
    }
}

#[test]
fn in_bf16_and_fp32_it_is_near_the_plain_path() {
    for (precision, bound) in [(Precision::Fp32, 1e-4), (Precision::Bf16, 0.1)] {
        let recipe = recipe(precision);
        let data = lockstep_data::open(&recipe.data, 0).unwrap();
        let mut plain = trainer::cpu(&recipe, data, 2).unwrap();
        begin(&mut *plain);
        let mut device = on_host(&recipe);
        for step in 1..=5 {
            let mut plan = plan(step, 32, &[4]);
            plan.lr = 0.01;
            let (want, have) =
                (plain.step(Generation(1), &plan).unwrap().loss, device.step(Generation(1), &plan).unwrap().loss);
            assert!((want - have).abs() <= bound * want, "{precision:?} {step}: {have} against {want}");
        }
    }
}

#[test]
fn ranks_with_uneven_and_empty_shards_equal_one() {
    let cases = [
        (BatchNorm::Global, Reduction::Fast, Precision::Fp64, 1),
        (BatchNorm::Global, Reduction::Canonical, Precision::Fp32, 1),
        (BatchNorm::Chunk, Reduction::Canonical, Precision::Fp64, 1),
        (BatchNorm::Chunk, Reduction::Canonical, Precision::Fp32, 2),
        (BatchNorm::Chunk, Reduction::Fast, Precision::Fp64, 2),
    ];
    for (batch_norm, reduction, precision, accumulate) in cases {
        let mut recipe = recipe(precision);
        recipe.train.batch_norm = batch_norm;
        recipe.train.reduction = reduction;
        recipe.train.accumulate = accumulate;
        let course = |collective: Arc<dyn Collective>, shards: &[u32]| {
            let (mut device, log) = recorded(&recipe, false);
            device.canary().unwrap();
            device.join(collective);
            let mut losses = Vec::new();
            for step in 1..=4 {
                losses.extend(device.advance(Generation(1), &plan(step, 32, shards)).unwrap());
            }
            losses.extend(device.settle().unwrap());
            let evaluated = device.evaluate(Step(4)).unwrap();
            assert_eq!(log.lock().unwrap().violations, Vec::<String>::new());
            let losses: Vec<f64> = losses.iter().map(|(_, outcome)| outcome.loss).collect();
            assert_eq!(losses.len(), 4);
            (losses, device.tensors().0, evaluated.loss)
        };
        let one = course(Arc::new(Solo::new()), &[4]);
        for shards in [vec![2, 2], vec![3, 1], vec![4, 0], vec![1, 0, 3]] {
            for (losses, model, evaluated) in mesh::ranks(shards.len(), |collective| course(collective, &shards)) {
                losses.iter().zip(&one.0).for_each(|(a, b)| assert!((a - b).abs() <= 1e-10 * b, "{shards:?}"));
                assert!((evaluated - one.2).abs() <= 1e-6 * one.2);
                if reduction == Reduction::Canonical {
                    assert!(model == one.1, "the same bits, {batch_norm:?} {shards:?}");
                } else {
                    assert!(distance(&one.1, &model) <= 1e-9, "{batch_norm:?} {shards:?}");
                }
            }
        }
    }
}

/// Rank 0 of two whose neighbour is gone: every operation completes, with junk; `fails_at` says from which one on with an
/// error as well.
struct Junk {
    fails_at: u32,
    called: AtomicU32,
}

impl Junk {
    fn new(fails_at: u32) -> Arc<Self> {
        Arc::new(Self { fails_at, called: AtomicU32::new(0) })
    }

    fn answer<T: From<f32> + Copy>(&self, out: &mut [T]) -> Result<(), CollectiveError> {
        out.fill(T::from(0.5));
        match self.called.fetch_add(1, Ordering::SeqCst) + 1 < self.fails_at {
            true => Ok(()),
            false => Err(CollectiveError::Aborted),
        }
    }
}

impl Collective for Junk {
    fn rank(&self) -> Rank {
        Rank(0)
    }
    fn world(&self) -> u32 {
        2
    }
    fn reduce_f32(&self, _: &Op, _: &Layout, _: &[&[f32]], out: &mut [f32]) -> Result<(), CollectiveError> {
        self.answer(out)
    }
    fn reduce_f64(&self, _: &Op, _: &Layout, _: &[&[f64]], out: &mut [f64]) -> Result<(), CollectiveError> {
        self.answer(out)
    }
    fn broadcast(&self, _: &Op, _: Rank, _: &mut [u8]) -> Result<(), CollectiveError> {
        Err(CollectiveError::Aborted)
    }
    fn all_gather(&self, _: &Op, _: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        Err(CollectiveError::Aborted)
    }
    fn abort(&self) {
        self.called.store(u32::MAX / 2, Ordering::SeqCst);
    }
}

/// A state that is not the first one, in a world of its own.
fn after_two_steps(captures: bool) -> (DeviceTrainer, Arc<Mutex<Log>>, Vec<u8>) {
    let (mut device, log) = recorded(&recipe(Precision::Fp32), captures);
    device.join(Arc::new(Solo::new()));
    for step in 1..=2 {
        device.advance(Generation(1), &plan(step, 32, &[4])).unwrap();
    }
    device.settle().unwrap();
    device.leave();
    let state = device.to_bytes();
    (device, log, state)
}

#[test]
fn junk_of_an_aborted_neighbour_never_reaches_the_weights() {
    let (mut device, log, state) = after_two_steps(false);
    device.join(Junk::new(u32::MAX));
    // Two steps are under way before the first is known; neither counts.
    assert!(device.advance(Generation(2), &plan(3, 32, &[2, 2])).unwrap().is_empty());
    assert!(device.advance(Generation(2), &plan(4, 32, &[2, 2])).unwrap().is_empty());
    let error = device.advance(Generation(2), &plan(5, 32, &[2, 2])).unwrap_err();
    assert!(matches!(error, ComputeError::Collective(CollectiveError::Outvoted { step: Step(3), .. })), "{error}");
    assert!(error.to_string().contains(" instead of "), "it is told what the votes were: {error}");
    device.leave();
    assert_eq!(device.to_bytes(), state, "bits of weights, momentum and statistics");
    assert_eq!(device.id().unwrap().step, Step(2));
    assert_eq!(log.lock().unwrap().violations, Vec::<String>::new());
    // And the process goes on in the next generation.
    device.join(Arc::new(Solo::new()));
    assert_eq!(device.step(Generation(3), &plan(3, 32, &[4])).unwrap().samples, 32);
    assert_ne!(device.to_bytes(), state);
}

#[test]
fn a_collective_that_fails_anywhere_in_a_step_changes_nothing() {
    let count = {
        let (mut device, _, _) = after_two_steps(false);
        let junk = Junk::new(u32::MAX);
        device.join(Arc::clone(&junk) as Arc<dyn Collective>);
        device.advance(Generation(2), &plan(3, 32, &[2, 2])).unwrap();
        junk.called.load(Ordering::SeqCst)
    };
    assert!(count > 10, "{count} operations in a step");
    let (mut device, log, state) = after_two_steps(false);
    for fails_at in 1..=count {
        device.join(Junk::new(fails_at));
        let error = device.advance(Generation(2), &plan(3, 32, &[2, 2])).unwrap_err();
        assert!(matches!(error, ComputeError::Collective(CollectiveError::Aborted)), "{error}");
        device.leave();
        assert_eq!(device.to_bytes(), state, "operation {fails_at} of {count}");
        assert_eq!(device.id().unwrap().step, Step(2));
    }
    assert_eq!(log.lock().unwrap().violations, Vec::<String>::new());
}

/// A rank that gives up has a step in its queue already: when the device comes to the vote, it is none.
#[test]
fn what_was_enqueued_before_the_poison_does_not_count_behind_it() {
    let (mut device, log, state) = after_two_steps(false);
    device.join(Arc::new(Solo::new()));
    log.lock().unwrap().comes_late_to = Some("vote");
    let error = device.step(Generation(2), &plan(3, 32, &[4])).unwrap_err();
    assert!(matches!(error, ComputeError::Collective(CollectiveError::Outvoted { step: Step(3), .. })), "{error}");
    assert!(error.to_string().contains("do not add up (0 instead of "), "{error}");
    device.leave();
    assert_eq!((device.id().unwrap().step, device.to_bytes()), (Step(2), state));
}

/// The votes add up and the loss is a number, and yet nothing was written.
#[test]
fn a_step_that_the_device_did_not_apply_is_never_reported() {
    let (mut device, log, state) = after_two_steps(false);
    log.lock().unwrap().loses = vec!["optimizer", "running statistics"];
    device.join(Arc::new(Solo::new()));
    let error = device.step(Generation(2), &plan(3, 32, &[4])).unwrap_err();
    assert!(error.to_string().contains("the state is still that after step 2"), "{error}");
    device.leave();
    assert_eq!((device.id().unwrap().step, device.to_bytes()), (Step(2), state));
    log.lock().unwrap().loses.clear();
    device.join(Arc::new(Solo::new()));
    assert_eq!(device.step(Generation(3), &plan(3, 32, &[4])).unwrap().samples, 32);
}

#[test]
fn a_loss_that_is_no_number_changes_nothing_and_names_the_step() {
    let (mut device, _, state) = after_two_steps(false);
    let mut spoiled = state.clone();
    spoiled[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    device.take_bytes(&spoiled).unwrap();
    let error = device.step(Generation(1), &plan(3, 32, &[4])).unwrap_err();
    assert!(error.to_string().contains("the loss is NaN in step 3"), "{error}");
    device.leave();
    assert_eq!(device.to_bytes(), spoiled);
}

/// Many batches in a row and nothing that waits for the device: an evaluation.
#[test]
fn room_on_the_host_is_filled_again_only_behind_its_copy() {
    let mut recipe = recipe(Precision::Fp32);
    recipe.train.reduction = Reduction::Canonical;
    recipe.train.eval_chunk = 50;
    let (mut device, log) = recorded(&recipe, false);
    device.evaluate(Step(0)).unwrap();
    let batches = log.lock().unwrap().trace.iter().filter(|what| *what == "compute batch").count();
    assert_eq!((batches, &log.lock().unwrap().violations), (12, &Vec::new()));
}

#[test]
fn a_generation_ends_in_the_only_order_that_is_safe() {
    let (mut device, log) = recorded(&recipe(Precision::Fp32), true);
    device.join(Arc::new(Solo::new()));
    for step in 1..=20 {
        device.advance(Generation(1), &plan(step, 32, &[4])).unwrap();
    }
    let trace = |from: usize| log.lock().unwrap().trace[from..].to_vec();
    assert!(!trace(0).contains(&"capture".to_owned()), "the first steps of a generation run eagerly");
    device.advance(Generation(1), &plan(21, 32, &[4])).unwrap();
    assert_eq!(trace(0).iter().filter(|what| *what == "capture").count(), 1);
    device.settle().unwrap();
    let from = trace(0).len();
    device.leave();
    assert_eq!(trace(from), ["drain", "destroy", "aborted", "open 1"], "alone there is nothing to abort");
    device.join(Junk::new(u32::MAX));
    device.advance(Generation(2), &plan(22, 32, &[2, 2])).unwrap();
    let from = trace(0).len();
    device.leave();
    assert_eq!(trace(from), ["poison", "abort", "drain", "aborted", "open 1"]);
    assert_eq!(log.lock().unwrap().violations, Vec::<String>::new());
}

#[test]
fn a_step_goes_in_the_documented_order() {
    let (mut device, log) = recorded(&recipe(Precision::Bf16), false);
    device.join(Arc::new(Solo::new()));
    device.advance(Generation(1), &plan(1, 32, &[4])).unwrap();
    let trace = log.lock().unwrap().trace.clone();
    let at =
        |what: &str| trace.iter().position(|have| have == what).unwrap_or_else(|| panic!("no {what} in {trace:?}"));
    let order = [
        "compute batch",
        "compute upload",
        "compute round weights",
        "compute forward",
        "compute loss",
        "compute backward",
        "buckets sum gradient bucket 0",
        "buckets sum vote 0",
        "compute verdict",
        "compute optimizer",
        "compute running statistics",
        "compute outcome",
    ];
    order.windows(2).for_each(|pair| assert!(at(pair[0]) < at(pair[1]), "{pair:?} in {trace:?}"));
    // The first bucket goes while backward still runs.
    let last_backward = trace.iter().rposition(|what| what == "compute backward").unwrap();
    assert!(at("buckets sum gradient bucket 0") < last_backward);
    assert!(!trace.contains(&"host fetch".to_owned()), "nothing waits for the device within a step");
    device.settle().unwrap();
    assert_eq!(log.lock().unwrap().violations, Vec::<String>::new());
}
