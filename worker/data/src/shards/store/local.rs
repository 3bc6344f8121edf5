//! Shards in a folder.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Listed, ShardError, join};

/// Files that are kept open: on a network file system opening costs more than reading a sample.
const OPEN: usize = 128;

/// A folder.
pub struct Local {
    root: PathBuf,
    /// The least recently opened first.
    open: Mutex<Vec<(String, Arc<File>)>>,
}

impl Local {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, open: Mutex::default() }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        join(&self.root, name)
    }

    pub(super) fn read(&self, name: &str, range: Range<u64>, whole: u64, out: &mut Vec<u8>) -> Result<(), ShardError> {
        let wrong = |source| ShardError::Read { path: self.path(name), source };
        let file = self.file(name)?;
        let bytes = file.metadata().map_err(wrong)?.len();
        if bytes != whole {
            let what = format!("it has {bytes} bytes, not {whole}");
            return Err(ShardError::Changed { address: self.path(name).display().to_string(), what });
        }
        out.resize((range.end - range.start) as usize, 0);
        file.read_exact_at(out, range.start).map_err(wrong)
    }

    fn file(&self, name: &str) -> Result<Arc<File>, ShardError> {
        {
            // invariant of a poisoned list: it is changed by whole calls only
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, file)) = open.iter().find(|(of, _)| of == name) {
                return Ok(file.clone());
            }
        }
        let file = Arc::new(File::open(self.path(name)).map_err(|source| match source.kind() {
            ErrorKind::NotFound => ShardError::Missing { address: self.path(name).display().to_string() },
            _ => ShardError::Read { path: self.path(name), source },
        })?);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= OPEN {
            open.remove(0);
        }
        open.push((name.to_owned(), file.clone()));
        Ok(file)
    }

    pub(super) fn read_all(&self, name: &str) -> Result<Option<Vec<u8>>, ShardError> {
        match fs::read(self.path(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(source) => Err(ShardError::Read { path: self.path(name), source }),
        }
    }

    pub(super) fn list(&self, folder: &str) -> Result<Vec<Listed>, ShardError> {
        let path = self.path(folder);
        let wrong = |source| ShardError::Read { path: path.clone(), source };
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(Vec::new());
            }
            Err(source) => return Err(wrong(source)),
        };
        let mut listed = Vec::new();
        for entry in entries {
            let entry = entry.map_err(wrong)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            // follows links; one that leads nowhere is no file
            let Ok(metadata) = fs::metadata(entry.path()) else { continue };
            if metadata.is_file() {
                let name = if folder.is_empty() { name } else { format!("{folder}/{name}") };
                listed.push(Listed { name, bytes: metadata.len() });
            }
        }
        Ok(listed)
    }
}
