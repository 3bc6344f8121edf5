//! Writing: everything into a hidden folder, to the disk, then one rename.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use lockstep_proto::ids::Step;
use lockstep_proto::manifest::{self, FileEntry, Manifest, ManifestError, hex};
use safetensors::tensor::TensorView;
use sha2::{Digest as _, Sha256};

use super::{CheckpointError, MODEL_FILE, OPTIMIZER_FILE, Saved, Snapshot};
use crate::compute::{Dtype, Named};

/// Name of the folder of a checkpoint: `step-N`.
pub fn dir_name(step: Step) -> String {
    format!("step-{step}")
}

/// Writes `snapshot` as `checkpoints/step-N`, in place of what may be there. Whoever looks sees all of it or none.
///
/// # Errors
/// The disk refused; what had been written is removed again.
pub fn write(checkpoints: &Path, snapshot: &Snapshot) -> Result<Saved, CheckpointError> {
    let dir = dir_name(snapshot.id.step);
    make_dir(checkpoints)?;
    let temporary = checkpoints.join(format!(".{dir}.tmp-{}", std::process::id()));
    let result = stage(&temporary, snapshot).and_then(|bytes| {
        publish(&temporary, &checkpoints.join(&dir))?;
        sync(checkpoints)?;
        Ok(Saved { dir, bytes })
    });
    crash_point();
    // After a success this is what was there before, if anything.
    let _ = fs::remove_dir_all(&temporary);
    result
}

/// Writes the files of `snapshot` into a new folder and sees them onto the disk. Gives their bytes.
pub(super) fn stage(folder: &Path, snapshot: &Snapshot) -> Result<u64, CheckpointError> {
    let _ = fs::remove_dir_all(folder);
    make_dir(folder)?;
    let mut files = Vec::new();
    for (name, tensors) in [(MODEL_FILE, &snapshot.model), (OPTIMIZER_FILE, &snapshot.optimizer)] {
        let path = folder.join(name);
        let bytes = serialize(&path, tensors, None)?;
        put(&path, &bytes)?;
        files.push(FileEntry {
            name: name.to_owned(),
            bytes: bytes.len() as u64,
            sha256: hex(&Sha256::digest(&bytes)),
        });
    }
    let manifest = Manifest {
        format: manifest::FORMAT,
        lineage: snapshot.id.lineage,
        generation: snapshot.id.generation,
        step: snapshot.id.step,
        epoch: snapshot.epoch,
        next_position: snapshot.next_position,
        world_size: snapshot.world_size,
        recipe_sha256: snapshot.recipe_sha256.clone(),
        state_sha256: snapshot.state_sha256.clone(),
        scheduled: snapshot.scheduled.clone(),
        files,
    };
    crash_point();
    manifest.write(folder).map_err(|error| match error {
        ManifestError::Io { path, error } => CheckpointError::Write { path, source: error },
        other => other.into(),
    })?;
    sync(folder)?;
    Ok(manifest.bytes())
}

/// A safetensors file in memory. The same tensors give the same bytes.
fn serialize(
    path: &Path,
    tensors: &[Named],
    metadata: Option<HashMap<String, String>>,
) -> Result<Vec<u8>, CheckpointError> {
    serialize_counted(path, (tensors, &[]), metadata)
}

/// The same, with whole numbers by name beside the tensors.
pub(crate) fn serialize_counted(
    path: &Path,
    (tensors, counters): (&[Named], &[(String, i64)]),
    metadata: Option<HashMap<String, String>>,
) -> Result<Vec<u8>, CheckpointError> {
    let refuse = |reason: String| CheckpointError::Tensors { path: path.to_owned(), reason };
    let mut views = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let dtype = match tensor.dtype {
            Dtype::F32 => safetensors::Dtype::F32,
            Dtype::F64 => safetensors::Dtype::F64,
        };
        let view = TensorView::new(dtype, tensor.shape.clone(), &tensor.bytes)
            .map_err(|error| refuse(format!("{}: {error}", tensor.name)))?;
        views.push((tensor.name.as_str(), view));
    }
    let counters: Vec<(&str, [u8; 8])> =
        counters.iter().map(|(name, count)| (name.as_str(), count.to_le_bytes())).collect();
    for (name, bytes) in &counters {
        let view = TensorView::new(safetensors::Dtype::I64, Vec::new(), bytes)
            .map_err(|error| refuse(format!("{name}: {error}")))?;
        views.push((name, view));
    }
    // Several keys would come in an order that changes from run to run.
    let metadata = metadata.or_else(|| Some(HashMap::from([("format".to_owned(), "pt".to_owned())])));
    safetensors::serialize(views, metadata).map_err(|error| refuse(error.to_string()))
}

