//! Launches that would reach beyond their memory are refused before anything is launched, by what is too small.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test may panic")]

use lockstep_kernels::host::{Buffer, Host};
use lockstep_kernels::loss::CrossEntropy;
use lockstep_kernels::norm::{Apply, Stats};
use lockstep_kernels::update::{Gatekeeper, Sgd};
use lockstep_kernels::{Activation, Element, KernelError, Launch, Scratch, Shape, StepWords};

const SHAPE: Shape = Shape { rows: 100, channels: 16, element: Element::F32 };

fn said(launch: Result<Launch, KernelError>) -> String {
    let error = launch.expect_err("it does not fit");
    assert!(!error.is_unusable(), "the caller's mistake is no lack of the machine: {error}");
    error.to_string()
}

#[test]
fn batch_norm_names_what_is_too_small() {
    let host = Host::new().unwrap();
    let device = host.device();
    let partial_bytes = Scratch::partial_bytes(SHAPE, device);
    let mut buffer = Buffer::poisoned(1 << 20);
    let all = buffer.memory();
    let of = |bytes| all.part(0, bytes).unwrap();
    let scratch = Scratch { partials: of(partial_bytes), tickets: of(4) };
    let stats = Stats { shape: SHAPE, x: of(6400), scratch, message: of(256), then: None };
    stats.launch(device).unwrap();
    assert_eq!(said(Stats { x: of(6399), ..stats }.launch(device)), "bn_stats: x has 6399 bytes and needs 6400");
    assert!(said(Stats { message: of(255), ..stats }.launch(device)).starts_with("bn_stats: message has 255"));
    let short = Scratch { partials: of(8), ..scratch };
    assert!(said(Stats { scratch: short, ..stats }.launch(device)).starts_with("bn_stats: partials has 8 bytes"));
    let none = Shape { channels: 0, ..SHAPE };
    assert!(said(Stats { shape: none, ..stats }.launch(device)).contains("100 rows of 0 channels"));

    let activation = Activation::Relu;
    let apply = Apply { shape: SHAPE, x: all, add: None, y: all, activation, coefficients: of(192) };
    apply.launch(device).unwrap();
    assert!(said(Apply { add: Some(of(64)), ..apply }.launch(device)).starts_with("bn_apply: add has 64"));
    assert!(
        said(Apply { coefficients: of(188), ..apply }.launch(device)).starts_with("bn_apply: coefficients has 188")
    );
}

#[test]
fn the_update_names_what_does_not_fit() {
    let host = Host::new().unwrap();
    let device = host.device();
    let mut buffer = Buffer::poisoned(1 << 16);
    let all = buffer.memory();
    let keeper = Gatekeeper { step: all, poison: all, vote: all, found: all, gate: all, applied: all };
    let sgd = Sgd {
        num: 64,
        master: all,
        momentum: None,
        gradient: all,
        copy: None,
        weight_decay: (0.0, 0),
        nesterov: false,
    };
    sgd.launch(&keeper, device).unwrap();
    assert!(said(Sgd { num: 66, ..sgd }.launch(&keeper, device)).contains("not a multiple of four"));
    assert!(
        said(Sgd { gradient: all.part(4, 1024).unwrap(), ..sgd }.launch(&keeper, device)).contains("not aligned to 16")
    );
    assert!(said(Sgd { copy: Some((all, 128)), ..sgd }.launch(&keeper, device)).contains("a copy of 128 of 64"));
    let short = Gatekeeper { step: all.part(0, StepWords::BYTES - 1).unwrap(), ..keeper };
    assert!(said(sgd.launch(&short, device)).contains("step words has 47 bytes and needs 48"));
    assert!(said(short.vote()).starts_with("vote_write: step words"));
}

#[test]
fn the_loss_and_a_part_beyond_the_end_are_refused() {
    let host = Host::new().unwrap();
    let mut buffer = Buffer::poisoned(4096);
    let all = buffer.memory();
    let loss = CrossEntropy {
        num: 4,
        classes: 10,
        element: Element::F32,
        logits: all,
        labels: all,
        smoothing: 0.0,
        gradient: None,
        step: all,
        partials: all,
        ticket: all,
        counts: all,
    };
    loss.launch(host.device()).unwrap();
    assert!(said(CrossEntropy { smoothing: 1.0, ..loss }.launch(host.device())).contains("smoothing 1"));
    assert!(said(CrossEntropy { num: 400, ..loss }.launch(host.device())).contains("logits has 4096"));
    assert!(all.part(4090, 7).is_err() && all.part(u64::MAX, 2).is_err() && all.part(4090, 6).is_ok());
}
