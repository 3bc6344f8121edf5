//! A state that was saved and loaded, or sent to another replica, goes on as if nothing had happened: every solver, to the
//! bit.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use lockstep_data::Dataset;
use lockstep_proto::ids::{Epoch, Generation, SampleRange, Step};
use lockstep_proto::message::StepPlan;
use lockstep_proto::recipe::{BnMomentum, BnRule, DataKind, Precision, Recipe, Solver};
use lockstep_worker::compute::Compute;
use lockstep_worker::trainer;

const SOLVERS: [(Solver, usize); 8] = [
    (Solver::Sgd, 1),
    (Solver::Rmsprop, 1),
    (Solver::Adagrad, 1),
    (Solver::Adadelta, 2),
    (Solver::Adam, 2),
    (Solver::Adamw, 2),
    (Solver::Lars, 1),
    (Solver::Lamb, 2),
];

fn recipe(solver: Solver, precision: Precision) -> Recipe {
    let mut recipe = Recipe::default();
    recipe.data.kind = DataKind::Shapes;
    recipe.model.n = 1;
    recipe.model.width = 4;
    recipe.model.conv_bias = true;
    recipe.model.bn_momentum = BnMomentum::Rule(BnRule::Dynamic);
    recipe.train.batch = 16;
    recipe.train.chunk = 8;
    recipe.train.precision = precision;
    recipe.optim.solver = solver;
    recipe
}

fn plan(step: u64) -> StepPlan {
    let batch = SampleRange { start: (step - 1) * 16, len: 16 };
    StepPlan { step: Step(step), epoch: Epoch(1), lr: 0.02, batch, shards: vec![2] }
}

fn replica(recipe: &Recipe, data: &Arc<dyn Dataset>) -> Box<dyn Compute + Send> {
    trainer::cpu(recipe, Arc::clone(data), 1).unwrap()
}

#[test]
fn every_solver_goes_on_from_a_checkpoint_and_from_a_broadcast_to_the_bit() {
    for (solver, num_buffers) in SOLVERS {
        for precision in [Precision::Fp32, Precision::Bf16, Precision::Fp64] {
            let recipe = recipe(solver, precision);
            let data = lockstep_data::open(&recipe.data, 0).unwrap();
            let mut whole = replica(&recipe, &data);
            whole.initialise();
            (1..=3).for_each(|step| assert!(whole.step(Generation(1), &plan(step)).unwrap().loss.is_finite()));

            let (model, optimizer) = whole.tensors();
            let num_params = model.iter().filter(|tensor| !tensor.name.contains("running")).count();
            assert_eq!(optimizer.len(), num_buffers * num_params, "{solver:?}: what it keeps of each parameter");
            let mut loaded = replica(&recipe, &data);
            loaded.load(&model, &optimizer).unwrap();
            let mut sent = replica(&recipe, &data);
            sent.take_bytes(&whole.to_bytes()).unwrap();

            for step in 4..=6 {
                whole.step(Generation(1), &plan(step)).unwrap();
                loaded.step(Generation(1), &plan(step)).unwrap();
                sent.step(Generation(1), &plan(step)).unwrap();
            }
            assert_eq!(loaded.sha256(), whole.sha256(), "{solver:?} {precision:?}: from a checkpoint");
            assert_eq!(sent.sha256(), whole.sha256(), "{solver:?} {precision:?}: from a broadcast");
        }
    }
}

#[test]
fn the_state_of_another_solver_is_refused() {
    let (adam, sgd) = (recipe(Solver::Adam, Precision::Fp32), recipe(Solver::Sgd, Precision::Fp32));
    let data = lockstep_data::open(&adam.data, 0).unwrap();
    let mut from = replica(&adam, &data);
    from.initialise();
    let (model, optimizer) = from.tensors();
    let refusal = replica(&sgd, &data).load(&model, &optimizer).unwrap_err().to_string();
    assert!(refusal.contains("momentum."), "{refusal}");
    assert!(replica(&sgd, &data).take_bytes(&from.to_bytes()).is_err());
}
