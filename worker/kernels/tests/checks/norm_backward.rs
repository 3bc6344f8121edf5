//! BatchNorm backwards.

use lockstep_kernels::host::{Buffer, Host};
use lockstep_kernels::norm::{
    Affine, Apply, Arriving, BackwardCoefficients, Count, ForwardCoefficients, Gate, Gradient, Mask, Stats,
};
use lockstep_kernels::{Activation, Element, Shape};

use super::norm::{ACTIVATIONS, activate};
use super::values::{Random, Room, Tensor, round, shapes};
use super::{ensure, in_every_order, near};

/// What arrives, and everything that is needed to know it.
struct Case {
    shape: Shape,
    shifted: bool,
    x: Vec<f32>,
    d1: Vec<f32>,
    d2: Option<Vec<f32>>,
    y: Vec<f32>,
    coefficients: Vec<f32>,
    activation: Activation,
    again: bool,
}

impl Case {
    fn new((shape, shifted): (Shape, bool), activation: Activation, two: bool, again: bool) -> Self {
        let mut random = Random::new(shape.rows * 1000 + u64::from(shape.channels));
        let mut tensor = || Tensor::random(shape, &mut random, false).values;
        let [x, d1, d2] = [tensor(), tensor(), tensor()];
        let c = shape.channels as usize;
        let coefficients = random.normals(3 * c);
        let y = x.iter().enumerate().map(|(i, x)| {
            let v = (x - coefficients[i % c]) * coefficients[c + i % c] + coefficients[2 * c + i % c];
            round(shape.element, activate(activation, v))
        });
        let y = y.collect();
        Self { shape, shifted, x, d1, d2: two.then_some(d2), y, coefficients, activation, again }
    }

    fn all() -> impl Iterator<Item = Self> {
        let forms = ACTIVATIONS.into_iter().flat_map(|activation| {
            [(false, false), (false, true), (true, false), (true, true)].map(|(two, again)| (activation, two, again))
        });
        let forms: Vec<_> = forms.collect();
        shapes()
            .flat_map(move |s| forms.clone().into_iter().map(move |(act, two, again)| Self::new(s, act, two, again)))
    }

    fn tensors(&self) -> Tensors {
        let of = |values: &[f32]| Tensor::new(self.shape.element, values, self.shifted);
        Tensors {
            x: of(&self.x),
            d1: of(&self.d1),
            d2: self.d2.as_deref().map(of),
            y: of(&self.y),
            coefficients: Buffer::new(&self.coefficients),
        }
    }

    /// g as the CPU's loop has it.
    fn g(&self) -> Vec<f32> {
        let each = self.d1.iter().enumerate().map(|(i, d1)| {
            let d = self.d2.as_ref().map_or(*d1, |d2| d1 + d2[i]);
            let d = match self.activation {
                Activation::Identity => d,
                _ if self.y[i] > 0.0 => d,
                Activation::Relu => 0.0,
                Activation::LeakyRelu(slope) => slope as f32 * d,
            };
            round(self.shape.element, d)
        });
        each.collect()
    }

    fn name(&self) -> String {
        let Self { shape, shifted, activation, again, .. } = self;
        format!("{shape:?}, shifted {shifted}, {activation:?}, two {}, again {again}", self.d2.is_some())
    }
}

struct Tensors {
    x: Tensor,
    d1: Tensor,
    d2: Option<Tensor>,
    y: Tensor,
    coefficients: Buffer,
}

impl Tensors {
    fn arriving(&mut self, case: &Case) -> Arriving {
        Arriving {
            d1: self.d1.memory(),
            d2: self.d2.as_mut().map(Tensor::memory),
            activation: case.activation,
            mask: if case.again { Mask::Again } else { Mask::Output(self.y.memory()) },
            coefficients: self.coefficients.memory(),
        }
    }
}

fn bits(values: Vec<f32>) -> Vec<u32> {
    values.into_iter().map(f32::to_bits).collect()
}

