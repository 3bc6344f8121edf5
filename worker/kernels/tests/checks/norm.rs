//! BatchNorm forwards.

use lockstep_kernels::host::{Buffer, Host};
use lockstep_kernels::norm::{Affine, Apply, Count, FixedCoefficients, ForwardCoefficients, Stats};
use lockstep_kernels::{Activation, Element, Shape};

use super::values::{Random, Room, Tensor, round, shapes};
use super::{ensure, in_every_order, near};

pub const ACTIVATIONS: [Activation; 3] = [Activation::Identity, Activation::Relu, Activation::LeakyRelu(0.01)];

/// The message of x by two passes in f64: `[n·mean, M2 + n·mean²]`, and Σ|x| to judge errors by.
pub fn reference(values: &[f32], channels: usize) -> (Vec<f64>, Vec<f64>) {
    let n = (values.len() / channels) as f64;
    let column = |c: usize| values.iter().skip(c).step_by(channels).map(|v| f64::from(*v));
    let mut message = vec![0.0; 2 * channels];
    let mut size = vec![0.0; channels];
    for c in 0..channels {
        if n > 0.0 {
            let first = column(c).next().unwrap_or(0.0);
            let mean = first + column(c).map(|v| v - first).sum::<f64>() / n;
            let m2: f64 = column(c).map(|v| (v - mean) * (v - mean)).sum();
            message[c] = n * mean;
            message[channels + c] = m2 + n * mean * mean;
            size[c] = column(c).map(f64::abs).sum();
        }
    }
    (message, size)
}

fn stats(host: &Host, shape: Shape, values: &[f32], shifted: bool) -> Result<Vec<f64>, String> {
    let message = in_every_order(
        |run| {
            let mut x = Tensor::new(shape.element, values, shifted);
            let mut room = Room::new(shape, host.device());
            let mut message = Buffer::poisoned(16 * shape.channels as usize);
            let stats = Stats { shape, x: x.memory(), scratch: room.scratch(), message: message.memory(), then: None };
            // Twice: the second finds the tickets that the first left.
            let messages = [(); 2].map(|()| {
                run(&stats.launch(host.device()).unwrap());
                message.read::<f64>().into_iter().map(f64::to_bits).collect::<Vec<_>>()
            });
            (room.is_clean(), messages)
        },
        host,
    )?;
    let (clean, [first, second]) = message;
    ensure(clean, || format!("{shape:?}: tickets are left over"))?;
    ensure(first == second, || format!("{shape:?}: the second time gives other bits"))?;
    Ok(first.into_iter().map(f64::from_bits).collect())
}

/// Messages equal the CPU's mathematics to fp64's rounding, in every shape.
pub fn messages(host: &Host) -> Result<(), String> {
    let mut random = Random::new(1);
    for (shape, shifted) in shapes() {
        for (mean, deviation) in [(0.0, 1.0), (3.0, 1e-6), (-40.0, 2.0)] {
            let count = (shape.rows * u64::from(shape.channels)) as usize;
            let values: Vec<f32> =
                (0..count).map(|_| round(shape.element, (mean + deviation * random.normal()) as f32)).collect();
            let found = stats(host, shape, &values, shifted)?;
            let channels = shape.channels as usize;
            let (wanted, size) = reference(&values, channels);
            for c in 0..channels {
                let (a, b) = (found[c], found[channels + c]);
                let fits = near(a, wanted[c], 1e-12 * size[c])
                    && near(b, wanted[channels + c], 1e-12 * wanted[channels + c].abs());
                ensure(fits, || {
                    format!("{shape:?}, channel {c}: {a}, {b} for {}, {}", wanted[c], wanted[channels + c])
                })?;
            }
        }
    }
    Ok(())
}

