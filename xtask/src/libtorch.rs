//! libtorch for a CPU, out of the wheels that PyTorch publishes, in a cache that checkouts share.
//!
//! ```text
//! LIBTORCH set ──► check it, done
//! .libtorch complete ──► done
//! cache/libtorch-2.11.0-cpu ◄── unpack ◄── sha256 ◄── pip download (544 MB)
//!        ▲
//!        └── .libtorch (link)
//! ```
//! The wheel is the CUDA build; only what a CPU needs is taken out of it, two small CUDA libraries that `libtorch_cpu.so` is
//! linked against, and CUDA's headers, for what `worker/cuda` compiles and opens on machines that have a GPU.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::system::{System, run};

/// Pairs with `tch` in Cargo.toml; torch-sys accepts no other.
const VERSION: &str = "2.11.0";

/// One download: a wheel, its hash, and the members that are wanted with the places they go to.
struct Wheel {
    requirement: &'static str,
    /// Start of the file name, as wheels spell it.
    prefix: &'static str,
    sha256: &'static str,
    /// (prefix in the wheel, prefix in libtorch); a prefix that ends in `/` takes everything below.
    members: &'static [(&'static str, &'static str)],
}

const WHEELS: [Wheel; 5] = [
    Wheel {
        requirement: "torch==2.11.0",
        prefix: "torch-2.11.0-cp311-",
        sha256: "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
        members: &[
            ("torch/include/", "include/"),
            ("torch/lib/libtorch_cpu.so", "lib/libtorch_cpu.so"),
            ("torch/lib/libc10.so", "lib/libc10.so"),
            ("torch/lib/libgomp.so.1", "lib/libgomp.so.1"),
        ],
    },
    Wheel {
        requirement: "nvidia-cuda-runtime==13.0.96",
        prefix: "nvidia_cuda_runtime-13.0.96-",
        sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
        members: &[
            ("nvidia/cu13/lib/libcudart.so.13", "lib/libcudart.so.13"),
            ("nvidia/cu13/include/", "cuda/include/"),
        ],
    },
    Wheel {
        requirement: "nvidia-cuda-crt==13.0.88",
        prefix: "nvidia_cuda_crt-13.0.88-",
        sha256: "2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4",
        members: &[("nvidia/cu13/include/crt/", "cuda/include/crt/")],
    },
    Wheel {
        requirement: "nvidia-nvtx==13.0.85",
        prefix: "nvidia_nvtx-13.0.85-",
        sha256: "4936d1d6780fbe68db454f5e72a42ff64d1fd6397df9f363ae786930fd5c1cd4",
        members: &[("nvidia/cu13/include/nvtx3/", "cuda/include/nvtx3/")],
    },
    Wheel {
        requirement: "nvidia-cuda-cupti==13.0.85",
        prefix: "nvidia_cuda_cupti-13.0.85-",
        sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
        members: &[("nvidia/cu13/lib/libcupti.so.13", "lib/libcupti.so.13")],
    },
];

/// What any libtorch must have for the build.
const ESSENTIAL: [&str; 4] = ["build-version", "lib/libtorch_cpu.so", "lib/libc10.so", "include/torch/script.h"];
/// What ours has besides.
const OURS: [&str; 7] = [
    "lib/libtorch.so",
    "lib/libgomp.so.1",
    "lib/libcudart.so.13",
    "lib/libcupti.so.13",
    "cuda/include/cuda_runtime_api.h",
    "cuda/include/crt/host_defines.h",
    "cuda/include/nvtx3/nvToolsExt.h",
];

