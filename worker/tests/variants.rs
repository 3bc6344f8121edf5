//! Every variant of the network, forward and backward, against plain autograd with BatchNorm over the whole batch: alone,
//! and with global BatchNorm over two ranks.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test may panic")]

mod mesh;
mod reference;

use std::sync::Arc;

use lockstep_collective::Collective;
use lockstep_data::{Dataset, Loader};
use lockstep_proto::ids::{Epoch, Generation, SampleRange, Step};
use lockstep_proto::message::StepPlan;
use lockstep_proto::recipe::{
    Activation, Arch, BnOrder, BnPosition, DataKind, Model, Precision, Recipe, Shortcut, StrideOn,
};
use lockstep_worker::compute::Compute;
use lockstep_worker::trainer::Trainer;
use reference::{Reference, tensor};
use tch::{Kind, Tensor};

const BATCH: u64 = 24;

fn recipe(model: Model) -> Recipe {
    let mut recipe = Recipe { model, ..Recipe::default() };
    recipe.data.kind = DataKind::Shapes;
    recipe.train.batch = BATCH;
    recipe.train.chunk = 8;
    recipe.train.precision = Precision::Fp64;
    // so that the gradient that is compared is that of the loss alone
    recipe.optim.weight_decay = 0.0;
    recipe
}

fn plan(shares: &[u32]) -> StepPlan {
    let batch = SampleRange { start: 0, len: BATCH };
    StepPlan { step: Step(1), epoch: Epoch(1), lr: 0.1, batch, shards: shares.to_vec() }
}

/// Loss, gradients by name, and running statistics by name.
type Outcome = (f64, Vec<(String, Tensor)>, Vec<(String, Tensor)>);

fn ours(recipe: &Recipe, data: &Arc<dyn Dataset>, on: Arc<dyn Collective>, shares: &[u32]) -> Outcome {
    let mut trainer = Trainer::<f64>::new(recipe, Arc::clone(data), 1).unwrap();
    trainer.initialise();
    trainer.join(on);
    let loss = trainer.step(Generation(1), &plan(shares)).unwrap().loss;
    let running = trainer.tensors().0.into_iter().filter(|named| named.name.contains("running"));
    let running = running.map(|named| (named.name.clone(), tensor(&named))).collect();
    (loss, trainer.gradients().unwrap(), running)
}

fn theirs(recipe: &Recipe, data: &Arc<dyn Dataset>) -> Outcome {
    let mut start = Trainer::<f64>::new(recipe, Arc::clone(data), 1).unwrap();
    start.initialise();
    let n = BATCH as usize;
    let (mut images, mut labels) = (vec![0.0; n * 32 * 32 * 3], vec![0; n]);
    let plan = plan(&[3]);
    Loader::new(Arc::clone(data), recipe).load_train(plan.epoch, plan.batch, &mut images, &mut labels).unwrap();
    let x = Tensor::from_slice(&images).view([n as i64, 32, 32, 3]).permute([0, 3, 1, 2]).contiguous();
    let mut reference = Reference::new(&start.tensors().0, &recipe.model);
    let (loss, gradients) = reference.gradient(&x.to_kind(Kind::Double), &Tensor::from_slice(&labels));
    (loss, gradients.into_iter().collect(), reference.running.into_iter().collect())
}

/// Largest difference, over the tensor's largest value; one that is zero but for rounding (the gradient of a bias before
/// BatchNorm) is measured by `largest`.
fn off(have: &Tensor, want: &Tensor, largest: f64) -> f64 {
    let scale = want.abs().max().double_value(&[]);
    let scale = if scale < 1e-10 * largest { largest } else { scale };
    (have - want).abs().max().double_value(&[]) / scale
}

fn equal(what: &str, have: &Outcome, want: &Outcome) {
    let loss = (have.0 - want.0).abs() / want.0;
    assert!(loss <= 1e-12, "{what}: loss {} against {}", have.0, want.0);
    let find =
        |all: &[(String, Tensor)], name: &str| all.iter().find(|(own, _)| own == name).unwrap().1.shallow_clone();
    assert_eq!((have.1.len(), have.2.len()), (want.1.len(), want.2.len()), "{what}");
    let largest = want.1.iter().map(|(_, t)| t.abs().max().double_value(&[])).fold(0.0, f64::max);
    for (name, want) in &want.1 {
        let off = off(&find(&have.1, name), want, largest);
        assert!(off <= 1e-12, "{what}: {name} differs by {off:e}");
    }
    for (name, mean) in &want.2 {
        // a mean is as exact as the deviation allows, however small it is itself
        let deviation = find(&want.2, &name.replace("running_mean", "running_var")).sqrt();
        let off = ((find(&have.2, name) - mean).abs() / deviation).max().double_value(&[]);
        assert!(off <= 1e-12, "{what}: {name} differs by {off:e}");
    }
}

fn check(what: &str, model: Model) {
    let recipe = recipe(Model { n: 1, width: 8, ..model });
    let data = lockstep_data::open(&recipe.data, 0).unwrap();
    let want = theirs(&recipe, &data);
    for shares in [&[3][..], &[2, 1]] {
        for have in mesh::ranks(shares.len(), |on| ours(&recipe, &data, on, shares)) {
            equal(&format!("{what}, {} ranks", shares.len()), &have, &want);
        }
    }
}

#[test]
fn the_four_endings_of_a_block_equal_plain_autograd() {
    for bn_position in [BnPosition::BeforeAdd, BnPosition::AfterAdd] {
        for final_relu in [true, false] {
            let model = Model { bn_position, final_relu, ..Model::default() };
            check(&format!("{bn_position:?}, final_relu {final_relu}"), model);
        }
    }
}

#[test]
fn leaky_relu_and_batch_norm_after_the_activation_equal_plain_autograd() {
    for bn_order in [BnOrder::BeforeActivation, BnOrder::AfterActivation] {
        for bn_position in [BnPosition::BeforeAdd, BnPosition::AfterAdd] {
            for activation in [Activation::Relu, Activation::LeakyRelu] {
                // a slope that is seen
                let model = Model { bn_order, bn_position, activation, leaky_slope: 0.2, ..Model::default() };
                check(&format!("{bn_order:?}, {bn_position:?}, {activation:?}"), model);
            }
        }
    }
}

#[test]
fn shortcuts_and_biases_equal_plain_autograd() {
    for shortcut in [Shortcut::A, Shortcut::B, Shortcut::C] {
        for (conv_bias, bn_order) in
            [(false, BnOrder::BeforeActivation), (true, BnOrder::AfterActivation), (true, BnOrder::BeforeActivation)]
        {
            let model = Model { shortcut, conv_bias, bn_order, ..Model::default() };
            check(&format!("{shortcut:?}, conv_bias {conv_bias}, {bn_order:?}"), model);
        }
    }
}

#[test]
fn imagenets_networks_equal_plain_autograd() {
    let of = |arch, stride_on| Model { arch, stride_on, shortcut: Shortcut::B, ..Model::default() };
    check("ResNet-18", of(Arch::Resnet18, StrideOn::Middle));
    check("ResNet-50, v1.5", of(Arch::Resnet50, StrideOn::Middle));
    check("ResNet-50, 2015", of(Arch::Resnet50, StrideOn::First));
}
