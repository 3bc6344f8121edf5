//! The end of a step.

use lockstep_kernels::StepWords;
use lockstep_kernels::host::{Buffer, Host};
use lockstep_kernels::update::{Gatekeeper, RunningUpdate, Sgd};

use super::values::{Random, bf16};
use super::{ensure, in_every_order};

pub const WORDS: StepWords = StepWords {
    nonce: 0x1234_5678_9abc_def1,
    expected: 0x1234_5678_9abc_def1_u64.wrapping_mul(3),
    number: 41,
    samples: 128,
    bn_momentum: 0.1,
    lr: 0.05,
    dampening: 0.0,
};

/// The words of the gate.
struct Words {
    step: Buffer,
    poison: Buffer,
    vote: Buffer,
    found: Buffer,
    gate: Buffer,
    applied: Buffer,
}

impl Words {
    fn new(step: StepWords, open: bool) -> Self {
        Self {
            step: Buffer::new(&step.to_bytes()),
            poison: Buffer::new(&[0_u32]),
            vote: Buffer::new(&[0_u64]),
            found: Buffer::new(&[0_u32]),
            gate: Buffer::new(&[u32::from(open)]),
            applied: Buffer::new(&[40_u64]),
        }
    }

    fn keeper(&mut self) -> Gatekeeper {
        Gatekeeper {
            step: self.step.memory(),
            poison: self.poison.memory(),
            vote: self.vote.memory(),
            found: self.found.memory(),
            gate: self.gate.memory(),
            applied: self.applied.memory(),
        }
    }
}

/// The gate opens only for the right sum, finite gradients and no poison, and only then the step counts.
pub fn vote(host: &Host) -> Result<(), String> {
    let before = 9_u32; // what an earlier step left
    for (poisoned, sum, late, found) in [
        (0, WORDS.expected, 0, 0),
        (0, WORDS.expected.wrapping_sub(WORDS.nonce), 0, 0), // a neighbour was poisoned
        (0, 0, 0, 0),
        (0, WORDS.nonce, 0, 0), // an all-reduce that did nothing
        (0, WORDS.expected, 1, 0),
        (0, WORDS.expected, 0, 1),
        (7, WORDS.expected, 0, 0),
    ] {
        let (vote, cleared, gate, applied) = in_every_order(
            |run| {
                let mut words = Words::new(WORDS, false);
                words.poison = Buffer::new(&[poisoned]);
                words.found = Buffer::new(&[before]);
                words.gate = Buffer::new(&[before]);
                run(&words.keeper().vote().unwrap());
                let (vote, cleared) = (words.vote.read::<u64>()[0], words.found.read::<u32>()[0]);
                words.vote = Buffer::new(&[sum]); // the all-reduce
                words.found = Buffer::new(&[found]);
                words.poison = Buffer::new(&[poisoned | late]);
                run(&words.keeper().decide().unwrap());
                run(&words.keeper().commit().unwrap());
                (vote, cleared, words.gate.read::<u32>()[0], words.applied.read::<u64>()[0])
            },
            host,
        )?;
        let open = sum == WORDS.expected && poisoned | late == 0 && found == 0;
        let what = || format!("poison {poisoned} then {late}, sum {sum:x}, found {found}: {vote:x} {gate} {applied}");
        ensure(vote == if poisoned == 0 { WORDS.nonce } else { 0 } && cleared == 0, what)?;
        ensure(gate == u32::from(open) && applied == if open { WORDS.number } else { 40 }, what)?;
    }
    Ok(())
}

/// One bad gradient anywhere is found, and no good one.
pub fn nonfinite(host: &Host) -> Result<(), String> {
    let num = 5 * 4096 + 12;
    let good: Vec<f32> = Random::new(8).normals(num).into_iter().chain([f32::MAX, f32::MIN, 0.0, -0.0]).collect();
    let places = [None, Some(0), Some(3), Some(num / 2), Some(num + 3)];
    let cases =
        places.into_iter().flat_map(|place| [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].map(|bad| (place, bad)));
    for (place, bad) in cases {
        let found = in_every_order(
            |run| {
                let mut values = good.clone();
                if let Some(place) = place {
                    values[place] = bad;
                }
                let (mut words, mut gradient) = (Words::new(WORDS, false), Buffer::new(&values));
                let launch = words.keeper().nonfinite(gradient.memory(), values.len() as u64, host.device());
                run(&launch.unwrap());
                words.found.read::<u32>()[0]
            },
            host,
        )?;
        ensure(found == u32::from(place.is_some()), || format!("{bad} at {place:?}: {found}"))?;
    }
    Ok(())
}

/// `running ← (1 − momentum)·running + momentum·batch`, rounded once.
pub fn running(host: &Host) -> Result<(), String> {
    let mut random = Random::new(9);
    for num in [1, 255, 5000_u32] {
        let old = random.normals(num as usize);
        let batch: Vec<f64> = (0..num).map(|_| random.normal()).collect();
        for open in [true, false] {
            let found = in_every_order(
                |run| {
                    let mut words = Words::new(WORDS, open);
                    let (mut running, mut pending) = (Buffer::new(&old), Buffer::new(&batch));
                    let update = RunningUpdate { running: running.memory(), pending: pending.memory(), num };
                    run(&update.launch(&words.keeper(), host.device()).unwrap());
                    running.read::<f32>().into_iter().map(f32::to_bits).collect::<Vec<_>>()
                },
                host,
            )?;
            for (i, found) in found.into_iter().enumerate() {
                let new = ((1.0 - WORDS.bn_momentum) * f64::from(old[i]) + WORDS.bn_momentum * batch[i]) as f32;
                let wanted = if open { new } else { old[i] };
                ensure(found == wanted.to_bits(), || format!("{num}, open {open}: {i}"))?;
            }
        }
    }
    Ok(())
}

