//! Input and loss.

use lockstep_kernels::host::{Buffer, Host};
use lockstep_kernels::input::{Augment, DataSet, Draw};
use lockstep_kernels::loss::CrossEntropy;
use lockstep_kernels::{Element, Shape};

use super::update::WORDS;
use super::values::{Random, Tensor, round};
use super::{ensure, in_every_order, near};

/// Pads with zeros around the normalised image, crops, flips: value by value.
fn naive(draw: Draw, [h, w, c]: [usize; 3], plain: &[f32]) -> Vec<f32> {
    let mut out = Vec::new();
    for y in 0..h as i64 {
        for x in 0..w as i64 {
            let x = if draw.flip { w as i64 - 1 - x } else { x };
            let (y, x) = (y + i64::from(draw.down), x + i64::from(draw.right));
            let inside = (0..h as i64).contains(&y) && (0..w as i64).contains(&x);
            out.extend((0..c).map(|k| if inside { plain[(y as usize * w + x as usize) * c + k] } else { 0.0 }));
        }
    }
    out
}

/// Bit by bit what the CPU's loader gives, in any shape.
pub fn augment(host: &Host) -> Result<(), String> {
    let mut random = Random::new(12);
    for shape in [[32, 32, 3], [5, 7, 3], [4, 4, 1], [3, 8, 2], [64, 48, 3]] {
        let (size, num_all) = (shape.iter().product::<usize>(), 9);
        let images: Vec<u8> = (0..size * num_all).map(|_| random.below(256) as u8).collect();
        let labels: Vec<i32> = (0..num_all as i32).map(|i| i * 3 % 10).collect();
        let (offset, scale) = (random.normals(size), random.normals(size));
        let samples: Vec<i64> = (0..13).map(|_| random.below(num_all as u64) as i64).collect();
        let mut draw = || random.below(2 * shape[0] as u64 + 5) as i16 - shape[0] as i16 - 2;
        let mut draws: Vec<Draw> =
            samples.iter().map(|s| Draw { down: draw(), right: draw(), flip: s % 2 == 0 }).collect();
        draws[0] = Draw::default();
        draws[1] = Draw { down: 1, right: -2, flip: true };
        for element in [Element::F32, Element::Bf16] {
            for shifted in [false, true] {
                let (found, found_labels) = in_every_order(
                    |run| {
                        let [mut offsets, mut scales] = [&offset, &scale].map(|values| Buffer::new(values));
                        let (mut all, mut all_labels) = (Buffer::new(&images), Buffer::new(&labels));
                        let mut samples_at = Buffer::new(&samples);
                        let drawn: Vec<u8> = draws.iter().flat_map(|draw| draw.to_bytes()).collect();
                        let mut draws_at = Buffer::new(&drawn);
                        let batch = Shape { rows: 13, channels: size as u32, element };
                        let mut out = Tensor::empty(batch, shifted);
                        let mut labels_out = Buffer::poisoned(13 * 4);
                        let augment = Augment {
                            data: DataSet {
                                images: all.memory(),
                                labels: all_labels.memory(),
                                num: num_all as u64,
                                shape: shape.map(|side| side as u32),
                                offset: offsets.memory(),
                                scale: scales.memory(),
                            },
                            num: 13,
                            samples: samples_at.memory(),
                            draws: draws_at.memory(),
                            element,
                            images: out.memory(),
                            labels: labels_out.memory(),
                        };
                        run(&augment.launch().unwrap().unwrap());
                        let bits: Vec<u32> = out.read().into_iter().map(f32::to_bits).collect();
                        (bits, labels_out.read::<i32>())
                    },
                    host,
                )?;
                for (i, sample) in samples.iter().enumerate() {
                    let of = *sample as usize;
                    let plain: Vec<f32> = images[of * size..(of + 1) * size]
                        .iter()
                        .enumerate()
                        .map(|(k, byte)| (f32::from(*byte) - offset[k]) * scale[k])
                        .collect();
                    let wanted = naive(draws[i], shape, &plain).into_iter().map(|v| round(element, v).to_bits());
                    let same = found[i * size..(i + 1) * size].iter().copied().eq(wanted);
                    ensure(same && found_labels[i] == labels[of], || format!("{shape:?} {element:?} {:?}", draws[i]))?;
                }
            }
        }
    }
    Ok(())
}

/// One sample's loss, gradient (undivided) and place in f64.
fn reference(row: &[f32], label: i32, smoothing: f64) -> (f64, Vec<f64>, usize) {
    let row: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
    let classes = row.len() as f64;
    let largest = row.iter().copied().fold(f64::NEG_INFINITY, |a, b| if b > a { b } else { a });
    let sum: f64 = row.iter().map(|x| (x - largest).exp()).sum();
    let Some(own) = usize::try_from(label).ok().and_then(|label| row.get(label).copied()) else {
        return (f64::NAN, row.iter().map(|x| (x - largest).exp() / sum - smoothing / classes).collect(), usize::MAX);
    };
    let target = |c: usize| smoothing / classes + if c as i32 == label { 1.0 - smoothing } else { 0.0 };
    let loss =
        row.iter().enumerate().map(|(c, x)| if target(c) == 0.0 { 0.0 } else { target(c) * (sum.ln() + largest - x) });
    let gradient = row.iter().enumerate().map(|(c, x)| (x - largest).exp() / sum - target(c));
    let ahead = row.iter().enumerate().filter(|(c, x)| **x > own || (**x == own && (*c as i32) < label)).count();
    (loss.sum(), gradient.collect(), if own.is_nan() { usize::MAX } else { ahead })
}