/// Makes sure that the build finds a libtorch; silent when it already does.
///
/// # Errors
/// When `LIBTORCH` names one that does not fit, or it cannot be fetched: with the remedy.
pub fn provide(system: &System) -> Result<()> {
    let link = system.root.join(".libtorch");
    // Cargo itself sets LIBTORCH to the link (.cargo/config.toml) when nobody else did.
    if let Some(own) = std::env::var_os("LIBTORCH").map(PathBuf::from).filter(|path| *path != link) {
        return check(&own, &ESSENTIAL).with_context(|| {
            format!("LIBTORCH={}: unset it to have libtorch {VERSION} fetched, or let it name one", own.display())
        });
    }
    let complete: Vec<&str> = ESSENTIAL.iter().chain(&OURS).copied().collect();
    if check(&link, &complete).is_ok() {
        return Ok(());
    }
    if fs::symlink_metadata(&link).is_ok_and(|meta| !meta.is_symlink()) {
        check(&link, &complete).with_context(|| format!("{} is damaged: remove it and repeat", link.display()))?;
    }
    let cached = system.cache()?.join(format!("libtorch-{VERSION}-cpu"));
    if let Err(why) = check(&cached, &complete) {
        if cached.exists() {
            eprintln!("{why:#}: fetching it again");
        }
        fetch(system, &cached)?;
        check(&cached, &complete)?;
    }
    match fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", link.display()));
        }
        _ => {}
    }
    std::os::unix::fs::symlink(&cached, &link).with_context(|| format!("cannot create {}", link.display()))?;
    eprintln!("libtorch {VERSION} is in {}", cached.display());
    Ok(())
}

fn check(dir: &Path, files: &[&str]) -> Result<()> {
    for file in files {
        ensure!(dir.join(file).is_file(), "no {file} in {}", dir.display());
    }
    let version = fs::read_to_string(dir.join("build-version"))?;
    let version = version.trim();
    ensure!(
        version.split('+').next() == Some(VERSION),
        "{} holds libtorch {version}, and tch needs {VERSION}",
        dir.display()
    );
    Ok(())
}

/// Downloads, checks and unpacks into `cached`, which appears whole or not at all.
fn fetch(system: &System, cached: &Path) -> Result<()> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("libtorch is fetched for x86-64 Linux only: set LIBTORCH to a libtorch {VERSION} of your platform");
    }
    let parent = cached.parent().context("the cache has no parent folder")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    // Two checkouts may do this at once: each in a folder of its own, and the first rename wins.
    let work = parent.join(format!(".libtorch-{}", std::process::id()));
    let result = fetch_into(system, &work).and_then(|unpacked| publish(&unpacked, cached));
    let _ = fs::remove_dir_all(&work);
    result
}

fn fetch_into(system: &System, work: &Path) -> Result<PathBuf> {
    system.need("python3", &["-m", "pip", "--version"], &["python3", "python3-pip"])?;
    let (wheels, unpacked) = (work.join("wheels"), work.join("libtorch"));
    fs::create_dir_all(&wheels).with_context(|| format!("cannot create {}", wheels.display()))?;
    eprintln!("fetching libtorch {VERSION}: 544 MB, 0.5 GB on disk");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-cache-dir", "--no-deps"]);
    // The wheel differs from one Python to the next; always the same one is asked for, whatever runs here.
    pip.args(["--only-binary=:all:", "--implementation", "cp", "--python-version", "3.11"]);
    for platform in [
        "manylinux_2_28_x86_64",
        "manylinux_2_25_x86_64",
        "manylinux_2_17_x86_64",
        "manylinux2014_x86_64",
        "manylinux1_x86_64",
    ] {
        pip.args(["--platform", platform]);
    }
    pip.arg("--dest").arg(&wheels).args(WHEELS.iter().map(|wheel| wheel.requirement));
    run(&mut pip).context("cannot download libtorch: is a package index reachable (PIP_INDEX_URL)?")?;
    for wheel in &WHEELS {
        let file = find(&wheels, wheel.prefix)?;
        let found = sha256(&file)?;
        ensure!(
            found == wheel.sha256,
            "{}: sha256 is {found} and should be {}; the index gave another file",
            file.display(),
            wheel.sha256
        );
        unpack(&file, wheel.members, &unpacked)?;
        fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    }
    // Programs link `-ltorch`; the wheel's own libtorch.so would pull in CUDA.
    fs::write(unpacked.join("lib/libtorch.so"), "GROUP ( libtorch_cpu.so libc10.so )\n")?;
    fs::write(unpacked.join("build-version"), format!("{VERSION}\n"))?;
    Ok(unpacked)
}

