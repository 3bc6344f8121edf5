//! 100 steps of every solver, in f64, against `tests/golden/solvers.json`: PyTorch's optimizers, and formulas written out
//! where it has none. The script beside it says what the numbers are.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;

use lockstep_proto::recipe::{Precision, Recipe};
use serde::Deserialize;

use super::*;
use crate::program::{Init, Norm, NormId, Op, Param, ParamId, Program, Slot};
use crate::state::view_of;

const STEPS: u64 = 100;

#[derive(Deserialize)]
struct Case {
    optim: serde_json::Map<String, serde_json::Value>,
    lr: f64,
    /// The rate does not fall.
    constant: bool,
    quadratic: BTreeMap<String, Vec<f64>>,
    given: BTreeMap<String, Vec<f64>>,
}

impl Case {
    fn optim(&self) -> Optim {
        let sets: Vec<String> = self.optim.iter().map(|(key, value)| format!("optim.{key}={value}")).collect();
        Recipe::load("demo", &sets).unwrap().optim
    }

    fn rate(&self, step: u64) -> f64 {
        if self.constant { self.lr } else { self.lr * (1.0 - step as f64 / 256.0) }
    }
}

/// A matrix of 24 and two vectors of 5.
fn program() -> Program {
    let param =
        |name: &str, shape: &[i64]| Param { name: name.into(), shape: shape.to_vec(), init: Init::Constant(0.0) };
    let (x, y, z) = (Slot(0), Slot(1), Slot(2));
    Program {
        params: vec![param("w", &[4, 6]), param("gamma", &[5]), param("bias", &[5])],
        norms: vec![Norm { name: "bn".into(), channels: 5, gamma: ParamId(1), beta: ParamId(2) }],
        ops: vec![
            Op::Conv { x, y, w: ParamId(0), b: None, stride: 1, pad: 0 },
            Op::Norm { x: y, y: z, norm: NormId(0), add: None, act: lockstep_torch::Activation::Identity },
        ],
        num_slots: 3,
        logits: z,
        num_classes: 5,
    }
}

fn start(index: usize) -> f64 {
    ((index * 37 + 11) % 101) as f64 / 64.0 - 50.0 / 64.0
}

fn gradient(quadratic: bool, values: &[f64], first: usize, step: u64) -> Vec<f64> {
    let one = |i: usize| {
        let index = first + i;
        if quadratic {
            let before = values[(i + values.len() - 1) % values.len()];
            (0.5 + (index % 7) as f64 * 0.25) * (values[i] - 4.0) + 0.125 * before
        } else {
            ((index as u64 * 53 + step * 29) % 97) as f64 / 128.0 - 48.0 / 128.0
        }
    };
    (0..values.len()).map(one).collect()
}

/// Where the solver leads, by parameter, and whether padding stayed zero.
fn run(case: &Case, quadratic: bool) -> BTreeMap<String, Vec<f64>> {
    run_over(case, quadratic, None)
}

/// The same over these stretches.
fn run_over(case: &Case, quadratic: bool, spans: Option<&[Span]>) -> BTreeMap<String, Vec<f64>> {
    let (program, optim) = (program(), case.optim());
    let layout = FlatLayout::new(&program);
    let whole = Optimizer::new(&optim, &layout);
    let optimizer = spans.map_or_else(|| whole.clone(), |spans| whole.clone().over(spans));
    let mut state = State::new(&program, &layout, Precision::Fp64, optim.solver).unwrap();
    let mut flat = state.master.f_zeros_like().unwrap();
    let firsts = [0, 24, 29];
    let view = |of: &Tensor, i: usize| view_of(of, &program, &layout, ParamId(i)).unwrap();
    let values = |of: &Tensor, i: usize| -> Vec<f64> { Vec::try_from(view(of, i).reshape([-1])).unwrap() };
    let put = |of: &Tensor, i: usize, values: &[f64]| {
        view(of, i).copy_(&Tensor::from_slice(values).view(program.params[i].shape.as_slice()));
    };
    for (i, first) in firsts.into_iter().enumerate() {
        put(&state.master, i, &(first..first + program.params[i].numel()).map(start).collect::<Vec<_>>());
    }
    for step in 1..=STEPS {
        let _ = flat.zero_();
        for (i, first) in firsts.into_iter().enumerate() {
            put(&flat, i, &gradient(quadratic, &values(&state.master, i), first, step));
        }
        optimizer.update(&mut state, &mut flat, Pace { step: Step(step), lr: case.rate(step) }).unwrap();
    }
    let ends: BTreeMap<_, _> = (0..3).map(|i| (program.params[i].name.clone(), values(&state.master, i))).collect();
    (0..3).for_each(|i| put(&state.master, i, &vec![0.0; program.params[i].numel()]));
    assert_eq!(lockstep_torch::squares(&state.master).unwrap(), 0.0, "{:?}: padding stays zero", optim.solver);
    ends
}

