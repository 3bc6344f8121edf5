//! `cargo xtask build`: both executables, as they are meant to be used.

use anyhow::Result;

use crate::libtorch;
use crate::system::{System, run};

/// Compilers, cmake, nasm and libtorch: everything that a build needs.
///
/// # Errors
/// When one is missing: with the remedy.
pub fn prepare(system: &System) -> Result<()> {
    system.check_rustc()?;
    system.need("g++", &["--version"], &["g++"])?;
    // libjpeg-turbo is built from source; its SIMD is written for nasm.
    system.need("cmake", &["--version"], &["cmake"])?;
    system.need("nasm", &["--version"], &["nasm"])?;
    libtorch::provide(system)
}

/// Builds `lockstep` and `lockstep-worker` into target/release.
///
/// # Errors
/// When something is missing or does not compile.
pub fn release(system: &System) -> Result<()> {
    prepare(system)?;
    run(&mut system.cargo(&["build", "--release", "-p", "lockstep", "-p", "lockstep-worker"]))
}