/// Creates or replaces a file and sees it onto the disk.
fn put(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let refuse = |source| CheckpointError::Write { path: path.to_owned(), source };
    crash_point();
    let mut file = File::create(path).map_err(refuse)?;
    crash_point();
    file.write_all(bytes).map_err(refuse)?;
    crash_point();
    file.sync_all().map_err(refuse)
}

/// Puts a file in place of what may be there: all of it or none.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".tmp-{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let result = put(&temporary, bytes).and_then(|()| {
        fs::rename(&temporary, path).map_err(|source| CheckpointError::Write { path: path.to_owned(), source })
    });
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result
}

fn make_dir(path: &Path) -> Result<(), CheckpointError> {
    crash_point();
    fs::create_dir_all(path).map_err(|source| CheckpointError::Write { path: path.to_owned(), source })
}

fn sync(folder: &Path) -> Result<(), CheckpointError> {
    crash_point();
    File::open(folder)
        .and_then(|file| file.sync_all())
        .map_err(|source| CheckpointError::Write { path: folder.to_owned(), source })
}

/// Moves `temporary` to `place` in one operation; what was there before is afterwards at `temporary`.
fn publish(temporary: &Path, place: &Path) -> Result<(), CheckpointError> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let refuse = |source| CheckpointError::Write { path: place.to_owned(), source };
    crash_point();
    if !place.exists() {
        return fs::rename(temporary, place).map_err(refuse);
    }
    if renameat_with(CWD, temporary, CWD, place, RenameFlags::EXCHANGE).is_ok() {
        return Ok(());
    }
    // A file system that cannot exchange: the old one steps aside first. A crash between the two leaves the older
    // checkpoints and the finished hidden folder.
    let aside: PathBuf = temporary.with_extension("old");
    fs::rename(place, &aside).map_err(refuse)?;
    crash_point();
    fs::rename(temporary, place).map_err(refuse)?;
    let _ = fs::remove_dir_all(&aside);
    Ok(())
}

/// Where a test lets the process die; in the product, nothing.
#[cfg(not(test))]
fn crash_point() {}