/// g has the CPU's bits, its sums are right to fp64's rounding, and are the same whether g is kept or not.
pub fn gate(host: &Host) -> Result<(), String> {
    for case in Case::all() {
        let (shape, c) = (case.shape, case.shape.channels as usize);
        let run_with = |kept: bool| {
            in_every_order(
                |run| {
                    let (mut t, mut room) = (case.tensors(), Room::new(shape, host.device()));
                    let mut message = Buffer::poisoned(16 * c);
                    let arriving = t.arriving(&case);
                    // in place
                    let g = kept.then_some(arriving.d1);
                    let (x, scratch, message_at) = (t.x.memory(), room.scratch(), message.memory());
                    let gate = Gate { shape, arriving, x, g, scratch, message: message_at, then: None };
                    run(&gate.launch(host.device()).unwrap());
                    let message: Vec<u64> = message.read::<f64>().into_iter().map(f64::to_bits).collect();
                    (bits(t.d1.read()), message, room.is_clean())
                },
                host,
            )
        };
        let (kept, message, clean) = run_with(true)?;
        let (untouched, same, _) = run_with(false)?;
        let g = case.g();
        ensure(clean, || format!("{}: tickets are left over", case.name()))?;
        ensure(kept == bits(g.clone()), || format!("{}: g", case.name()))?;
        ensure(untouched == bits(case.d1.clone()), || format!("{}: d1 was written", case.name()))?;
        ensure(message == same, || format!("{}: sums differ when g is not kept", case.name()))?;
        for i in 0..c {
            let column = || g.iter().zip(&case.x).skip(i).step_by(c);
            let product = |(g, x): (&f32, &f32)| f64::from(*g) * f64::from(x - case.coefficients[i]);
            let sums = [column().map(|(g, _)| f64::from(*g)).sum::<f64>(), column().map(product).sum()];
            let sizes =
                [column().map(|(g, _)| f64::from(g.abs())).sum::<f64>(), column().map(|p| product(p).abs()).sum()];
            for k in 0..2 {
                let found = f64::from_bits(message[k * c + i]);
                ensure(near(found, sums[k], 1e-12 * sizes[k]), || {
                    format!("{}: sum {k} of channel {i} is {found} for {}", case.name(), sums[k])
                })?;
            }
        }
    }
    Ok(())
}

