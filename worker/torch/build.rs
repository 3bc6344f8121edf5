//! Compiles `src/kernels.cpp` and `src/device.cpp` against the libtorch that torch-sys found, and tells test binaries where it lies.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=src/kernels.cpp");
    println!("cargo:rerun-if-changed=src/device.cpp");
    println!("cargo:rerun-if-changed=src/loops.h");
    println!("cargo:rerun-if-changed=build.rs");
    let Some(lib) = std::env::var_os("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from) else {
        panic!("torch-sys did not say where libtorch is: run `cargo xtask libtorch`");
    };
    let root = lib.parent().map(PathBuf::from).unwrap_or_default();
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .file("src/kernels.cpp")
        .file("src/device.cpp")
        .include(root.join("include"))
        .include(root.join("include/torch/csrc/api/include"))
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .opt_level(3)
        .debug(false)
        // Sums keep their order and products their rounding on every instruction set: no contraction to FMA.
        .flag("-ffp-contract=off")
        .flag("-fno-math-errno")
        .flag("-fno-trapping-math")
        .flag("-Wno-unused-parameter")
        .flag("-Wno-unused-local-typedefs")
        .flag("-Wno-deprecated-declarations")
        .compile("lockstep_kernels");
    println!("cargo:rustc-link-lib=dylib=torch_cpu");
    println!("cargo:rustc-link-lib=dylib=c10");
    println!("cargo:rustc-link-search=native={}", lib.display());
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
}
