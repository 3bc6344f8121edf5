//! Compiles `src/graph.cpp` into a library of its own, which the executable carries and opens once CUDA's half of libtorch
//! is open: nothing of CUDA is linked. Without CUDA's headers the library is empty, and steps run without graphs.

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=src/graph.cpp");
    println!("cargo:rerun-if-changed=build.rs");
    let Some(lib) = std::env::var_os("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from) else {
        panic!("torch-sys did not say where libtorch is: run `cargo xtask libtorch`");
    };
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    let root = lib.parent().map(PathBuf::from).unwrap_or_default();
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join("graph.so");
    let headers = headers(&root);
    println!("cargo:rerun-if-changed={}", root.join("cuda/include").display());
    match headers {
        Some(headers) => compile(&root, &headers, &out),
        None => {
            println!("cargo:warning=no CUDA headers beside libtorch: steps on GPUs will run without CUDA graphs");
            std::fs::write(&out, []).unwrap_or_else(|error| panic!("cannot write {}: {error}", out.display()));
        }
    }
}

/// Where `cuda_runtime_api.h` is: as `cargo xtask libtorch` puts it, as PyTorch's wheels do, or in a toolkit.
fn headers(root: &Path) -> Option<PathBuf> {
    let toolkit = std::env::var_os("CUDA_HOME").map(PathBuf::from).unwrap_or_else(|| "/usr/local/cuda".into());
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    let beside = root.parent().map(|site| site.join("nvidia/cu13/include"));
    let places = [Some(root.join("cuda/include")), beside, Some(toolkit.join("include"))];
    places.into_iter().flatten().find(|place| {
        ["cuda_runtime_api.h", "crt/host_defines.h", "nvtx3/nvToolsExt.h"].iter().all(|file| place.join(file).is_file())
    })
}

fn compile(root: &Path, headers: &Path, out: &Path) {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .include(root.join("include"))
        .include(headers)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .opt_level(2)
        .debug(false)
        .warnings(false)
        .pic(true);
    let mut command = build.get_compiler().to_command();
    // Its symbols are found when it is opened, in libraries that are open by then.
    command.arg("-shared").arg("src/graph.cpp").arg("-o").arg(out).arg("-ldl");
    let status = command.status().unwrap_or_else(|error| panic!("no C++ compiler: {error}"));
    assert!(status.success(), "src/graph.cpp does not compile");
}