#[test]
fn every_solver_leads_where_pytorch_and_the_written_out_formulas_do() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../../tests/golden/solvers.json")).unwrap();
    let mut solvers: Vec<Solver> = Vec::new();
    for case in &cases {
        for (quadratic, want) in [(true, &case.quadratic), (false, &case.given)] {
            let have = run(case, quadratic);
            for (name, want) in want {
                for (i, (have, want)) in have[name].iter().zip(want).enumerate() {
                    assert!((have - want).abs() <= 1e-12, "{:?} {name}[{i}]: {have:e}, not {want:e}", case.optim);
                }
            }
        }
        solvers.push(case.optim().solver);
    }
    use Solver::{Adadelta, Adagrad, Adam, Adamw, Lamb, Lars, Rmsprop, Sgd};
    for solver in [Sgd, Rmsprop, Adagrad, Adadelta, Adam, Adamw, Lars, Lamb] {
        assert!(solvers.contains(&solver), "{solver:?} has no golden numbers");
    }
}

#[test]
fn a_gradient_is_clipped_as_pytorch_does_and_a_smaller_one_stays_as_it_is() {
    let optimizer = |clip_norm| {
        let optim = Optim { clip_norm, ..Optim::default() };
        Optimizer::new(&optim, &FlatLayout::new(&program()))
    };
    let values: Vec<f64> = (0..512).map(|i| f64::from(i % 17) - 8.0).collect();
    let norm = values.iter().map(|x| x * x).sum::<f64>().sqrt();
    let clipped = |clip_norm| {
        let mut flat = Tensor::from_slice(&values);
        let found = optimizer(clip_norm).clip(&mut flat).unwrap();
        assert!((found - norm).abs() < 1e-12 * norm, "{found}");
        Vec::<f64>::try_from(flat).unwrap()
    };
    assert_eq!(clipped(0.0), values);
    assert_eq!(clipped(norm + 1.0), values);
    // torch.nn.utils.clip_grad_norm_: max_norm / (total_norm + 1e-6)
    for (have, value) in clipped(2.0).iter().zip(&values) {
        assert!((have - value * (2.0 / (norm + 1e-6))).abs() < 1e-15, "{have}");
    }
}

#[test]
fn stretch_by_stretch_every_solver_leads_to_the_same_place_and_a_scale_acts_on_its_own_stretch_alone() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../../tests/golden/solvers.json")).unwrap();
    let layout = FlatLayout::new(&program());
    let edges: Vec<usize> = layout.order.iter().map(|id| layout.entries[id.0].offset).chain([layout.len]).collect();
    let spans = |lr_scale: f64| -> Vec<Span> {
        let one = |(i, pair): (usize, &[usize])| Span {
            start: pair[0],
            len: pair[1] - pair[0],
            lr_scale: if i == 0 { lr_scale } else { 1.0 },
        };
        edges.windows(2).enumerate().map(one).collect()
    };
    for case in &cases {
        let whole = run(case, false);
        assert_eq!(run_over(case, false, Some(&spans(1.0))), whole, "{:?}", case.optim);
        let scaled = run_over(case, false, Some(&spans(0.5)));
        assert_ne!(scaled["w"], whole["w"], "{:?}", case.optim);
        assert_eq!((&scaled["gamma"], &scaled["bias"]), (&whole["gamma"], &whole["bias"]), "{:?}", case.optim);
    }
}

#[test]
fn a_switch_of_formula_matters_so_the_test_above_can_tell() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../../tests/golden/solvers.json")).unwrap();
    let mut case = cases.into_iter().find(|case| case.optim.get("formula") == Some(&"torch7".into())).unwrap();
    case.optim.remove("formula");
    let off = run(&case, false)["w"].iter().zip(&case.given["w"]).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(off > 1e-6, "{off:e}");
}