/// A mean 10⁴ deviations away leaves the variance right to 5e-8: of numbers 10⁸ times as large every rounding costs
/// 1.1e-8, and there are four between the message and the variance.
pub fn messages_of_a_large_mean(host: &Host) -> Result<(), String> {
    let mut random = Random::new(2);
    for channels in [5, 16] {
        let shape = Shape { rows: 3000, channels, element: Element::F32 };
        let values: Vec<f32> = (0..3000 * channels).map(|_| (1e4 + random.normal()) as f32).collect();
        let found = stats(host, shape, &values, false)?;
        let channels = channels as usize;
        let n = 3000.0;
        for c in 0..channels {
            let exact = values.iter().skip(c).step_by(channels).map(|v| f64::from(*v) - 1e4);
            let mean = exact.clone().sum::<f64>() / n;
            let wanted = exact.map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
            let variance = found[channels + c] / n - (found[c] / n) * (found[c] / n);
            ensure((variance / wanted - 1.0).abs() < 5e-8, || format!("variance {variance} for {wanted}"))?;
        }
    }
    Ok(())
}

/// Coefficients, saved and pending statistics, alone and behind the statistics, against the formulas in f64.
pub fn forward_coefficients(host: &Host) -> Result<(), String> {
    let mut random = Random::new(3);
    let eps = 1e-5;
    // Deviation 1e-6: without eps the scale would be a thousand times larger.
    for (channels, rows, deviation) in [(5, 33, 1.0), (16, 200, 1e-6), (300, 9, 1e-2), (16, 1, 1.0), (8, 0, 1.0)] {
        let shape = Shape { rows, channels, element: Element::F32 };
        let c = channels as usize;
        let values: Vec<f32> =
            (0..rows * u64::from(channels)).map(|_| (2.5 + deviation * random.normal()) as f32).collect();
        let (gamma, beta) = (random.normals(c), random.normals(c));
        let (message, _) = reference(&values, c);
        for solo in [false, true] {
            let (coefficients, saved, pending) = in_every_order(
                |run| {
                    let mut x = Tensor::new(Element::F32, &values, false);
                    let mut room = Room::new(shape, host.device());
                    let mut sums = Buffer::new(&message);
                    let mut samples = Buffer::new(&[rows as f64]);
                    let (mut g, mut b) = (Buffer::new(&gamma), Buffer::new(&beta));
                    let [mut coefficients, mut saved, mut pending] = [12 * c, 16 * c, 16 * c].map(Buffer::poisoned);
                    let then = ForwardCoefficients {
                        count: Count { samples: samples.memory(), pixels: 1 },
                        affine: Affine { gamma: g.memory(), beta: b.memory() },
                        eps,
                        coefficients: coefficients.memory(),
                        saved: saved.memory(),
                        pending: Some(pending.memory()),
                    };
                    let launch = if solo {
                        let (x, message) = (x.memory(), sums.memory());
                        Stats { shape, x, scratch: room.scratch(), message, then: Some(then) }.launch(host.device())
                    } else {
                        then.launch(sums.memory(), channels)
                    };
                    run(&launch.unwrap());
                    (coefficients.read::<f32>(), saved.read::<f64>(), pending.read::<f64>())
                },
                host,
            )?;
            for i in 0..c {
                let n = rows as f64;
                let mean = if n > 0.0 { message[i] / n } else { 0.0 };
                let variance = if n > 0.0 { (message[c + i] / n - mean * mean).max(0.0) } else { 0.0 };
                let unbiased = if n > 1.0 { variance * (n / (n - 1.0)) } else { variance };
                let inverse = 1.0 / (variance + eps).sqrt();
                let scale = f64::from(gamma[i]) * inverse;
                let bias = f64::from(beta[i]) - (mean - f64::from(mean as f32)) * scale;
                let pairs = [
                    (f64::from(coefficients[i]), mean, 1e-7),
                    (f64::from(coefficients[c + i]), scale, 1e-7),
                    (f64::from(coefficients[2 * c + i]), bias, 1e-7),
                    (saved[i], mean, 1e-14),
                    (saved[c + i], inverse, 1e-9),
                    (pending[i], mean, 1e-14),
                    (pending[c + i], unbiased, 1e-6),
                ];
                for (k, (found, wanted, tolerance)) in pairs.into_iter().enumerate() {
                    let floor = if k == 6 { 1e-15 * mean * mean } else { 0.0 };
                    ensure(near(found, wanted, tolerance * wanted.abs() + floor), || {
                        format!("{rows} × {channels}, solo {solo}, channel {i}: number {k} is {found} for {wanted}")
                    })?;
                }
            }
        }
    }
    fixed(host)
}