/// Coefficients and the gradients of γ and β, alone and behind the gate.
pub fn backward_coefficients(host: &Host) -> Result<(), String> {
    for (rows, channels) in [(50, 5), (200, 16), (9, 300)] {
        let shape = Shape { rows, channels, element: Element::F32 };
        let case = Case::new((shape, false), Activation::Relu, false, false);
        let c = channels as usize;
        let mut random = Random::new(5);
        let gamma = random.normals(c);
        // A mean that f32 rounds by half of what it can.
        let saved: Vec<f64> = (0..c).map(|i| 1e4 + i as f64 + 4e-4).chain((0..c).map(|i| 0.5 + i as f64)).collect();
        let own: Vec<f64> = (0..2 * c).map(|_| random.normal()).collect();
        let summed: Vec<f64> = own.iter().map(|v| v + random.normal()).collect();
        for solo in [false, true] {
            let (coefficients, d_gamma, d_beta, message) = in_every_order(
                |run| {
                    let (mut t, mut room) = (case.tensors(), Room::new(shape, host.device()));
                    let (mut summed, mut own, mut saved) =
                        (Buffer::new(&summed), Buffer::new(&own), Buffer::new(&saved));
                    let (mut samples, mut gamma) = (Buffer::new(&[rows as f64 * 2.0]), Buffer::new(&gamma));
                    let [mut coefficients, mut d_gamma, mut d_beta] = [16 * c, 4 * c, 4 * c].map(Buffer::poisoned);
                    let mut message = Buffer::poisoned(16 * c);
                    let then = BackwardCoefficients {
                        count: Count { samples: samples.memory(), pixels: 4 },
                        gamma: gamma.memory(),
                        saved: saved.memory(),
                        coefficients: coefficients.memory(),
                        d_gamma: d_gamma.memory(),
                        d_beta: d_beta.memory(),
                    };
                    let launch = if solo {
                        let (arriving, x, scratch) = (t.arriving(&case), t.x.memory(), room.scratch());
                        let gate =
                            Gate { shape, arriving, x, g: None, scratch, message: message.memory(), then: Some(then) };
                        gate.launch(host.device())
                    } else {
                        then.launch(summed.memory(), own.memory(), channels)
                    };
                    run(&launch.unwrap());
                    (coefficients.read::<f32>(), d_gamma.read::<f32>(), d_beta.read::<f32>(), bits64(&message))
                },
                host,
            )?;
            let message: Vec<f64> = message.into_iter().map(f64::from_bits).collect();
            let (own, summed) = if solo { (&message, &message) } else { (&own, &summed) };
            for i in 0..c {
                let (mean, inverse, count) = (saved[i], saved[c + i], rows as f64 * 8.0);
                let rest = mean - f64::from(mean as f32);
                let scale = f64::from(gamma[i]) * inverse;
                let dot = summed[c + i] - rest * summed[i];
                let slope = -scale * inverse * inverse * dot / count;
                let pairs = [
                    (coefficients[i], mean),
                    (coefficients[c + i], scale),
                    (coefficients[2 * c + i], slope),
                    (coefficients[3 * c + i], -scale * summed[i] / count - slope * rest),
                    (d_gamma[i], inverse * (own[c + i] - rest * own[i])),
                    (d_beta[i], own[i]),
                ];
                for (k, (found, wanted)) in pairs.into_iter().enumerate() {
                    ensure(near(found.into(), wanted, 2e-7 * wanted.abs()), || {
                        format!("{rows} × {channels}, solo {solo}, channel {i}: number {k} is {found} for {wanted}")
                    })?;
                }
            }
        }
    }
    Ok(())
}

fn bits64(buffer: &Buffer) -> Vec<u64> {
    buffer.read::<f64>().into_iter().map(f64::to_bits).collect()
}

/// dx has the CPU's bits.
pub fn gradient(host: &Host) -> Result<(), String> {
    for case in Case::all() {
        let (shape, c) = (case.shape, case.shape.channels as usize);
        let backward: Vec<f32> =
            case.coefficients[..2 * c].iter().copied().chain(Random::new(6).normals(2 * c)).collect();
        let found = in_every_order(
            |run| {
                let (mut t, mut coefficients) = (case.tensors(), Buffer::new(&backward));
                let arriving = t.arriving(&case);
                let (x, dx) = (t.x.memory(), arriving.d1);
                let gradient = Gradient { shape, arriving, x, dx, coefficients: coefficients.memory() };
                run(&gradient.launch(host.device()).unwrap());
                bits(t.d1.read())
            },
            host,
        )?;
        let wanted = case.g().into_iter().zip(&case.x).enumerate().map(|(i, (g, x))| {
            let [mean, scale, slope, offset] = [0, 1, 2, 3].map(|k| backward[k * c + i % c]);
            round(shape.element, (scale * g + slope * (x - mean)) + offset)
        });
        ensure(found == bits(wanted.collect()), || case.name())?;
    }
    Ok(())
}

