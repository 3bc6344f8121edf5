//! `cargo xtask bundle`: a folder, and an archive of it, that runs on a node which has PyTorch but no Rust.
//!
//! ```text
//! target/release/lockstep ──────────────────────────► OUT/lockstep
//! target/release/lockstep-worker ── elf: no rpath ──► OUT/libexec/lockstep-worker ◄─ exec ─ OUT/lockstep-worker (sh)
//! .libtorch/build-version ──────────────────────────► OUT/libexec/libtorch-version              └─ finds PyTorch
//! recipes/  docs/  deploy/bundle/README.md ─────────► OUT/
//! ```

mod elf;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::compile;
use crate::system::{System, output, run};

/// The script that finds PyTorch.
const LAUNCHER: &str = "deploy/bundle/lockstep-worker";

/// What goes into it.
pub struct Bundle<'a> {
    /// The folder; else `target/bundle/lockstep-<version>-<architecture>`.
    pub out: Option<&'a Path>,
    /// Where the executables are; else they are built.
    pub bin_dir: Option<&'a Path>,
    /// Files and folders besides.
    pub add: &'a [PathBuf],
}

/// Builds, and puts everything together.
///
/// # Errors
/// Something does not compile, is not there, or cannot be written; the folder holds something else.
pub fn bundle(system: &System, what: &Bundle<'_>) -> Result<()> {
    let executables = match what.bin_dir {
        Some(folder) => folder.to_path_buf(),
        None => {
            compile::release(system)?;
            system.root.join("target/release")
        }
    };
    let name = format!("lockstep-{}-{}", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    let out = what.out.map_or_else(|| system.root.join("target/bundle").join(&name), Path::to_path_buf);
    clear(&out)?;
    fill(&system.root, &executables, &out)?;
    for path in what.add {
        let name = path.file_name().with_context(|| format!("--add {}: no name", path.display()))?;
        copy(path, &out.join(name))?;
    }
    let archive = archive(&out)?;
    let sizes = (size(&out)?, fs::metadata(&archive)?.len());
    println!("{}  {:.1} MB", out.display(), sizes.0 as f64 / 1e6);
    println!("{}  {:.1} MB", archive.display(), sizes.1 as f64 / 1e6);
    Ok(())
}

/// An empty folder, or one that an earlier bundle left.
fn clear(out: &Path) -> Result<()> {
    if out.join("libexec/libtorch-version").is_file() {
        fs::remove_dir_all(out).with_context(|| format!("cannot clear {}", out.display()))?;
    }
    if out.is_dir() && fs::read_dir(out)?.next().is_some() {
        bail!("{}: holds something that is no bundle: name another --out", out.display());
    }
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))
}

fn fill(root: &Path, executables: &Path, out: &Path) -> Result<()> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let command = read(&executables.join("lockstep"))?;
    let mut worker = read(&executables.join("lockstep-worker"))?;
    elf::forget_library_path(&mut worker).context("lockstep-worker")?;
    let newest = [elf::glibc(&command), elf::glibc(&worker)].into_iter().flatten();
    let glibc =
        newest.max_by_key(|version| version[2..].parse::<u32>().ok()).context("no version of glibc is named")?;
    let libtorch = std::env::var_os("LIBTORCH").filter(|value| !value.is_empty()).map(PathBuf::from);
    let build_version = libtorch.unwrap_or_else(|| root.join(".libtorch")).join("build-version");
    let libtorch = fs::read_to_string(&build_version).with_context(|| {
        format!("{}: which libtorch is linked? `cargo xtask libtorch` puts one there", build_version.display())
    })?;
    let libtorch = libtorch.trim().split('+').next().unwrap_or_default().to_owned();
    ensure!(!libtorch.is_empty(), "{}: empty", build_version.display());

    write(&out.join("lockstep"), &command, 0o755)?;
    write(&out.join("libexec/lockstep-worker"), &worker, 0o755)?;
    write(&out.join("libexec/libtorch-version"), format!("{libtorch}\n").as_bytes(), 0o644)?;
    write(&out.join("libexec/glibc-version"), format!("{glibc}\n").as_bytes(), 0o644)?;
    write(&out.join("lockstep-worker"), &read(&root.join(LAUNCHER))?, 0o755)?;
    for (from, to) in
        [("deploy/bundle/README.md", "README.md"), ("LICENSE", "LICENSE"), ("recipes", "recipes"), ("docs", "docs")]
    {
        copy(&root.join(from), &out.join(to))?;
    }
    Ok(())
}

/// A file, or a folder with all that is in it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if !from.is_dir() {
        let mode = fs::metadata(from).with_context(|| from.display().to_string())?.permissions().mode();
        let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        return write(to, &bytes, mode & 0o777 | 0o600);
    }
    let entries = fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))?;
    for entry in entries {
        let entry = entry?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    fs::create_dir_all(path.parent().unwrap_or(path)).with_context(cannot)?;
    fs::write(path, bytes).with_context(cannot)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).with_context(cannot)
}

/// `OUT.tar.gz`, beside the folder.
fn archive(out: &Path) -> Result<PathBuf> {
    let out = out.canonicalize().with_context(|| out.display().to_string())?;
    let (Some(parent), Some(name)) = (out.parent(), out.file_name()) else { bail!("{}: no name", out.display()) };
    let mut file = name.to_owned();
    file.push(".tar.gz");
    let file = parent.join(file);
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "-czf"]).arg(&file).arg("-C").arg(parent);
    run(tar.arg(name))?;
    // Read back: an archive that a full disk cut short is worse than none.
    let list = output(Command::new("tar").arg("-tzf").arg(&file))?;
    ensure!(list.lines().any(|line| line.ends_with("libexec/lockstep-worker")), "{}: incomplete", file.display());
    Ok(file)
}

fn size(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        bytes += if path.is_dir() { size(&path)? } else { fs::metadata(&path)?.len() };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
