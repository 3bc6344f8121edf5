//! Against the mathematics: chunks, meetings, fused passes and trees are equal to plain autograd with BatchNorm over
//! the whole batch in one tensor.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test may panic")]

mod reference;

use std::sync::Arc;

use lockstep_data::{Dataset, Loader};
use lockstep_proto::ids::{Epoch, Generation, SampleRange, Step};
use lockstep_proto::message::StepPlan;
use lockstep_proto::recipe::{DataKind, Precision, Recipe};
use lockstep_worker::compute::Compute;
use lockstep_worker::trainer;
use reference::{Reference, relative, relative_norm, tensor};
use tch::{Kind, Tensor};

fn recipe(precision: Precision) -> Recipe {
    let mut recipe = Recipe::default();
    recipe.data.kind = DataKind::Shapes;
    recipe.model.n = 1;
    recipe.train.batch = 32;
    recipe.train.chunk = 8;
    recipe.train.precision = precision;
    recipe
}

fn batch(recipe: &Recipe, data: &Arc<dyn Dataset>, plan: &StepPlan, kind: Kind) -> (Tensor, Tensor) {
    let n = plan.batch.len as usize;
    let (mut images, mut labels) = (vec![0.0; n * 32 * 32 * 3], vec![0; n]);
    Loader::new(Arc::clone(data), recipe).load_train(plan.epoch, plan.batch, &mut images, &mut labels).unwrap();
    let x = Tensor::from_slice(&images).view([n as i64, 32, 32, 3]).permute([0, 3, 1, 2]).contiguous().to_kind(kind);
    (x, Tensor::from_slice(&labels))
}

fn plan(step: u64, len: u64, chunk: u64) -> StepPlan {
    StepPlan {
        step: Step(step),
        epoch: Epoch(1),
        lr: 0.1,
        batch: SampleRange { start: (step - 1) * 32, len },
        shards: vec![len.div_ceil(chunk) as u32],
    }
}

#[test]
fn fp64_equals_one_process_of_plain_autograd_after_50_steps() {
    let recipe = recipe(Precision::Fp64);
    let data = lockstep_data::open(&recipe.data, 0).unwrap();
    let mut ours = trainer::cpu(&recipe, Arc::clone(&data), 2).unwrap();
    ours.initialise();
    let mut theirs = Reference::new(&ours.tensors().0, &recipe.model);
    for step in 1..=50 {
        // a batch that is not a multiple of the chunk now and then
        let plan = plan(step, if step % 7 == 0 { 29 } else { 32 }, 8);
        let (x, labels) = batch(&recipe, &data, &plan, Kind::Double);
        let want = theirs.step(&x, &labels, plan.lr);
        let have = ours.step(Generation(1), &plan).unwrap().loss;
        assert!((have - want).abs() / want <= 1e-9, "step {step}: loss {have} against {want}");
    }
    let (model, optimizer) = ours.tensors();
    for named in &model {
        let want = theirs.params.get(&named.name).or(theirs.running.get(&named.name)).unwrap();
        let off = relative(&tensor(named), want);
        assert!(off <= 1e-9, "{} differs by {off:e}", named.name);
    }
    for named in &optimizer {
        let off = relative(&tensor(named), &theirs.momentum[named.name.trim_start_matches("momentum.")]);
        assert!(off <= 1e-9, "{} differs by {off:e}", named.name);
    }
}

#[test]
fn fp32_agrees_for_one_step_from_each_of_ten_states_of_a_run() {
    let recipe = recipe(Precision::Fp32);
    let data = lockstep_data::open(&recipe.data, 0).unwrap();
    let mut ours = trainer::Trainer::<f32>::new(&recipe, Arc::clone(&data), 2).unwrap();
    ours.initialise();
    for state in 0..10 {
        for step in 0..3 {
            ours.step(Generation(1), &plan(1 + state * 3 + step, 32, 8)).unwrap();
        }
        let (model, optimizer) = ours.tensors();
        let mut theirs = Reference::new(&model, &recipe.model);
        for named in &optimizer {
            *theirs.momentum.get_mut(named.name.trim_start_matches("momentum.")).unwrap() = tensor(named);
        }
        let kept = ours.to_bytes();
        let next = plan(200 + state, 32, 8);
        let (x, labels) = batch(&recipe, &data, &next, Kind::Float);
        let (loss, gradients) = theirs.gradient(&x, &labels);
        let have = ours.step(Generation(1), &next).unwrap().loss;
        assert!((have - loss).abs() / loss <= 1e-6, "state {state}: loss {have} against {loss}");
        let own = ours.gradients().unwrap();
        let decayed: Vec<Tensor> = own.iter().map(|(name, _)| &gradients[name] + &theirs.params[name] * 1e-4).collect();
        let flat = |all: Vec<&Tensor>| Tensor::cat(&all.iter().map(|t| t.reshape([-1])).collect::<Vec<_>>(), 0);
        let off = relative_norm(&flat(own.iter().map(|(_, t)| t).collect()), &flat(decayed.iter().collect()));
        assert!(off <= 5e-3, "state {state}: gradient differs by {off:e}");
        let mut plain = Reference::new(&model, &recipe.model);
        for named in &optimizer {
            *plain.momentum.get_mut(named.name.trim_start_matches("momentum.")).unwrap() = tensor(named);
        }
        plain.step(&x, &labels, next.lr);
        let after = ours.tensors().0;
        let params = || after.iter().filter(|t| !t.name.contains("running"));
        let off = relative_norm(
            &flat(params().map(tensor).collect::<Vec<_>>().iter().collect()),
            &flat(params().map(|t| &plain.params[&t.name]).collect()),
        );
        assert!(off <= 1e-5, "state {state}: parameters differ by {off:e}");
        ours.take_bytes(&kept).unwrap();
    }
}