#[cfg(test)]
use tests::crash_point;

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

    use lockstep_proto::ids::{Epoch, Generation, Lineage, StateId};

    use super::*;
    use crate::checkpoint::read;

    thread_local! {
        /// Points that are yet to be passed before the next crash.
        static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    }

    /// Dies here, if it is this one's turn: nothing is cleaned up.
    pub(super) fn crash_point() {
        match LEFT.get() {
            Some(0) => resume_unwind(Box::new("a crash")),
            left => LEFT.set(left.map(|left| left - 1)),
        }
    }

    fn snapshot(step: u64, first: f32) -> Snapshot {
        let tensor = |name: &str, value: f32| Named {
            name: name.into(),
            dtype: Dtype::F32,
            shape: vec![2, 1],
            bytes: [value, 2.0].into_iter().flat_map(f32::to_le_bytes).collect(),
        };
        Snapshot {
            id: StateId { lineage: Lineage(1), generation: Generation(2), step: Step(step) },
            generation: Generation(2),
            epoch: Epoch(1),
            next_position: 128 * step,
            scheduled: [("lr".to_owned(), 0.1)].into(),
            world_size: 2,
            recipe_sha256: "r".into(),
            state_sha256: "s".into(),
            model: vec![tensor("a", first), tensor("b", 1.0)],
            optimizer: vec![tensor("a", -1.0)],
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_written_is_read_back_and_nothing_else_stays() {
        let folder = tempfile::tempdir().unwrap();
        let written = snapshot(3, 1.5);
        let saved = write(folder.path(), &written).unwrap();
        assert_eq!(saved.dir, "step-3");
        assert_eq!(names(folder.path()), ["step-3"]);
        let loaded = read(&folder.path().join("step-3")).unwrap();
        assert_eq!((loaded.model, loaded.optimizer), (written.model, written.optimizer));
        assert_eq!((loaded.manifest.state(), loaded.manifest.bytes()), (written.id, saved.bytes));
        assert_eq!(loaded.manifest.scheduled["lr"], 0.1);
    }

    #[test]
    fn the_same_state_gives_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| fs::read(folder.path().join(name)).unwrap();
        write(folder.path(), &snapshot(1, 1.0)).unwrap();
        let first = file("step-1/model.safetensors");
        write(folder.path(), &snapshot(1, 1.0)).unwrap();
        assert_eq!(file("step-1/model.safetensors"), first);
    }

    #[test]
    fn one_that_is_there_is_replaced_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &snapshot(1, 1.0)).unwrap();
        write(folder.path(), &snapshot(1, 7.0)).unwrap();
        assert_eq!(names(folder.path()), ["step-1"]);
        let loaded = read(&folder.path().join("step-1")).unwrap();
        assert_eq!(loaded.model, snapshot(1, 7.0).model);
    }

    #[test]
    fn a_flipped_bit_in_any_file_is_found_and_the_file_named() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &snapshot(1, 1.0)).unwrap();
        let dir = folder.path().join("step-1");
        for name in [MODEL_FILE, OPTIMIZER_FILE] {
            let good = fs::read(dir.join(name)).unwrap();
            for at in [0, good.len() / 2, good.len() - 1] {
                let mut bad = good.clone();
                bad[at] ^= 0x10;
                fs::write(dir.join(name), &bad).unwrap();
                let error = read(&dir).unwrap_err();
                assert_eq!(error.exit_code().code(), 65);
                assert!(error.to_string().contains(name), "{error}");
            }
            fs::write(dir.join(name), &good[..good.len() - 1]).unwrap();
            assert!(read(&dir).unwrap_err().to_string().contains("truncated"));
            fs::write(dir.join(name), good).unwrap();
        }
        assert!(read(&dir).is_ok());
    }

    #[test]
    fn a_crash_before_the_rename_leaves_the_last_one() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &snapshot(1, 1.0)).unwrap();
        // What a killed process leaves behind: a hidden folder, however complete.
        stage(&folder.path().join(format!(".step-1.tmp-{}", std::process::id())), &snapshot(1, 9.0)).unwrap();
        assert_eq!(read(&folder.path().join("step-1")).unwrap().model, snapshot(1, 1.0).model);
        write(folder.path(), &snapshot(1, 2.0)).unwrap();
        assert_eq!(names(folder.path()), ["step-1"]);
    }

    #[test]
    fn killed_before_any_of_its_writes_there_is_always_a_loadable_checkpoint() {
        let mut num_points = 0;
        for is_again in [false, true] {
            for point in 0.. {
                let folder = tempfile::tempdir().unwrap();
                write(folder.path(), &snapshot(1, 1.0)).unwrap();
                let before = if is_again { Some(write(folder.path(), &snapshot(2, 2.0)).unwrap()) } else { None };
                LEFT.set(Some(point));
                let died = catch_unwind(AssertUnwindSafe(|| write(folder.path(), &snapshot(2, 7.0)))).is_err();
                LEFT.set(None);
                if !died {
                    num_points += point;
                    break;
                }
                let loaded = |step: &str| read(&folder.path().join(step)).map(|loaded| loaded.model);
                assert_eq!(loaded("step-1").unwrap(), snapshot(1, 1.0).model, "point {point}");
                // The one in hand is the old one, the new one or not there; never anything else.
                match loaded("step-2") {
                    Ok(model) if model == snapshot(2, 7.0).model => {}
                    Ok(model) => assert!(before.is_some() && model == snapshot(2, 2.0).model, "point {point}"),
                    Err(error) => {
                        assert!(before.is_none() && error.to_string().contains("manifest.json"), "{point}: {error}")
                    }
                }
                // Whoever comes next is not in the way of what was left behind.
                write(folder.path(), &snapshot(2, 8.0)).unwrap();
                assert_eq!(names(folder.path()), ["step-1", "step-2"], "point {point}");
                assert_eq!(loaded("step-2").unwrap(), snapshot(2, 8.0).model);
            }
        }
        assert!(num_points >= 20, "{num_points} points");
        println!("{num_points} points");
    }

    #[test]
    fn a_full_disk_is_73_and_the_file_is_named() {
        let error = put(Path::new("/dev/full"), &[0; 10]).unwrap_err();
        assert_eq!(error.exit_code().code(), 73);
        let text = error.to_string();
        assert!(text.starts_with("cannot write /dev/full: No space left on device"), "{text}");
    }

    #[test]
    fn a_folder_that_cannot_be_is_73_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("checkpoints");
        fs::write(&file, "").unwrap();
        let error = write(&file, &snapshot(1, 1.0)).unwrap_err();
        assert_eq!(error.exit_code().code(), 73);
        assert!(error.to_string().contains(&file.display().to_string()));
        assert_eq!(names(folder.path()), ["checkpoints"]);
    }
}
