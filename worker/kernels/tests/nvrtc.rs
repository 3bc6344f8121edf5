//! The real compiler, on a machine without a device: it compiles the source for every architecture that we name, the
//! image is kept, and the loading code takes it.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test may panic")]

use std::path::PathBuf;

use lockstep_kernels::host::Host;
use lockstep_kernels::{KERNELS, Module, Nvrtc, Target, usage};

/// NVRTC from where `cargo xtask kernels` puts it.
///
/// # Panics
/// With `LOCKSTEP_TEST_REQUIRE`, where nothing may skip.
fn nvrtc() -> Option<Nvrtc> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = || set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let cache = set("LOCKSTEP_CACHE").or_else(|| Some(base()?.join("lockstep")));
    // The folder's name stands in xtask/src/kernels.rs, too.
    let folder = set("LOCKSTEP_NVRTC").or_else(|| Some(cache?.join("nvrtc-13.0.88/nvidia/cu13/lib")))?;
    match Nvrtc::find(&[folder]) {
        Ok(nvrtc) => Some(nvrtc),
        Err(error) => {
            let require = std::env::var_os("LOCKSTEP_TEST_REQUIRE").is_some();
            assert!(!require, "nothing may skip: {error}: run `cargo xtask kernels`");
            println!("skipped: {error}: `cargo xtask kernels` fetches it");
            None
        }
    }
}

#[test]
fn the_real_compiler_takes_the_source_once_and_the_image_is_kept() {
    let Some(nvrtc) = nvrtc() else { return };
    let cache = tempfile::tempdir().unwrap();
    let host = Host::new().unwrap();
    // The test double says that it is an sm_90.
    Module::load(&host.driver(), &nvrtc, Some(cache.path())).unwrap();
    let kept: Vec<_> = std::fs::read_dir(cache.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(kept.len() == 1 && kept[0].to_string_lossy().contains("sm_90"), "{kept:?}");
    let written = std::fs::metadata(&kept[0]).unwrap().modified().unwrap();
    Module::load(&host.driver(), &nvrtc, Some(cache.path())).unwrap();
    assert_eq!(std::fs::metadata(&kept[0]).unwrap().modified().unwrap(), written, "it was compiled again");
}

#[test]
fn a_cubin_has_every_kernel_and_a_newer_device_gets_ptx() {
    let Some(nvrtc) = nvrtc() else { return };
    let supported = nvrtc.supported().unwrap();
    assert!([80, 90, 100].iter().all(|arch| supported.contains(arch)), "{supported:?}");
    let compiled = nvrtc.compile(Target::Cubin(90), true).unwrap();
    assert!(compiled.image.starts_with(b"\x7fELF"));
    let mut names: Vec<_> = usage(&compiled.log).into_iter().map(|usage| usage.kernel).collect();
    let mut wanted = KERNELS.map(String::from).to_vec();
    names.sort();
    wanted.sort();
    assert_eq!(names, wanted);
    let ptx = nvrtc.compile(Target::Ptx(100), false).unwrap().image;
    assert!(ptx.starts_with(b"//") && ptx.ends_with(&[0]), "PTX ends with zero");
    let error = nvrtc.compile(Target::Cubin(1), false).unwrap_err();
    assert!(error.is_unusable() && error.to_string().contains("cannot compile the kernels for sm_1"), "{error}");
}