fn publish(unpacked: &Path, cached: &Path) -> Result<()> {
    if cached.exists() {
        let complete: Vec<&str> = ESSENTIAL.iter().chain(&OURS).copied().collect();
        if check(cached, &complete).is_ok() {
            return Ok(()); // another checkout was first
        }
        fs::remove_dir_all(cached).with_context(|| format!("cannot replace {}", cached.display()))?;
    }
    match fs::rename(unpacked, cached) {
        Err(_) if cached.exists() => Ok(()),
        other => other.with_context(|| format!("cannot create {}", cached.display())),
    }
}

fn find(dir: &Path, prefix: &str) -> Result<PathBuf> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            return Ok(entry.path());
        }
    }
    bail!("pip brought no {prefix}*.whl")
}

/// The hash of a file, in hexadecimal.
///
/// # Errors
/// When it cannot be read.
pub fn sha256(file: &Path) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut reader = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    io::copy(&mut reader, &mut hasher).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn unpack(wheel: &Path, members: &[(&str, &str)], into: &Path) -> Result<()> {
    let context = || format!("cannot unpack {}", wheel.display());
    let mut archive = zip::ZipArchive::new(File::open(wheel).with_context(context)?).with_context(context)?;
    for index in 0..archive.len() {
        let mut member = archive.by_index(index).with_context(context)?;
        let Some(name) = member.enclosed_name().and_then(Path::to_str).map(str::to_owned) else { continue };
        let Some(target) = target(&name, members).filter(|_| member.is_file()) else { continue };
        let path = into.join(target);
        fs::create_dir_all(path.parent().unwrap_or(into)).with_context(context)?;
        let mut file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        io::copy(&mut member, &mut file).with_context(|| format!("cannot write {}", path.display()))?;
    }
    for (_, place) in members {
        ensure!(into.join(place).exists(), "{} has no {place}", wheel.display());
    }
    Ok(())
}

/// Where a member goes, if it is wanted.
fn target(name: &str, members: &[(&str, &str)]) -> Option<String> {
    members.iter().find_map(|(from, to)| match name.strip_prefix(from) {
        Some("") => Some((*to).to_owned()),
        Some(rest) if from.ends_with('/') => Some(format!("{to}{rest}")),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake(dir: &Path, version: &str) {
        for file in ESSENTIAL.iter().chain(&OURS) {
            let path = dir.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, version).unwrap();
        }
    }

    #[test]
    fn only_wanted_members_leave_a_wheel() {
        let members = WHEELS[0].members;
        assert_eq!(target("torch/include/ATen/ATen.h", members).unwrap(), "include/ATen/ATen.h");
        assert_eq!(target("torch/lib/libc10.so", members).unwrap(), "lib/libc10.so");
        assert_eq!(target("torch/lib/libc10.so.debug", members), None);
        assert_eq!(target("torch/lib/libtorch_cuda.so", members), None);
    }

    #[test]
    fn another_version_is_refused_and_a_build_suffix_is_not() {
        let dir = tempfile::tempdir().unwrap();
        fake(dir.path(), "2.11.0+cu130\n");
        check(dir.path(), &ESSENTIAL).unwrap();
        fake(dir.path(), "2.10.0\n");
        let error = check(dir.path(), &ESSENTIAL).unwrap_err().to_string();
        assert!(error.ends_with("holds libtorch 2.10.0, and tch needs 2.11.0"), "{error}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fake(dir.path(), VERSION);
        fs::remove_file(dir.path().join("lib/libcupti.so.13")).unwrap();
        let error = check(dir.path(), &OURS).unwrap_err().to_string();
        assert!(error.starts_with("no lib/libcupti.so.13 in "), "{error}");
    }
}