/// A rule and where it applies.
#[derive(Clone, Copy, Debug)]
struct Rule {
    momentum: Option<f64>,
    nesterov: bool,
    weight_decay: f64,
    decayed: u64,
    dampening: f64,
    copied: Option<u64>,
}

const NUM: u64 = 3 * 2048 + 64;

const RULES: [Rule; 6] = [
    Rule { momentum: Some(0.9), nesterov: true, weight_decay: 1e-4, decayed: 4096, dampening: 0.0, copied: Some(4096) },
    Rule { momentum: Some(0.9), nesterov: false, weight_decay: 5e-4, decayed: NUM, dampening: 0.3, copied: Some(NUM) },
    Rule { momentum: Some(0.9), nesterov: false, weight_decay: 1e-2, decayed: 0, dampening: 0.0, copied: None },
    Rule { momentum: Some(0.5), nesterov: true, weight_decay: 0.0, decayed: NUM, dampening: 0.0, copied: None },
    Rule { momentum: None, nesterov: false, weight_decay: 1e-3, decayed: 2050, dampening: 0.0, copied: Some(64) },
    Rule { momentum: None, nesterov: false, weight_decay: 0.0, decayed: 0, dampening: 0.0, copied: None },
];

/// Weights, momentum, gradient, copy.
type Buffers = (Vec<u32>, Vec<u32>, Vec<u32>, Vec<u16>);

fn step(host: &Host, rule: Rule, open: bool, gradient: &[f32]) -> Result<Buffers, String> {
    let mut random = Random::new(10);
    let (master, velocity) = (random.normals(NUM as usize), random.normals(NUM as usize));
    let found = in_every_order(
        |run| {
            let mut words = Words::new(StepWords { dampening: rule.dampening, ..WORDS }, open);
            let [mut p, mut v, mut g] = [&master, &velocity, gradient].map(|values: &[f32]| Buffer::new(values));
            let mut copy = Buffer::new(&vec![0x1234_u16; NUM as usize]);
            let sgd = Sgd {
                num: NUM,
                master: p.memory(),
                momentum: rule.momentum.map(|mu| (v.memory(), mu)),
                gradient: g.memory(),
                copy: rule.copied.map(|num| (copy.memory(), num)),
                weight_decay: (rule.weight_decay, rule.decayed),
                nesterov: rule.nesterov,
            };
            run(&sgd.launch(&words.keeper(), host.device()).unwrap());
            (p.read::<u32>(), v.read::<u32>(), g.read::<u32>(), copy.read::<u16>())
        },
        host,
    )?;
    Ok(found)
}

/// Operation by operation what worker/src/optim/sgd.rs does, in f32.
fn wanted(rule: Rule, gradient: &[f32]) -> Buffers {
    let mut random = Random::new(10);
    let (mut p, mut v) = (random.normals(NUM as usize), random.normals(NUM as usize));
    let mut copy = vec![0x1234_u16; NUM as usize];
    let (lr, keep, decay) = (WORDS.lr as f32, (1.0 - rule.dampening) as f32, rule.weight_decay as f32);
    for i in 0..NUM as usize {
        let mut g = gradient[i];
        if decay != 0.0 && (i as u64) < rule.decayed {
            g += p[i] * decay;
        }
        let update = match rule.momentum {
            None => g,
            Some(mu) => {
                let mu = mu as f32;
                v[i] *= mu;
                v[i] += g * keep;
                if rule.nesterov { g + v[i] * mu } else { v[i] }
            }
        };
        p[i] -= update * lr;
        if (i as u64) < rule.copied.unwrap_or(0) {
            copy[i] = bf16(p[i]);
        }
    }
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect();
    (bits(&p), bits(&v), bits(gradient), copy)
}

/// Every rule has the CPU's bits, in momentum and copy too.
pub fn sgd(host: &Host) -> Result<(), String> {
    let gradient = Random::new(11).normals(NUM as usize);
    for rule in RULES {
        let (found, wanted) = (step(host, rule, true, &gradient)?, wanted(rule, &gradient));
        for (what, same) in [
            ("weights", found.0 == wanted.0),
            ("momentum", found.1 == wanted.1),
            ("gradient", found.2 == wanted.2),
            ("copy", found.3 == wanted.3),
        ] {
            ensure(same, || format!("{rule:?}: {what}"))?;
        }
    }
    Ok(())
}

/// While the gate is closed no bit changes, whatever the gradient is.
pub fn closed(host: &Host) -> Result<(), String> {
    let mut random = Random::new(10);
    let (master, velocity) = (random.normals(NUM as usize), random.normals(NUM as usize));
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    for gradient in [vec![f32::NAN; NUM as usize], vec![1.0; NUM as usize]] {
        for rule in RULES {
            let found = step(host, rule, false, &gradient)?;
            let untouched = (bits(&master), bits(&velocity), bits(&gradient), vec![0x1234_u16; NUM as usize]);
            ensure(found == untouched, || format!("{rule:?} behind a closed gate"))?;
        }
    }
    Ok(())
}
