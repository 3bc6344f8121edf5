//! Every kernel, the source unchanged, on the host: against references in f64 and against the CPU's operations bit by
//! bit, in three orders of threads and blocks.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test may panic")]

mod checks;

use lockstep_kernels::KERNELS;
use lockstep_kernels::host::Host;

fn run(name: &str) {
    let host = Host::new().unwrap();
    let (_, check) = checks::CHECKS.into_iter().find(|(other, _)| *other == name).unwrap();
    if let Err(what) = check(&host) {
        panic!("{name}: {what}");
    }
}

macro_rules! tests {
    ($($name:ident)*) => {
        $(#[test] fn $name() { run(stringify!($name)); })*

        #[test]
        fn every_check_is_a_test() {
            assert_eq!(checks::CHECKS.map(|(name, _)| name).to_vec(), [$(stringify!($name)),*]);
        }
    };
}

tests! {
    messages messages_of_a_large_mean forward_coefficients apply gate backward_coefficients gradient
    batch_norm_end_to_end vote nonfinite running sgd closed augment loss
}

#[test]
fn the_source_has_the_kernels_that_are_named() {
    let (mut found, mut named) = (Host::new().unwrap().kernels(), KERNELS.map(String::from));
    found.sort();
    named.sort();
    assert_eq!(found, named);
}
