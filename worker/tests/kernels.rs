//! The CUDA kernels, run on the host, against the CPU's own path (messages, bits) and against libtorch's operations.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test may panic")]

use lockstep_data::Samples;
use lockstep_data::augment::Augmentation;
use lockstep_data::normalize::Normalizer;
use lockstep_kernels::host::{Buffer, Host};
use lockstep_kernels::input::{Augment, DataSet, Draw};
use lockstep_kernels::loss::CrossEntropy;
use lockstep_kernels::norm::{
    Affine, Apply, Arriving, BackwardCoefficients, Count, ForwardCoefficients, Gate, Gradient, Mask, Stats,
};
use lockstep_kernels::update::{Gatekeeper, Sgd};
use lockstep_kernels::{Activation, Element, Scratch, Shape, StepWords};
use lockstep_proto::recipe::Normalize;
use lockstep_torch as torch;
use lockstep_worker::exec::{Statistics, Targets, backward, cross_entropy, forward};
use tch::{Device, Kind, Tensor};

const EPS: f64 = 1e-5;

/// A tensor of libtorch, NCHW over NHWC memory.
fn random(shape: [i64; 4], element: Element, seed: i64) -> Tensor {
    tch::manual_seed(seed);
    let x = Tensor::randn(shape, (Kind::Double, Device::Cpu)).to_kind(kind(element));
    x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

fn kind(element: Element) -> Kind {
    match element {
        Element::F32 => Kind::Float,
        Element::Bf16 => Kind::BFloat16,
    }
}

/// Its rows, exact.
fn rows(x: &Tensor) -> Vec<f32> {
    Vec::try_from(x.permute([0, 2, 3, 1]).contiguous().to_kind(Kind::Float).view([-1])).unwrap()
}

/// In the memory of the host device.
fn upload(x: &Tensor) -> Buffer {
    let values = rows(x);
    match x.kind() {
        Kind::BFloat16 => Buffer::new(&values.iter().map(|v| (v.to_bits() >> 16) as u16).collect::<Vec<_>>()),
        _ => Buffer::new(&values),
    }
}

fn download(buffer: &Buffer, element: Element) -> Vec<f32> {
    match element {
        Element::F32 => buffer.read(),
        Element::Bf16 => buffer.read::<u16>().into_iter().map(|bits| f32::from_bits(u32::from(bits) << 16)).collect(),
    }
}

struct Room(Buffer, Buffer);

impl Room {
    fn new(shape: Shape, host: &Host) -> Self {
        let tickets = Buffer::new(&vec![0_u32; Scratch::TICKET_BYTES as usize / 4]);
        Self(Buffer::poisoned(Scratch::partial_bytes(shape, host.device()) as usize), tickets)
    }

    fn scratch(&mut self) -> Scratch {
        Scratch { partials: self.0.memory(), tickets: self.1.memory() }
    }
}

fn assert_near(found: &[f64], wanted: &[f64], tolerance: f64, what: &str) {
    for (i, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        assert!((found - wanted).abs() <= tolerance * wanted.abs(), "{what}: number {i} is {found} for {wanted}");
    }
}

/// Messages equal the CPU's to 1e-12; apply, g and dx have the CPU's bits; coefficients are the CPU's to rounding.
#[test]
fn batch_norm_is_the_cpus() {
    let host = Host::new().unwrap();
    for (element, [n, c, h, w], mean) in [
        (Element::F32, [4, 16, 6, 5], 3.0),
        (Element::F32, [3, 37, 3, 3], 1e4),
        (Element::Bf16, [4, 64, 5, 5], -2.0),
        (Element::Bf16, [5, 5, 4, 4], 100.0),
    ] {
        let channels = c as usize;
        let shape = Shape { rows: (n * h * w) as u64, channels: c as u32, element };
        let what = format!("{shape:?}, mean {mean}");
        // Far from 0, so that sums do not cancel and an error can be given relative to them.
        let x = random([n, c, h, w], element, 1).to_kind(Kind::Double) + mean;
        let x = x.to_kind(kind(element));
        let [add, d1, d2] = [2, 3, 4].map(|seed| random([n, c, h, w], element, seed));
        let gamma: Vec<f32> = (0..channels).map(|i| 0.5 + i as f32 / 7.0).collect();
        let beta: Vec<f32> = (0..channels).map(|i| i as f32 / 5.0 - 1.0).collect();
        let count = shape.rows as f64;

        // the CPU
        let mut message = vec![0.0; 2 * channels];
        torch::stats(&x, &mut message).unwrap();
        let statistics = Statistics::from_sums(&message, count, EPS);
        let coefficients = forward::<f32>(&statistics, &gamma, &beta).0;
        let mut y = x.empty_like();
        torch::apply(&x, Some(&add), &mut y, torch::Activation::Relu, &coefficients).unwrap();
        let (g, mut sums) = (x.empty_like(), vec![0.0; 2 * channels]);
        let relu = torch::Activation::Relu;
        torch::gate((&d1, Some(&d2)), (&y, relu), (&x, &coefficients[..channels]), &g, &mut sums).unwrap();
        let back = backward::<f32>(&statistics, &gamma, &sums).0;
        let dx = x.empty_like();
        torch::gradient(&g, &x, &dx, &back).unwrap();

        // the kernels
        let mut room = Room::new(shape, &host);
        let [mut x_at, mut add_at, mut d1_at, mut d2_at] = [&x, &add, &d1, &d2].map(upload);
        let [mut message_at, mut saved_at, mut sums_at] = [16 * channels; 3].map(Buffer::poisoned);
        let [mut forward_at, mut back_at] = [12, 16].map(|bytes| Buffer::poisoned(bytes * channels));
        let [mut dg, mut db] = [4 * channels; 2].map(Buffer::poisoned);
        let (mut gamma_at, mut beta_at, mut samples) =
            (Buffer::new(&gamma), Buffer::new(&beta), Buffer::new(&[n as f64]));
        let [mut y_at, mut dx_at] = [shape.bytes() as usize; 2].map(Buffer::poisoned);
        let count = Count { samples: samples.memory(), pixels: (h * w) as u64 };
        let then = ForwardCoefficients {
            count,
            affine: Affine { gamma: gamma_at.memory(), beta: beta_at.memory() },
            eps: EPS,
            coefficients: forward_at.memory(),
            saved: saved_at.memory(),
            pending: None,
        };
        let (x_in, scratch, at) = (x_at.memory(), room.scratch(), message_at.memory());
        let run = |launch: Result<_, _>| host.run(&launch.unwrap(), 2).unwrap();
        run(Stats { shape, x: x_in, scratch, message: at, then: Some(then) }.launch(host.device()));
        assert_near(&message_at.read(), &message, 1e-12, &format!("{what}: message"));
        let wide = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
        assert_near(&wide(&forward_at.read()), &wide(&coefficients), 1e-6, &format!("{what}: coefficients"));

        // With the CPU's coefficients, so that bits can be compared.
        forward_at = Buffer::new(&coefficients);
        let activation = Activation::Relu;
        let (add, y_out, coefficients) = (Some(add_at.memory()), y_at.memory(), forward_at.memory());
        run(Apply { shape, x: x_in, add, y: y_out, activation, coefficients }.launch(host.device()));
        assert_eq!(download(&y_at, element), rows(&y), "{what}: y");

        let (d1, d2, mask) = (d1_at.memory(), Some(d2_at.memory()), Mask::Output(y_out));
        let arriving = Arriving { d1, d2, activation, mask, coefficients };
        let then = BackwardCoefficients {
            count,
            gamma: gamma_at.memory(),
            saved: saved_at.memory(),
            coefficients: back_at.memory(),
            d_gamma: dg.memory(),
            d_beta: db.memory(),
        };
        let gate = Gate { shape, arriving, x: x_in, g: Some(d1), scratch, message: sums_at.memory(), then: Some(then) };
        run(gate.launch(host.device()));
        assert_eq!(download(&d1_at, element), rows(&g), "{what}: g");
        let sizes = sums.iter().map(|s| s.abs()).fold(0.0, f64::max);
        for (found, wanted) in sums_at.read::<f64>().iter().zip(&sums) {
            assert!((found - wanted).abs() <= 1e-12 * sizes, "{what}: sums: {found} for {wanted}");
        }
        let largest = back.iter().map(|v| f64::from(v.abs())).fold(0.0, f64::max);
        for (found, wanted) in back_at.read::<f32>().iter().zip(&back) {
            assert!(f64::from((found - wanted).abs()) <= 1e-6 * largest, "{what}: {found} for {wanted}");
        }
        back_at = Buffer::new(&back);
        let plain = Arriving { d2: None, activation: Activation::Identity, ..arriving };
        let gradient = Gradient { shape, arriving: plain, x: x_in, dx: dx_at.memory(), coefficients: back_at.memory() };
        run(gradient.launch(host.device()));
        assert_eq!(download(&dx_at, element), rows(&dx), "{what}: dx");
    }
}

/// The composition of libtorch's operations in f64, with autograd: y and dx within half a unit of bf16.
#[test]
fn batch_norm_is_libtorchs_composition_to_half_a_unit_of_bf16() {
    let host = Host::new().unwrap();
    let [n, c, h, w] = [6, 24, 5, 5];
    let (channels, element) = (c as usize, Element::Bf16);
    let shape = Shape { rows: (n * h * w) as u64, channels: c as u32, element };
    let [x, add, d] = [5, 6, 7].map(|seed| random([n, c, h, w], element, seed));
    let gamma: Vec<f32> = (0..channels).map(|i| 0.5 + i as f32 / 7.0).collect();
    let beta: Vec<f32> = (0..channels).map(|i| i as f32 / 5.0 - 1.0).collect();

    let leaf = |values: &Tensor| values.to_kind(Kind::Double).detach().set_requires_grad(true);
    let (x64, add64) = (leaf(&x), leaf(&add));
    let (gamma64, beta64) = (leaf(&Tensor::from_slice(&gamma)), leaf(&Tensor::from_slice(&beta)));
    let none: Option<Tensor> = None;
    let normal = x64.batch_norm(Some(&gamma64), Some(&beta64), none.as_ref(), none.as_ref(), true, 0.1, EPS, false);
    let y64 = (normal + &add64).relu();
    (&y64 * d.to_kind(Kind::Double)).sum(Kind::Double).backward();

    let mut room = Room::new(shape, &host);
    let [mut x_at, mut add_at, mut d_at] = [&x, &add, &d].map(upload);
    let [mut message, mut saved] = [16 * channels; 2].map(Buffer::poisoned);
    let [mut forward_at, mut back_at, mut dg, mut db] = [12, 16, 4, 4].map(|bytes| Buffer::poisoned(bytes * channels));
    let (mut gamma_at, mut beta_at, mut samples) = (Buffer::new(&gamma), Buffer::new(&beta), Buffer::new(&[n as f64]));
    let [mut y_at, mut dx_at] = [shape.bytes() as usize; 2].map(Buffer::poisoned);
    let count = Count { samples: samples.memory(), pixels: (h * w) as u64 };
    let run = |launch: Result<_, _>| host.run(&launch.unwrap(), 1).unwrap();
    let (x, scratch, at, coefficients) = (x_at.memory(), room.scratch(), message.memory(), forward_at.memory());
    let affine = Affine { gamma: gamma_at.memory(), beta: beta_at.memory() };
    let then = ForwardCoefficients { count, affine, eps: EPS, coefficients, saved: saved.memory(), pending: None };
    run(Stats { shape, x, scratch, message: at, then: Some(then) }.launch(host.device()));
    let (activation, y) = (Activation::Relu, y_at.memory());
    run(Apply { shape, x, add: Some(add_at.memory()), y, activation, coefficients }.launch(host.device()));
    let arriving = Arriving { d1: d_at.memory(), d2: None, activation, mask: Mask::Output(y), coefficients };
    let then = BackwardCoefficients {
        count,
        gamma: affine.gamma,
        saved: saved.memory(),
        coefficients: back_at.memory(),
        d_gamma: dg.memory(),
        d_beta: db.memory(),
    };
    run(Gate { shape, arriving, x, g: None, scratch, message: at, then: Some(then) }.launch(host.device()));
    let gradient = Gradient { shape, arriving, x, dx: dx_at.memory(), coefficients: back_at.memory() };
    run(gradient.launch(host.device()));

    let exact = |x: &Tensor| -> Vec<f64> { Vec::try_from(x.permute([0, 2, 3, 1]).contiguous().view([-1])).unwrap() };
    // Half a unit in the last of eight places, and what f32 arithmetic adds near 0.
    for (what, buffer, wanted) in [("y", &y_at, exact(&y64)), ("dx", &dx_at, exact(&x64.grad()))] {
        for (found, wanted) in download(buffer, element).iter().zip(wanted) {
            let off = (f64::from(*found) - wanted).abs();
            assert!(off <= 2f64.powi(-8) * wanted.abs() + 2e-6, "{what}: {found} for {wanted}");
        }
    }
    let plain = |x: &Tensor| -> Vec<f64> { Vec::try_from(x).unwrap() };
    let wide = |buffer: &Buffer| buffer.read::<f32>().into_iter().map(f64::from).collect::<Vec<_>>();
    assert_near(&wide(&dg), &plain(&gamma64.grad()), 1e-5, "gradient of gamma");
    assert_near(&wide(&db), &plain(&beta64.grad()), 1e-5, "gradient of beta");
}

/// Five steps of the CPU's operations on libtorch tensors and of the kernel: the same bits.
#[test]
fn sgd_has_the_bits_of_the_cpus_operations() {
    let host = Host::new().unwrap();
    let (num, decayed, lr, mu, decay) = (1024_i64, 768_i64, 0.1, 0.9, 1e-4);
    for nesterov in [false, true] {
        tch::manual_seed(8);
        let kind = (Kind::Float, Device::Cpu);
        let mut master = Tensor::randn([num], kind);
        let mut buffer = Tensor::zeros([num], kind);
        let floats = |x: &Tensor| Vec::<f32>::try_from(x).unwrap();
        let (mut p, mut v) = (Buffer::new(&floats(&master)), Buffer::new(&floats(&buffer)));
        let mut copy = Buffer::poisoned(num as usize * 2);
        for step in 1..=5 {
            let gradient = Tensor::randn([num], kind);
            let mut g = Buffer::new(&floats(&gradient));
            // worker/src/optim/sgd.rs
            let _ = gradient.narrow(0, 0, decayed).g_add_(&(master.narrow(0, 0, decayed) * decay));
            let _ = buffer.g_mul_scalar_(mu);
            let _ = buffer.g_add_(&gradient);
            let update = if nesterov { &gradient + &buffer * mu } else { buffer.shallow_clone() };
            let _ = master.g_sub_(&(update * lr));

            let words =
                StepWords { nonce: 1, expected: 1, number: step, samples: 1, bn_momentum: 0.1, lr, dampening: 0.0 };
            let [mut words, mut gate] = [Buffer::new(&words.to_bytes()), Buffer::new(&[1_u32])];
            let [mut none, mut none64] = [Buffer::new(&[0_u32]), Buffer::new(&[0_u64])];
            let (step, u32s, u64s) = (words.memory(), none.memory(), none64.memory());
            let keeper = Gatekeeper { step, poison: u32s, vote: u64s, found: u32s, gate: gate.memory(), applied: u64s };
            let sgd = Sgd {
                num: num as u64,
                master: p.memory(),
                momentum: Some((v.memory(), mu)),
                gradient: g.memory(),
                copy: Some((copy.memory(), num as u64)),
                weight_decay: (decay, decayed as u64),
                nesterov,
            };
            host.run(&sgd.launch(&keeper, host.device()).unwrap(), 0).unwrap();
            assert_eq!(p.read::<f32>(), floats(&master), "nesterov {nesterov}");
            assert_eq!(v.read::<f32>(), floats(&buffer), "nesterov {nesterov}");
            let cast = floats(&master.to_kind(Kind::BFloat16).to_kind(Kind::Float));
            assert_eq!(download(&copy, Element::Bf16), cast, "nesterov {nesterov}");
        }
    }
}

/// The kernel against the loader's own augmentation: the same bits.
#[test]
fn augmentation_has_the_loaders_bits() {
    let host = Host::new().unwrap();
    let shape = [32, 32, 3];
    let size: usize = shape.iter().product();
    let mut samples = Samples::with_capacity(shape, 3);
    for k in 0..3 {
        samples.push(&(0..size).map(|v| (v * (37 + k) % 251) as u8).collect::<Vec<_>>(), k as u8);
    }
    let normalizer = Normalizer::new(Normalize::PixelMean, &samples);
    let mut draws = Vec::new();
    for down in [-32, -4, -1, 0, 3, 40] {
        for right in [-5, 0, 4] {
            draws.extend([false, true].map(|flip| Augmentation { down, right, flip }));
        }
    }
    let num = draws.len();
    let which: Vec<i64> = (0..num as i64).map(|i| i % 3).collect();
    let drawn: Vec<u8> = draws
        .iter()
        .flat_map(|a| Draw { down: a.down as i16, right: a.right as i16, flip: a.flip }.to_bytes())
        .collect();
    let (mut images, mut labels) = (Buffer::new(samples.pixels()), Buffer::new(&[0, 1, 2]));
    let [mut offset, mut scale] = [Buffer::new(normalizer.offset()), Buffer::new(normalizer.scale())];
    let (mut which_at, mut draws_at) = (Buffer::new(&which), Buffer::new(&drawn));
    let (mut out, mut labels_out) = (Buffer::poisoned(num * size * 4), Buffer::poisoned(num * 4));
    let augment = Augment {
        data: DataSet {
            images: images.memory(),
            labels: labels.memory(),
            num: 3,
            shape: shape.map(|side| side as u32),
            offset: offset.memory(),
            scale: scale.memory(),
        },
        num: num as u32,
        samples: which_at.memory(),
        draws: draws_at.memory(),
        element: Element::F32,
        images: out.memory(),
        labels: labels_out.memory(),
    };
    host.run(&augment.launch().unwrap().unwrap(), 0).unwrap();
    let found = out.read::<f32>();
    for (i, augmentation) in draws.iter().enumerate() {
        let mut wanted = vec![f32::NAN; size];
        augmentation.apply(shape, samples.image(which[i] as u64), &normalizer, &mut wanted);
        assert_eq!(found[i * size..(i + 1) * size], wanted, "{augmentation:?}");
    }
    assert!(labels_out.read::<i32>().iter().zip(&which).all(|(label, which)| i64::from(*label) == *which));
}

/// Against the CPU's loss, and with smoothing against libtorch's.
#[test]
fn cross_entropy_is_the_cpus_and_libtorchs() {
    let host = Host::new().unwrap();
    let (num, classes) = (50_usize, 10_usize);
    tch::manual_seed(9);
    let logits = Tensor::randn([num as i64, classes as i64], (Kind::Float, Device::Cpu)) * 4.0;
    let values = Vec::<f32>::try_from(logits.view([-1])).unwrap();
    let labels: Vec<i64> = (0..num as i64).map(|i| i * 7 % 10).collect();
    for smoothing in [0.0, 0.1] {
        let words =
            StepWords { nonce: 1, expected: 1, number: 1, samples: 64, bn_momentum: 0.1, lr: 0.1, dampening: 0.0 };
        let (mut step, mut ticket) = (Buffer::new(&words.to_bytes()), Buffer::new(&[0_u32]));
        let (mut at, mut out) = (Buffer::new(&values), Buffer::poisoned(values.len() * 4));
        let mut labels_at = Buffer::new(&labels.iter().map(|label| *label as i32).collect::<Vec<_>>());
        let bytes = CrossEntropy::partial_bytes(num as u64, host.device()) as usize;
        let [mut partials, mut counts] = [bytes, 24].map(Buffer::poisoned);
        let kernel = CrossEntropy {
            num: num as u64,
            classes: classes as u32,
            element: Element::F32,
            logits: at.memory(),
            labels: labels_at.memory(),
            smoothing,
            gradient: Some(out.memory()),
            step: step.memory(),
            partials: partials.memory(),
            ticket: ticket.memory(),
            counts: counts.memory(),
        };
        host.run(&kernel.launch(host.device()).unwrap(), 0).unwrap();
        let (found, counts) = (out.read::<f32>(), counts.read::<f64>());

        let mut gradient = vec![0.0_f32; values.len()];
        let cpu = cross_entropy(&values, Targets::plain(&labels), 64.0, Some(&mut gradient));
        assert_eq!(counts[1..], [cpu.wrong as f64, cpu.wrong_top5 as f64]);
        let leaf = logits.to_kind(Kind::Double).detach().set_requires_grad(true);
        let targets = Tensor::from_slice(&labels);
        let none: Option<Tensor> = None;
        let loss = leaf.cross_entropy_loss(&targets, none.as_ref(), tch::Reduction::Sum, -100, smoothing);
        loss.backward();
        let expected = Vec::<f64>::try_from((leaf.grad() / 64.0).view([-1])).unwrap();
        let want = loss.double_value(&[]);
        assert!((counts[0] - want).abs() <= 1e-12 * want, "{} for {want}", counts[0]);
        for (found, expected) in found.iter().zip(&expected) {
            assert!((f64::from(*found) - expected).abs() <= 1e-7 * expected.abs() + 1e-12, "{found} for {expected}");
        }
        if smoothing == 0.0 {
            assert!((counts[0] - cpu.loss).abs() <= 1e-13 * cpu.loss);
            assert_eq!(found, gradient);
        }
    }
}
