//! With the feature `host`: builds the test double of the driver, a shared library with our kernels in it, and tells
//! tests where it lies and how to build it again from a changed source.

use std::path::PathBuf;

/// The result of an element must be that of the CPU's loops, so no contraction to FMA here either.
const FLAGS: &str = "-std=c++17 -O1 -ffp-contract=off -fPIC -shared -w";

fn main() {
    for path in ["build.rs", "src/cuda", "host"] {
        println!("cargo:rerun-if-changed={path}");
    }
    if std::env::var_os("CARGO_FEATURE_HOST").is_none() {
        return;
    }
    let Some(out) = std::env::var_os("OUT_DIR").map(PathBuf::from) else { panic!("cargo set no OUT_DIR") };
    let library = out.join("libcuda_host.so");
    let compiler = cc::Build::new().cpp(true).get_compiler();
    let mut command = std::process::Command::new(compiler.path());
    command.args(FLAGS.split(' ')).args(["-I", "host", "-I", "src/cuda", "host/driver.cpp", "-o"]).arg(&library);
    match command.status() {
        Ok(status) if status.success() => {}
        other => panic!("cannot build the test double of the CUDA driver: {command:?}: {other:?}"),
    }
    println!("cargo:rustc-env=LOCKSTEP_HOST_DRIVER={}", library.display());
    println!("cargo:rustc-env=LOCKSTEP_HOST_COMPILER={}", compiler.path().display());
    println!("cargo:rustc-env=LOCKSTEP_HOST_FLAGS={FLAGS}");
}
