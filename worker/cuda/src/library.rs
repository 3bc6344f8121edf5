//! Opening CUDA's half of libtorch, once a process.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use lockstep_torch::device;

use crate::CudaError;
use crate::find::{candidates, has, version};

/// What was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Folder of the library.
    pub folder: PathBuf,
    /// Why it was looked for there.
    pub why: String,
    /// Its version, where something tells.
    pub version: Option<String>,
}

static OPENED: Mutex<Option<Found>> = Mutex::new(None);

/// Opens CUDA's half of libtorch for this process, from the folder that was named or from where one is usually. Must come
/// before anything is asked of a device. A second call gives what the first found.
///
/// # Errors
/// None is there, it is of another version than this executable was built for, or it does not open.
pub fn open(explicit: Option<&Path>) -> Result<Found, CudaError> {
    let mut opened = OPENED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(found) = &*opened {
        return Ok(found.clone());
    }
    let found = choose(candidates(explicit), &device::version())?;
    let folders = [found.folder.clone()];
    device::open(&folders)
        .map_err(|error| CudaError::Open { path: found.folder.join(device::LIBRARY), why: error.message })?;
    tracing::info!("libtorch {} for CUDA: {}", device::version(), found.folder.display());
    Ok(opened.insert(found).clone())
}

/// The first candidate that has the library. One of another version is passed over, unless no other is there.
fn choose(candidates: Vec<(PathBuf, &'static str)>, wanted: &str) -> Result<Found, CudaError> {
    let mut other = None;
    for (folder, why) in candidates.iter().filter(|(folder, _)| has(folder)) {
        let version = version(folder);
        match &version {
            Some(found) if found.split('+').next() != Some(wanted) => {
                other.get_or_insert_with(|| CudaError::Version {
                    path: folder.clone(),
                    found: found.clone(),
                    wanted: wanted.to_owned(),
                });
            }
            _ => return Ok(Found { folder: folder.clone(), why: (*why).to_owned(), version }),
        }
    }
    let tried = || candidates.iter().map(|(folder, why)| format!("{why} ({})", folder.display())).collect();
    Err(other.unwrap_or_else(|| CudaError::Missing { tried: tried(), wanted: wanted.to_owned() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn libtorch(root: &Path, version: &str) -> PathBuf {
        let lib = root.join("lib");
        std::fs::create_dir_all(&lib).unwrap();
        std::fs::write(lib.join(device::LIBRARY), b"no library").unwrap();
        std::fs::write(root.join("build-version"), version).unwrap();
        lib
    }

    #[test]
    fn another_version_is_passed_over_and_named_where_it_is_the_only_one() {
        let dir = tempfile::tempdir().unwrap();
        let old = libtorch(&dir.path().join("old"), "2.9.1+cu130");
        let right = libtorch(&dir.path().join("right"), "2.11.0+cu130");
        let both = vec![(old.clone(), "first"), (right.clone(), "second")];
        assert_eq!(choose(both, "2.11.0").unwrap().folder, right);
        let error = choose(vec![(old, "first")], "2.11.0").unwrap_err().to_string();
        assert!(error.contains("is libtorch 2.9.1+cu130") && error.contains("--libtorch"), "{error}");
    }

    #[test]
    fn where_none_is_every_place_is_named() {
        let error = choose(vec![("/nowhere/lib".into(), "in LIBTORCH")], "2.11.0").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("in LIBTORCH (/nowhere/lib)") && text.contains("pip install torch==2.11.0"), "{text}");
        assert_eq!(error.exit_code(), lockstep_proto::exit::ExitCode::Config);
    }

    #[test]
    fn a_file_that_is_no_library_is_named_with_what_the_loader_says() {
        let dir = tempfile::tempdir().unwrap();
        let lib = libtorch(dir.path(), &device::version());
        let error = open(Some(&lib)).unwrap_err();
        assert!(matches!(&error, CudaError::Open { path, .. } if path.starts_with(&lib)), "{error}");
    }
}
