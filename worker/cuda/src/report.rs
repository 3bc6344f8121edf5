//! What there is for training on GPUs, and what is missing.

use std::path::{Path, PathBuf};

use lockstep_nccl::{Driver, Libraries};
use serde::Serialize;

use crate::{Graphs, open};

/// For people and programs: each part is there, or says what lacks and what to do.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The libtorch that this program was built for.
    pub libtorch: String,
    /// CUDA's half of libtorch: its folder.
    pub libtorch_cuda: Part,
    /// The CUDA that the driver supports, such as `13.0`.
    pub driver: Part,
    /// NCCL: version and file.
    pub nccl: Part,
    /// Whether steps can be captured.
    pub graphs: Part,
    /// Devices that this process sees.
    pub devices: Vec<Found>,
    /// Pairs of devices that cannot read each other's memory directly.
    pub far: Vec<(u32, u32)>,
}

/// One thing that is needed.
#[derive(Clone, Debug, Serialize)]
pub struct Part {
    /// Whether it is there.
    pub ok: bool,
    /// What was found; or what lacks, with the remedy.
    pub says: String,
}

/// A device.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    /// `cuda:0`
    pub name: String,
    /// Such as `NVIDIA H100 80GB HBM3`.
    pub model: String,
    /// Such as `9.0`.
    pub capability: String,
    /// Bytes.
    pub memory: u64,
}

impl Part {
    fn of<T, E: std::fmt::Display>(result: &Result<T, E>, says: impl FnOnce(&T) -> String) -> Self {
        match result {
            Ok(found) => Self { ok: true, says: says(found) },
            Err(error) => Self { ok: false, says: error.to_string() },
        }
    }
}

/// Looks for everything; opens what it finds.
pub fn report(libtorch: Option<&Path>, nccl: Option<PathBuf>, driver: Option<PathBuf>) -> Report {
    let opened = open(libtorch);
    let libraries = Libraries { nccl, driver };
    let driver = libraries.open_driver();
    let graphs = match &opened {
        Ok(_) => Graphs::open(),
        Err(_) => Err("they need libtorch_cuda.so".into()),
    };
    let version = |driver: &Driver| format!("CUDA {}.{}", driver.version() / 1000, driver.version() % 1000 / 10);
    let devices = driver.as_ref().map(devices).unwrap_or_default();
    Report {
        libtorch: lockstep_torch::device::version(),
        libtorch_cuda: Part::of(&opened, |found| format!("{}, {}", found.folder.display(), found.why)),
        nccl: Part::of(&libraries.open_nccl(), |nccl| format!("{} in {}", nccl.version_text(), nccl.path())),
        graphs: Part::of(&graphs, |_| "yes".into()),
        far: driver.as_ref().map(|driver| far(driver, devices.len() as u32)).unwrap_or_default(),
        driver: Part::of(&driver, version),
        devices,
    }
}

fn devices(driver: &Driver) -> Vec<Found> {
    let describe = |ordinal: u32| {
        let about = driver.describe(ordinal).ok()?;
        let capability = format!("{}.{}", about.capability.0, about.capability.1);
        Some(Found { name: format!("cuda:{ordinal}"), model: about.name, capability, memory: about.memory })
    };
    (0..driver.num_devices()).filter_map(describe).collect()
}

fn far(driver: &Driver, count: u32) -> Vec<(u32, u32)> {
    let pairs = (0..count).flat_map(|a| (a + 1..count).map(move |b| (a, b)));
    pairs.filter(|(a, b)| !driver.can_access(*a, *b).unwrap_or(false)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lacks_is_said_with_its_remedy() {
        let report = report(Some(Path::new("/nowhere")), Some("/nowhere".into()), Some("/nowhere/libcuda.so.1".into()));
        assert!(!report.libtorch_cuda.ok && report.libtorch_cuda.says.contains("pip install torch=="));
        assert!(!report.driver.ok && report.driver.says.contains("install NVIDIA's driver"));
        assert!(!report.nccl.ok && report.nccl.says.contains("install PyTorch with CUDA or NCCL"));
        assert!(!report.graphs.ok && report.devices.is_empty() && report.far.is_empty());
        assert!(report.libtorch.starts_with("2."));
    }
}
