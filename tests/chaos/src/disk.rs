//! A disk that is soon full: a small tmpfs. Needs root.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::process::run;

/// Mounted until it is dropped.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts one of so many bytes on a folder.
    pub fn mount(path: &Path, bytes: u64) -> Result<Self> {
        let size = format!("size={bytes}");
        run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", &path.to_string_lossy()]).context("mounts need root")?;
        Ok(Self { path: path.into() })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = run("umount", &["-l", &self.path.to_string_lossy()]);
    }
}