/// Statistics, coefficients, apply, gate, gradient in a row, against BatchNorm's formulas in f64.
pub fn batch_norm_end_to_end(host: &Host) -> Result<(), String> {
    for (rows, channels) in [(400_u64, 16_u32), (100, 7)] {
        let shape = Shape { rows, channels, element: Element::F32 };
        let (c, n, eps) = (channels as usize, rows as f64, 1e-5);
        let mut random = Random::new(7);
        let x: Vec<f32> = random.normals(rows as usize * c).into_iter().map(|v| 5.0 + v).collect();
        let d = random.normals(rows as usize * c);
        let (gamma, beta) = (random.normals(c), random.normals(c));
        let (y, dx) = in_every_order(
            |run| {
                let mut room = Room::new(shape, host.device());
                let [mut x_at, mut d_at] = [&x, &d].map(|values| Tensor::new(Element::F32, values, false));
                let [mut y, mut dx] = [false; 2].map(|_| Tensor::empty(shape, false));
                let [mut message, mut saved] = [16 * c; 2].map(Buffer::poisoned);
                let [mut forward, mut backward, mut dg, mut db] = [12 * c, 16 * c, 4 * c, 4 * c].map(Buffer::poisoned);
                let (mut samples, mut g, mut b) = (Buffer::new(&[n]), Buffer::new(&gamma), Buffer::new(&beta));
                let count = Count { samples: samples.memory(), pixels: 1 };
                let then = ForwardCoefficients {
                    count,
                    affine: Affine { gamma: g.memory(), beta: b.memory() },
                    eps,
                    coefficients: forward.memory(),
                    saved: saved.memory(),
                    pending: None,
                };
                let (x, scratch, sums) = (x_at.memory(), room.scratch(), message.memory());
                let (y_at, coefficients) = (y.memory(), forward.memory());
                run(&Stats { shape, x, scratch, message: sums, then: Some(then) }.launch(host.device()).unwrap());
                let activation = Activation::Relu;
                let apply = Apply { shape, x, add: None, y: y_at, activation, coefficients };
                run(&apply.launch(host.device()).unwrap());
                let arriving = Arriving { d1: d_at.memory(), d2: None, activation, mask: Mask::Again, coefficients };
                let then = BackwardCoefficients {
                    count,
                    gamma: g.memory(),
                    saved: saved.memory(),
                    coefficients: backward.memory(),
                    d_gamma: dg.memory(),
                    d_beta: db.memory(),
                };
                let gate = Gate { shape, arriving, x, g: None, scratch, message: sums, then: Some(then) };
                run(&gate.launch(host.device()).unwrap());
                let gradient = Gradient { shape, arriving, x, dx: dx.memory(), coefficients: backward.memory() };
                run(&gradient.launch(host.device()).unwrap());
                (y.read(), dx.read())
            },
            host,
        )?;
        for i in 0..c {
            let column = |values: &[f32]| values.iter().skip(i).step_by(c).map(|v| f64::from(*v)).collect::<Vec<_>>();
            let (xs, ds, ys, dxs) = (column(&x), column(&d), column(&y), column(&dx));
            let mean = xs.iter().sum::<f64>() / n;
            let inverse = 1.0 / (xs.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n + eps).sqrt();
            let hat: Vec<f64> = xs.iter().map(|x| (x - mean) * inverse).collect();
            let out: Vec<f64> = hat.iter().map(|h| f64::from(gamma[i]) * h + f64::from(beta[i])).collect();
            let g: Vec<f64> = ds.iter().zip(&out).map(|(d, y)| if *y > 0.0 { *d } else { 0.0 }).collect();
            let (sum, dot) = (g.iter().sum::<f64>(), g.iter().zip(&hat).map(|(g, h)| g * h).sum::<f64>());
            for r in 0..xs.len() {
                let wanted = f64::from(gamma[i]) * inverse / n * (n * g[r] - sum - hat[r] * dot);
                let near_y = near(ys[r], out[r].max(0.0), 1e-5);
                // Beside the kink the mask may be the other one.
                let near_dx = near(dxs[r], wanted, 1e-5) || out[r].abs() < 1e-5;
                ensure(near_y && near_dx, || {
                    format!("row {r}, channel {i}: {} {} for {} {wanted}", ys[r], dxs[r], out[r])
                })?;
            }
        }
    }
    Ok(())
}