fn fixed(host: &Host) -> Result<(), String> {
    let (running, gamma, beta) = ([0.5_f32, -3.0, 1e-12, 4.0], [2.0_f32, 1.0], [0.25_f32, -1.0]);
    let mut coefficients = Buffer::poisoned(24);
    let [mut r, mut g, mut b] = [&running[..], &gamma, &beta].map(Buffer::new);
    let affine = Affine { gamma: g.memory(), beta: b.memory() };
    let fixed = FixedCoefficients { running: r.memory(), affine, eps: 1e-5, coefficients: coefficients.memory() };
    host.run(&fixed.launch(2).unwrap(), 0).map_err(|error| error.to_string())?;
    let wanted: Vec<f32> = (0..2)
        .map(|c| running[c])
        .chain((0..2).map(|c| (f64::from(gamma[c]) / (f64::from(running[2 + c]) + 1e-5).sqrt()) as f32))
        .chain(beta)
        .collect();
    let found = coefficients.read::<f32>();
    let fits = found.iter().zip(&wanted).all(|(a, b)| near((*a).into(), (*b).into(), 1e-6 * f64::from(b.abs())));
    ensure(fits, || format!("fixed coefficients {found:?} for {wanted:?}"))
}

pub fn activate(activation: Activation, v: f32) -> f32 {
    match activation {
        Activation::Identity => v,
        Activation::Relu => {
            if v > 0.0 || v.is_nan() {
                v
            } else {
                0.0
            }
        }
        Activation::LeakyRelu(slope) => {
            if v > 0.0 {
                v
            } else {
                slope as f32 * v
            }
        }
    }
}

/// Bit by bit what the CPU's loop gives: f32 without contraction, rounded once.
pub fn apply(host: &Host) -> Result<(), String> {
    let mut random = Random::new(4);
    for (shape, shifted) in shapes() {
        let c = shape.channels as usize;
        let mut x = Tensor::random(shape, &mut random, shifted);
        if let Some(first) = x.values.first_mut() {
            *first = f32::NAN; // stays one
            x = Tensor::new(shape.element, &x.values.clone(), shifted);
        }
        let add = Tensor::random(shape, &mut random, shifted);
        let coefficients = random.normals(3 * c);
        for activation in ACTIVATIONS {
            for added in [false, true] {
                let found = in_every_order(
                    |run| {
                        let mut input = Tensor::new(shape.element, &x.values, shifted);
                        let mut addend = Tensor::new(shape.element, &add.values, shifted);
                        let mut out = Tensor::empty(shape, shifted);
                        let mut coefficients = Buffer::new(&coefficients);
                        let apply = Apply {
                            shape,
                            x: input.memory(),
                            add: added.then(|| addend.memory()),
                            y: out.memory(),
                            activation,
                            coefficients: coefficients.memory(),
                        };
                        run(&apply.launch(host.device()).unwrap());
                        let in_place = Apply { y: input.memory(), ..apply };
                        run(&in_place.launch(host.device()).unwrap());
                        [out.read(), input.read()].map(|v| v.into_iter().map(f32::to_bits).collect::<Vec<_>>())
                    },
                    host,
                )?;
                let wanted = x.values.iter().zip(&add.values).enumerate().map(|(i, (x, add))| {
                    let v = (x - coefficients[i % c]) * coefficients[c + i % c] + coefficients[2 * c + i % c];
                    round(shape.element, activate(activation, if added { v + add } else { v }))
                });
                let same = |found: &[u32]| {
                    let mut pairs = found.iter().zip(wanted.clone());
                    pairs.all(|(a, b)| *a == b.to_bits() || (b.is_nan() && f32::from_bits(*a).is_nan()))
                };
                ensure(same(&found[0]), || format!("{shape:?}, {activation:?}, add {added}"))?;
                ensure(same(&found[1]), || format!("{shape:?}, {activation:?}, add {added}: in place"))?;
            }
        }
    }
    Ok(())
}