/// Loss, gradient and counts, in every form.
pub fn loss(host: &Host) -> Result<(), String> {
    let mut random = Random::new(13);
    for (num, classes) in [(0, 10), (1, 1), (7, 10), (100, 10), (37, 33), (5, 1000)] {
        let mut logits: Vec<f32> = random.normals(num * classes).into_iter().map(|x| 3.0 * x).collect();
        let mut labels: Vec<i32> = (0..num).map(|_| random.below(classes as u64) as i32).collect();
        if num == 100 {
            logits[..10].fill(0.5); // ties
            logits[10..20].fill(f32::NEG_INFINITY);
            logits[11] = 4.0;
            labels[1] = 1;
        }
        for (element, smoothing) in
            [(Element::F32, 0.0), (Element::F32, 0.1), (Element::Bf16, 0.0), (Element::Bf16, 0.2)]
        {
            if num == 100 && smoothing > 0.0 {
                logits[10..20].fill(1e4); // far from 0, and finite: 0.1 · ∞ is ∞
            }
            compare(host, &logits, &labels, (classes, element, smoothing))?;
        }
    }
    compare(host, &[1.0, f32::NAN, 2.0, 0.0], &[1, 0], (2, Element::F32, 0.0))?;
    compare(host, &[1.0, 3.0, 2.0, 0.0], &[2, -1], (2, Element::F32, 0.0))
}

fn compare(
    host: &Host,
    logits: &[f32],
    labels: &[i32],
    (classes, element, smoothing): (usize, Element, f64),
) -> Result<(), String> {
    let num = labels.len();
    let shape = Shape { rows: num as u64, channels: classes as u32, element };
    let (counts, gradient, in_place, ticket) = in_every_order(
        |run| {
            let mut at = Tensor::new(element, logits, false);
            let mut out = Tensor::empty(shape, false);
            let (mut labels, mut step) = (Buffer::new(labels), Buffer::new(&WORDS.to_bytes()));
            let partial_bytes = CrossEntropy::partial_bytes(num as u64, host.device()) as usize;
            let [mut partials, mut counts] = [partial_bytes, 24].map(Buffer::poisoned);
            let mut ticket = Buffer::new(&[0_u32]);
            let launch = CrossEntropy {
                num: num as u64,
                classes: classes as u32,
                element,
                logits: at.memory(),
                labels: labels.memory(),
                smoothing,
                gradient: Some(out.memory()),
                step: step.memory(),
                partials: partials.memory(),
                ticket: ticket.memory(),
                counts: counts.memory(),
            };
            run(&launch.launch(host.device()).unwrap());
            let first: Vec<u64> = counts.read::<f64>().into_iter().map(f64::to_bits).collect();
            let in_place = CrossEntropy { gradient: Some(at.memory()), ..launch };
            run(&in_place.launch(host.device()).unwrap());
            let bits = |tensor: &Tensor| tensor.read().into_iter().map(f32::to_bits).collect::<Vec<_>>();
            (first, bits(&out), bits(&at), ticket.read::<u32>()[0])
        },
        host,
    )?;
    let what = || format!("{num} × {classes}, {element:?}, smoothing {smoothing}");
    ensure(gradient == in_place && ticket == 0, || format!("{}: in place, or the ticket", what()))?;
    let counts: Vec<f64> = counts.into_iter().map(f64::from_bits).collect();
    let mut wanted = [0.0; 3];
    for (n, label) in labels.iter().enumerate() {
        let row: Vec<f32> = logits[n * classes..(n + 1) * classes].iter().map(|x| round(element, *x)).collect();
        let (loss, gradients, ahead) = reference(&row, *label, smoothing);
        wanted[0] += loss;
        wanted[1] += f64::from(u8::from(ahead > 0));
        wanted[2] += f64::from(u8::from(ahead > 4));
        for (c, g) in gradients.into_iter().enumerate() {
            let found = f64::from(f32::from_bits(gradient[n * classes + c]));
            let g = g / WORDS.samples as f64;
            // Half a unit in the last place.
            let half = match element {
                Element::F32 => 2f64.powi(-24),
                Element::Bf16 => 2f64.powi(-8),
            };
            ensure(near(found, g, half * 1.001 * g.abs() + 1e-18), || {
                format!("{}: gradient {n}, {c}: {found} for {g}", what())
            })?;
        }
    }
    let fits = near(counts[0], wanted[0], 1e-13 * wanted[0].abs()) && counts[1..] == wanted[1..];
    ensure(fits, || format!("{}: {counts:?} for {wanted:?}", what()))
}
