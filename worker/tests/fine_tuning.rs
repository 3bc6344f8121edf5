//! Frozen parts, parts of another rate, weights of another run: what moves, by how much, and to the bit on any world.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod mesh;
mod reference;

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_collective::{Collective, Solo};
use lockstep_data::Dataset;
use lockstep_proto::ids::{Epoch, Generation, SampleRange, Step};
use lockstep_proto::message::StepPlan;
use lockstep_proto::recipe::{BatchNorm, Group, Recipe, Solver};
use lockstep_worker::compute::{Compute, Named};
use lockstep_worker::trainer::{self, Trainer};
use reference::tensor;
use tch::Tensor;

const SMALL: [&str; 8] = [
    "data.test_limit=50",
    "model.n=1",
    "model.width=8",
    "train.batch=40",
    "train.chunk=8",
    "train.bucket_bytes=16384",
    "optim.momentum=0.9",
    "optim.weight_decay=0.01",
];

fn recipe(sets: &[&str]) -> (Recipe, Arc<dyn Dataset>) {
    let sets: Vec<String> = SMALL.iter().chain(sets).map(|set| (*set).to_owned()).collect();
    let recipe = Recipe::load("demo", &sets).unwrap();
    let data = lockstep_data::open(&recipe.data, 0).unwrap();
    (recipe, data)
}

fn plan(step: u64, lr: f64, shares: &[u32]) -> StepPlan {
    let batch = SampleRange { start: (step - 1) * 40, len: 40 };
    StepPlan { step: Step(step), epoch: Epoch(1), lr, batch, shards: shares.to_vec() }
}

/// State by name after some steps, optimizer's included, and its hash.
fn after(sets: &[&str], steps: u64, on: Arc<dyn Collective>, shares: &[u32]) -> (BTreeMap<String, Named>, String) {
    let (recipe, data) = recipe(sets);
    let mut replica = trainer::cpu(&recipe, data, 2).unwrap();
    replica.initialise();
    replica.join(on);
    for step in 1..=steps {
        assert!(replica.step(Generation(1), &plan(step, 0.05, shares)).unwrap().loss.is_finite());
    }
    replica.leave();
    let (model, optimizer) = replica.tensors();
    let all = model.into_iter().chain(optimizer).map(|named| (named.name.clone(), named)).collect();
    (all, replica.sha256())
}

fn alone(sets: &[&str], steps: u64) -> BTreeMap<String, Named> {
    after(sets, steps, Arc::new(Solo::new()), &[5]).0
}

fn group(name: &str) -> Group {
    let parameter = ["momentum.", "exp_avg.", "exp_avg_sq."].iter().find_map(|prefix| name.strip_prefix(prefix));
    Group::of(parameter.unwrap_or(name)).unwrap()
}

#[test]
fn frozen_parts_keep_every_bit_and_all_others_move() {
    for solver in ["sgd", "adamw", "lars", "lamb"] {
        let solver = format!("optim.solver={solver}");
        let sets = [&*solver, "optim.nesterov=false", "model.freeze=[\"stem\", \"layer2\"]"];
        let (before, then) = (alone(&sets, 0), alone(&sets, 3));
        for (name, value) in &then {
            let frozen = matches!(group(name), Group::Stem | Group::Layer2);
            assert_eq!(*value == before[name], frozen, "{solver}: {name}");
        }
    }
}

#[test]
fn statistics_of_frozen_parts_follow_the_batches_only_where_the_recipe_says_so() {
    let sets = ["model.freeze=[\"stem\", \"layer1\"]", "model.frozen_bn=batch"];
    let (before, then) = (alone(&sets, 0), alone(&sets, 2));
    for (name, value) in &then {
        let stays = matches!(group(name), Group::Stem | Group::Layer1) && !name.contains("running");
        assert_eq!(*value == before[name], stays, "{name}");
    }
}

#[test]
fn fine_tuning_has_the_same_bits_on_any_world() {
    let tuned =
        ["model.freeze=[\"stem\", \"layer1\"]", "optim.lr_scale={ head = 10.0, layer2 = 0.5 }", "train.precision=fp32"];
    let middle = ["model.freeze=[\"layer2\"]", "optim.lr_scale.stem=2.0", "train.batch_norm=chunk"];
    let batch = ["model.freeze=[\"layer1\"]", "model.frozen_bn=batch", "train.precision=bf16"];
    for sets in [&tuned[..], &middle, &batch] {
        let (_, alone) = after(sets, 4, Arc::new(Solo::new()), &[5]);
        for shares in [&[3, 2][..], &[0, 5], &[2, 2, 1]] {
            for (_, hash) in mesh::ranks(shares.len(), |on| after(sets, 4, on, shares)) {
                assert_eq!(hash, alone, "{sets:?}, shares {shares:?}");
            }
        }
    }
}

#[test]
fn a_state_with_frozen_parts_goes_on_from_a_checkpoint_to_the_bit() {
    let (recipe, data) = recipe(&["model.freeze=[\"stem\", \"layer3\"]", "optim.lr_scale.head=4.0"]);
    let mut whole = trainer::cpu(&recipe, Arc::clone(&data), 1).unwrap();
    whole.initialise();
    for step in 1..=2 {
        whole.step(Generation(1), &plan(step, 0.05, &[5])).unwrap();
    }
    let (model, optimizer) = whole.tensors();
    let mut resumed = trainer::cpu(&recipe, data, 2).unwrap();
    resumed.load(&model, &optimizer).unwrap();
    for replica in [&mut whole, &mut resumed] {
        for step in 3..=4 {
            replica.step(Generation(1), &plan(step, 0.05, &[5])).unwrap();
        }
    }
    assert_eq!(whole.sha256(), resumed.sha256());
}

