//! All kernels, compiled for one device and loaded.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::driver::Kernel;
use crate::source::hex;
use crate::{Device, Driver, KERNELS, KernelError, Launch, Nvrtc, Stream, Target, source_sha256};

/// The kernels in a context.
pub struct Module {
    driver: Driver,
    device: Device,
    kernels: BTreeMap<&'static str, Kernel>,
}

impl Module {
    /// Compiles for the device of the current context, or takes what was compiled before out of the folder `cache`
    /// (`~/.cache/lockstep/kernels`, say), and loads it. The first time takes seconds.
    ///
    /// # Errors
    /// What compiler and driver say. A cache that cannot be written is no error.
    pub fn load(driver: &Driver, nvrtc: &Nvrtc, cache: Option<&Path>) -> Result<Self, KernelError> {
        let target = Target::choose(&driver.device()?, &nvrtc.supported()?)?;
        Self::of_image(driver, &image(nvrtc, target, cache)?)
    }

    /// Loads a compiled image.
    ///
    /// # Errors
    /// What the driver says, for example of an image for another device.
    pub fn of_image(driver: &Driver, image: &[u8]) -> Result<Self, KernelError> {
        let device = driver.device()?;
        let code = driver.load(image)?;
        let named = |name: &'static str| driver.kernel(code, name).map(|kernel| (name, kernel));
        match KERNELS.into_iter().map(named).collect() {
            Ok(kernels) => Ok(Self { driver: driver.clone(), device, kernels }),
            Err(error) => {
                driver.unload(code);
                Err(error)
            }
        }
    }

    /// What launches are made for.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Enqueues a launch on a stream of the context in which this was loaded. Does not wait; may be captured in a graph.
    ///
    /// # Errors
    /// What the driver says; it may be about something earlier on the device.
    pub fn launch(&self, launch: &Launch, stream: Stream) -> Result<(), KernelError> {
        match self.kernels.get(launch.kernel()) {
            Some(kernel) => self.driver.launch(*kernel, launch, stream),
            None => Err(KernelError::Argument { kernel: launch.kernel(), problem: "no such kernel".into() }),
        }
    }
}

/// The image for a target, from the cache or compiled and kept there.
fn image(nvrtc: &Nvrtc, target: Target, cache: Option<&Path>) -> Result<Vec<u8>, KernelError> {
    let file = cache.map(|folder| folder.join(key(&nvrtc.version(), target)));
    if let Some(image) = file.as_deref().and_then(read) {
        return Ok(image);
    }
    let image = nvrtc.compile(target, false)?.image;
    if let Some(file) = file {
        // The next start compiles again, no more.
        let _ = write(&file, &image);
    }
    Ok(image)
}

/// Everything that an image depends on.
fn key(version: &str, target: Target) -> PathBuf {
    format!("{}-{target}-nvrtc{version}.image", &source_sha256()[..32]).into()
}

/// A kept image; nothing where there is none or its hash, which stands before it, is another.
fn read(file: &Path) -> Option<Vec<u8>> {
    let mut bytes = std::fs::read(file).ok()?;
    if bytes.len() < 32 {
        return None;
    }
    let image = bytes.split_off(32);
    (Sha256::digest(&image).as_slice() == bytes).then_some(image)
}

/// Appears whole or not at all, whoever else writes the same.
fn write(file: &Path, image: &[u8]) -> Result<(), KernelError> {
    let failed = |path: &Path, source| KernelError::Cache { path: path.to_owned(), source };
    let folder = file.parent().ok_or_else(|| failed(file, ErrorKind::NotFound.into()))?;
    std::fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
    let hash = Sha256::digest(image);
    let work = folder.join(format!(".{}-{}", std::process::id(), &hex(&hash)[..16]));
    std::fs::write(&work, [hash.as_slice(), image].concat()).map_err(|error| failed(&work, error))?;
    std::fs::rename(&work, file).map_err(|error| failed(file, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_image_comes_back_and_a_damaged_one_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deep/kernels").join(key("13.0", Target::Cubin(90)));
        assert_eq!(read(&file), None);
        write(&file, b"cubin").unwrap();
        assert_eq!(read(&file).unwrap(), b"cubin");
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[33] ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        assert_eq!(read(&file), None);
        std::fs::write(&file, &bytes[..20]).unwrap();
        assert_eq!(read(&file), None);
        assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "no work file is left");
    }

    #[test]
    fn another_compiler_or_device_is_another_image() {
        let keys = [key("13.0", Target::Cubin(90)), key("13.1", Target::Cubin(90)), key("13.0", Target::Ptx(90))];
        assert!(keys[0] != keys[1] && keys[0] != keys[2]);
    }
}
