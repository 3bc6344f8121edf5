//! `cargo xtask torchvision`: transforms, weights, logits and an SGD step, there and back, with real torchvision and timm.
//!
//! ```text
//! LOCKSTEP_PEER, else cache/torchvision-0.26.0/ ◄── pip: torch, torchvision, timm, safetensors
//!          ├► tests/torchvision/transforms.py  target/release/examples/transforms           photographs ──► table
//!          └► tests/torchvision/round_trip.py  target/release/{lockstep, lockstep-worker}  photographs ──► table
//! ```
//! No part of `test`: PyPI's torch for this platform is the one for CUDA, 4 GB with what it asks for, and the cached
//! libtorch has no Python in it. What can be checked without torch is a test: names and shapes against torchvision's
//! (`worker/tests/torchvision.rs`), the mathematics against plain autograd (`worker/tests/variants.rs`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::compile;
use crate::system::{System, run};

/// A virtual environment with torch, torchvision, safetensors, and timm.
const PEER: &str = "LOCKSTEP_PEER";
/// Where the photographs are.
const DATA: &str = "LOCKSTEP_TEST_DATA";
/// torch is that of the libtorch which Lockstep is built with: the same kernels, so that bounds can be tight.
const PACKAGES: [&str; 6] = ["torch==2.11.0", "torchvision==0.26.0", "timm==1.0.31", "safetensors", "numpy", "pillow"];

/// Builds the executables, unless a folder is named, and compares.
///
/// # Errors
/// When something is missing or does not compile, or a promise was missed.
pub fn torchvision(system: &System, bin_dir: Option<&Path>, args: &[String]) -> Result<()> {
    let Some(data) = std::env::var_os(DATA).map(PathBuf::from).filter(|path| path.join("imagenet-sample/val").is_dir())
    else {
        bail!("{DATA} names no folder with imagenet-sample/val in it: photographs are compared");
    };
    let python = python(system)?;
    let executables = match bin_dir {
        Some(folder) => folder.canonicalize().with_context(|| folder.display().to_string())?,
        None => {
            compile::release(system)?;
            run(&mut system.cargo(&["build", "--release", "-p", "lockstep-data", "--example", "transforms"]))?;
            system.root.join("target/release")
        }
    };
    let script = |name: &str| {
        let mut script = Command::new(&python);
        script.current_dir(&system.root).arg(Path::new("tests/torchvision").join(name));
        script
    };
    let photographs = data.join("imagenet-sample");
    // both are run, whatever the first one says
    let transforms = run(script("transforms.py").args([&executables.join("examples/transforms"), &photographs]));
    let mut weights = script("round_trip.py");
    weights.args([executables.join("lockstep"), executables.join("lockstep-worker"), photographs]);
    run(weights.args(args)).and(transforms)
}

/// The Python that has the packages; they are fetched once.
fn python(system: &System) -> Result<PathBuf> {
    if let Some(peer) = std::env::var_os(PEER).filter(|value| !value.is_empty()).map(PathBuf::from) {
        return Ok(peer.join("bin/python"));
    }
    let folder = system.cache()?.join("torchvision-0.26.0");
    let (python, complete) = (folder.join("bin/python"), folder.join("complete"));
    if complete.is_file() {
        return Ok(python);
    }
    system.need("python3", &["-m", "venv", "--help"], &["python3-venv"])?;
    eprintln!("fetching torch and torchvision, once: 4 GB on disk ({PEER} names an environment that has them)");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]);
    run(pip.args(PACKAGES))?;
    fs::write(&complete, "").with_context(|| format!("cannot write {}", complete.display()))?;
    Ok(python)
}
