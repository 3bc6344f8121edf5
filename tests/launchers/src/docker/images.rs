//! The base image, and both images of deploy/docker on it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::daemon::Daemon;
use crate::program::said;

/// What both images are built on.
pub const BASE: &str = "lockstep-base:bookworm";
/// The images.
pub const IMAGES: [(&str, &str); 2] =
    [("coordinator", "lockstep-coordinator:tried"), ("worker", "lockstep-worker:tried")];

/// A base image out of Debian's packages; `tar` is kept, as making it takes a minute.
///
/// # Errors
/// debootstrap fails: it needs root.
pub fn import_base(daemon: &Daemon, tar: &Path) -> Result<()> {
    if !tar.is_file() {
        let dir = tempfile::Builder::new().prefix("lockstep-base-").tempdir()?;
        let root = dir.path().join("root");
        let mut debootstrap = Command::new("debootstrap");
        debootstrap.args(["--variant=minbase", "--include=ca-certificates,libstdc++6", "bookworm"]).arg(&root);
        said(&mut debootstrap).context("debootstrap, which needs root and Debian's packages")?;
        for cache in ["var/cache/apt/archives", "var/lib/apt/lists"] {
            fs::remove_dir_all(root.join(cache)).with_context(|| cache.to_owned())?;
        }
        fs::create_dir_all(tar.parent().unwrap_or(tar))?;
        let unfinished = tar.with_extension("unfinished");
        said(Command::new("tar").arg("--numeric-owner").arg("-C").arg(&root).arg("-cf").arg(&unfinished).arg("."))?;
        fs::rename(&unfinished, tar)?;
    }
    said(daemon.command(&["import"]).arg(tar).arg(BASE)).map(drop)
}

/// A folder with what the Dockerfiles take when nothing is compiled: executables, libtorch, and what the checkout has.
///
/// # Errors
/// Something is not there.
pub fn context(dir: &Path, bin_dir: &Path, libtorch: &Path) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let copy = |from: &Path, to: &str| -> Result<()> {
        let to = dir.join(to);
        fs::create_dir_all(to.parent().unwrap_or(dir))?;
        fs::copy(from, &to).with_context(|| format!("cannot copy {}", from.display())).map(drop)
    };
    for name in [".dockerignore", "LICENSE"] {
        copy(&root.join(name), name)?;
    }
    for name in ["wheels-cpu.txt", "wheels-cuda.txt", "Dockerfile.coordinator", "Dockerfile.worker"] {
        let name = format!("deploy/docker/{name}");
        copy(&root.join(&name), &name)?;
    }
    for name in ["lockstep", "lockstep-worker"] {
        copy(&bin_dir.join(name), &format!("target/release/{name}"))?;
    }
    let lib = libtorch.join("lib");
    let entries = fs::read_dir(&lib).with_context(|| format!("{}: run `cargo xtask libtorch`", lib.display()))?;
    for entry in entries {
        let entry = entry?;
        copy(&entry.path(), &format!("target/libtorch/lib/{}", entry.file_name().to_string_lossy()))?;
    }
    Ok(())
}

/// Builds one image, from nothing, out of what is prebuilt; says the digests of its layers and its size in bytes.
///
/// # Errors
/// The build fails.
pub fn build(daemon: &Daemon, context: &Path, (kind, tag): (&str, &str)) -> Result<(String, u64)> {
    let base = [BASE; 3];
    let images = ["BASE_IMAGE", "RUST_IMAGE", "PYTHON_IMAGE"];
    let mut command = daemon.command(&["build", "--no-cache", "--network=none", "--quiet", "--tag", tag]);
    command.arg("--file").arg(context.join(format!("deploy/docker/Dockerfile.{kind}")));
    let mut arguments: Vec<String> = images.iter().zip(base).map(|(name, image)| format!("{name}={image}")).collect();
    arguments.extend(["EXECUTABLES=prebuilt".into(), "LIBTORCH=prebuilt".into()]);
    if kind == "coordinator" {
        arguments.retain(|argument| !argument.starts_with("PYTHON") && !argument.starts_with("LIBTORCH"));
    }
    for argument in arguments {
        command.arg("--build-arg").arg(argument);
    }
    said(command.arg(context))?;
    let layers = daemon.say(&["image", "inspect", "--format", "{{json .RootFS.Layers}}", tag])?;
    Ok((layers, size(daemon, tag)?))
}

/// Bytes of an image, with its base.
///
/// # Errors
/// There is none.
pub fn size(daemon: &Daemon, tag: &str) -> Result<u64> {
    let bytes = daemon.say(&["image", "inspect", "--format", "{{.Size}}", tag])?;
    bytes.parse().with_context(|| format!("{tag}: size {bytes}"))
}

/// What an image says of itself.
///
/// # Errors
/// It runs as root, or lacks a label or the entry point.
pub fn check(daemon: &Daemon, tag: &str) -> Result<()> {
    let said = daemon.say(&["image", "inspect", "--format", "{{.Config.User}} {{json .Config.Entrypoint}}", tag])?;
    ensure!(said == "65532:65532 [\"lockstep\"]", "{tag}: {said}");
    let labels = daemon.say(&["image", "inspect", "--format", "{{json .Config.Labels}}", tag])?;
    for label in ["title", "description", "source", "licenses", "version", "revision", "base.name"] {
        ensure!(labels.contains(&format!("\"org.opencontainers.image.{label}\":")), "{tag}: no label {label}");
    }
    Ok(())
}