#[test]
fn a_scale_multiplies_the_update_of_its_part_and_of_no_other() {
    let sets = ["train.precision=fp64", "optim.nesterov=false", "optim.momentum=0"];
    let scaled = [&sets[..], &["optim.lr_scale={ head = 10.0, layer2 = 0.5 }"]].concat();
    let (start, plain, scaled) = (alone(&sets, 0), alone(&sets, 1), alone(&scaled, 1));
    for (name, start) in start.iter().filter(|(name, _)| !name.contains("running") && !name.starts_with("momentum")) {
        let (plain, scaled) = (tensor(&plain[name]) - tensor(start), tensor(&scaled[name]) - tensor(start));
        let factor = match group(name) {
            Group::Head => 10.0,
            Group::Layer2 => 0.5,
            _ => 1.0,
        };
        let off = (&scaled - &plain * factor).abs().max().double_value(&[]);
        let size = plain.abs().max().double_value(&[]);
        assert!(size > 0.0 && off <= 1e-13, "{name}: off by {off:e} of {size:e}");
    }
}

/// Loss of the first batch, and the gradient of every parameter, in f64 and without weight decay.
fn gradient(sets: &[&str], weights: Option<&[Named]>) -> (f64, BTreeMap<String, Tensor>, Vec<Named>) {
    let exact = ["train.precision=fp64", "optim.weight_decay=0"];
    let (recipe, data) = recipe(&[sets, &exact].concat());
    let mut trainer = Trainer::<f64>::new(&recipe, data, 2).unwrap();
    trainer.initialise();
    let (model, optimizer) = trainer.tensors();
    let model = weights.map_or(model, <[Named]>::to_vec);
    trainer.load(&model, &optimizer).unwrap();
    let loss = trainer.step(Generation(1), &plan(1, 0.05, &[5])).unwrap().loss;
    (loss, trainer.gradients().unwrap().into_iter().collect(), model)
}

#[test]
fn gradients_of_what_trains_do_not_hear_of_what_is_frozen() {
    let (loss, whole, _) = gradient(&["model.frozen_bn=batch"], None);
    for freeze in ["[\"stem\", \"layer1\"]", "[\"layer2\"]", "[\"head\"]"] {
        let freeze = format!("model.freeze={freeze}");
        let (same, frozen, _) = gradient(&["model.frozen_bn=batch", &freeze], None);
        assert_eq!(same, loss);
        for (name, have) in &frozen {
            if freeze.contains(group(name).name()) {
                assert_eq!(have.abs().max().double_value(&[]), 0.0, "{freeze}: {name}");
            } else {
                assert!(have.equal(&whole[name]), "{freeze}: {name}");
            }
        }
    }
}

/// Along the gradient the loss must change as the gradient says, through layers with fixed statistics too.
#[test]
fn gradients_through_fixed_statistics_are_those_of_the_loss() {
    for batch_norm in [BatchNorm::Global, BatchNorm::Chunk] {
        let batch_norm = format!("train.batch_norm={batch_norm:?}").to_lowercase();
        let sets = ["model.freeze=[\"layer2\"]", &*batch_norm];
        // After a few steps statistics are not what they began with.
        let mut model: Vec<Named> = alone(&["train.precision=fp64"], 3).into_values().collect();
        model.retain(|named| !named.name.starts_with("momentum"));
        let (_, gradient_of, _) = gradient(&sets, Some(&model));
        let square: f64 = gradient_of.values().map(|g| (g * g).sum(tch::Kind::Double).double_value(&[])).sum();
        assert!(square > 0.0);
        let step = 1e-5 / square.sqrt();
        let moved = |sign: f64| {
            let mut model = model.clone();
            for named in &mut model {
                let Some(g) = gradient_of.get(&named.name) else { continue };
                let value: Vec<f64> = Vec::try_from((tensor(named) + g * (sign * step)).reshape([-1])).unwrap();
                named.bytes = value.iter().flat_map(|x| x.to_le_bytes()).collect();
            }
            gradient(&sets, Some(&model)).0
        };
        let slope = (moved(1.0) - moved(-1.0)) / (2.0 * step);
        assert!((slope / square - 1.0).abs() < 1e-4, "{batch_norm}: slope {slope:e}, gradient says {square:e}");
    }
}

#[test]
fn every_solver_leaves_what_is_frozen_out() {
    let names = ["sgd", "rmsprop", "adagrad", "adadelta", "adam", "adamw", "lars", "lamb"];
    for name in names {
        let (recipe, data) = recipe(&[&format!("optim.solver={name}"), "model.freeze=[\"layer1\"]"]);
        assert!(recipe.optim.solver != Solver::Sgd || name == "sgd");
        let mut replica = trainer::cpu(&recipe, data, 1).unwrap();
        replica.initialise();
        let before: BTreeMap<String, Named> = replica.tensors().0.into_iter().map(|n| (n.name.clone(), n)).collect();
        replica.step(Generation(1), &plan(1, 0.01, &[5])).unwrap();
        for named in replica.tensors().0 {
            assert_eq!(named == before[&named.name], group(&named.name) == Group::Layer1, "{name}: {}", named.name);
        }
    }
}
