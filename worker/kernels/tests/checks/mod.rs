//! What every kernel must hold, as functions of a host that runs them: `numerics.rs` runs them on the source as it is,
//! `mutants.rs` on sources with a bug, each of which one of these must find.

pub mod norm;
pub mod norm_backward;
pub mod rest;
pub mod update;
pub mod values;

use lockstep_kernels::Launch;
use lockstep_kernels::host::{Host, ORDERS};

/// A check: what is wrong, or nothing.
pub type Check = fn(&Host) -> Result<(), String>;

/// All of them, by name.
pub const CHECKS: [(&str, Check); 15] = [
    ("messages", norm::messages),
    ("messages_of_a_large_mean", norm::messages_of_a_large_mean),
    ("forward_coefficients", norm::forward_coefficients),
    ("apply", norm::apply),
    ("gate", norm_backward::gate),
    ("backward_coefficients", norm_backward::backward_coefficients),
    ("gradient", norm_backward::gradient),
    ("batch_norm_end_to_end", norm_backward::batch_norm_end_to_end),
    ("vote", update::vote),
    ("nonfinite", update::nonfinite),
    ("running", update::running),
    ("sgd", update::sgd),
    ("closed", update::closed),
    ("augment", rest::augment),
    ("loss", rest::loss),
];

/// Runs the same launch in every order of threads and blocks, each on fresh buffers, and gives the results, which must
/// have the same bits.
pub fn in_every_order<R: PartialEq>(mut run: impl FnMut(&dyn Fn(&Launch)) -> R, host: &Host) -> Result<R, String> {
    let mut first = None;
    for order in ORDERS {
        let failure = std::cell::RefCell::new(None);
        let result = run(&|launch| {
            if let Err(error) = host.run(launch, order) {
                failure.borrow_mut().get_or_insert(error.to_string());
            }
        });
        if let Some(failure) = failure.into_inner() {
            return Err(failure);
        }
        match &first {
            None => first = Some(result),
            Some(first) if *first == result => {}
            Some(_) => return Err(format!("order {order} of threads and blocks gives other bits")),
        }
    }
    first.ok_or_else(|| "nothing ran".into())
}

/// An error unless it holds.
pub fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// Whether two numbers are that near; equal infinities and two NaN are.
pub fn near(found: f64, wanted: f64, tolerance: f64) -> bool {
    found == wanted || (found.is_nan() && wanted.is_nan()) || (found - wanted).abs() <= tolerance
}
