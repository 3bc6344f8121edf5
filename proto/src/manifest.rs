//! `manifest.json`: what a checkpoint holds, and the hashes that prove it. Written last, so a folder without one is
//! no checkpoint.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::exit::ExitCode;
use crate::ids::{Epoch, Generation, Lineage, StateId, Step};

/// The format that this version writes, and the newest that it reads.
pub const FORMAT: u32 = 1;

/// Name of the file.
pub const FILE_NAME: &str = "manifest.json";

/// A checkpoint's table of contents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// History of the state.
    pub lineage: Lineage,
    /// Generation that applied the step.
    pub generation: Generation,
    /// The state is the one after this step.
    pub step: Step,
    /// Epoch of the step; 0 for step 0.
    pub epoch: Epoch,
    /// Position of the next step's first sample, in its epoch's order.
    pub next_position: u64,
    /// Ranks that trained it; nothing depends on it.
    pub world_size: u32,
    /// The recipe that it belongs to: [`crate::recipe::Recipe::sha256`].
    pub recipe_sha256: String,
    /// Hash of the state (parameters, optimizer, statistics).
    pub state_sha256: String,
    /// Scheduled values of the step, by name: `lr`.
    pub scheduled: BTreeMap<String, f64>,
    /// All other files of the folder.
    pub files: Vec<FileEntry>,
}

/// The key of the manifest's hash of itself.
const OWN_HASH: &str = "sha256";

/// As it is written: with its own hash at the end.
#[derive(Serialize)]
struct Sealed<'a> {
    #[serde(flatten)]
    manifest: &'a Manifest,
    sha256: String,
}

/// A file and its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// A plain name inside the folder.
    pub name: String,
    /// Length.
    pub bytes: u64,
    /// Of the content, lower-case hex.
    pub sha256: String,
}

/// Why a checkpoint does not load.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A file cannot be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// Not a manifest.
    #[error("{} is not a checkpoint's manifest: {what}", path.display())]
    Malformed {
        /// The manifest.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Written by a newer version.
    #[error("{} has format {format}, this version reads up to {FORMAT}; use a newer lockstep", path.display())]
    Newer {
        /// The manifest.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
    /// A file's length is not the manifest's.
    #[error("{} has {found} bytes, its manifest says {expected}: truncated or replaced", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// In the manifest.
        expected: u64,
        /// On disk.
        found: u64,
    },
    /// A file's content is not the manifest's.
    #[error("{} has sha256 {found}, its manifest says {expected}: the file is damaged", path.display())]
    Hash {
        /// The file.
        path: PathBuf,
        /// In the manifest.
        expected: String,
        /// On disk.
        found: String,
    },
}

impl ManifestError {
    /// Wrong data, except for a format of the future.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Newer { .. } => ExitCode::Protocol,
            // No checkpoint there at all; one that lacks another file is damaged.
            Self::Io { path, error } if error.kind() == io::ErrorKind::NotFound && path.ends_with(FILE_NAME) => {
                ExitCode::NoInput
            }
            Self::Io { .. } | Self::Malformed { .. } | Self::Size { .. } | Self::Hash { .. } => ExitCode::Data,
        }
    }
}

impl Manifest {
    /// The identity of the state in it.
    pub fn state(&self) -> StateId {
        StateId { lineage: self.lineage, generation: self.generation, step: self.step }
    }

    /// Bytes of all files but the manifest.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Reads `dir/manifest.json`. Does not look at the other files.
    ///
    /// # Errors
    /// When it is not there, not a manifest, of a newer format, or names a file outside the folder.
    pub fn read(dir: &Path) -> Result<Self, ManifestError> {
        let path = dir.join(FILE_NAME);
        let text = std::fs::read(&path).map_err(|error| ManifestError::Io { path: path.clone(), error })?;
        Self::parse(&text, &path)
    }

    /// Over the values, not over the text: a file that was only laid out anew is still whole.
    fn own_sha256(&self) -> String {
        // invariant: numbers, strings and lists of them always serialise.
        hex(&Sha256::digest(serde_json::to_vec(self).unwrap_or_default()))
    }

    fn parse(text: &[u8], path: &Path) -> Result<Self, ManifestError> {
        /// Read first: a newer format may differ in everything else.
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let malformed = |what: String| ManifestError::Malformed { path: path.to_owned(), what };
        let Format { format } = serde_json::from_slice(text).map_err(|error| malformed(error.to_string()))?;
        if format > FORMAT {
            return Err(ManifestError::Newer { path: path.to_owned(), format });
        }
        if format == 0 {
            return Err(malformed("`format` is 0".to_owned()));
        }
        let mut keys: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(text).map_err(|error| malformed(error.to_string()))?;
        let expected = keys.remove(OWN_HASH);
        let manifest: Self = serde_json::from_value(keys.into()).map_err(|error| malformed(error.to_string()))?;
        if expected.is_some() && !text.ends_with(b"\n") {
            return Err(malformed("it does not end with a line's end: it was cut off".to_owned()));
        }
        // Earlier versions wrote none. A key whose name was damaged is unknown, so none is missed.
        if expected.is_some_and(|expected| expected != manifest.own_sha256()) {
            return Err(malformed(format!("its content is not what its `{OWN_HASH}` says: the file is damaged")));
        }
        if let Some(file) = manifest.files.iter().find(|file| !is_plain_name(&file.name)) {
            return Err(malformed(format!("`{}` is not a plain file name", file.name)));
        }
        Ok(manifest)
    }

    /// Reads the manifest and proves every file against it, streaming.
    ///
    /// # Errors
    /// As [`read`](Self::read); and when a file is missing, of another length, or of another hash.
    pub fn verify(dir: &Path) -> Result<Self, ManifestError> {
        let manifest = Self::read(dir)?;
        for file in &manifest.files {
            let path = dir.join(&file.name);
            let io = |error| ManifestError::Io { path: path.clone(), error };
            let found = std::fs::metadata(&path).map_err(io)?.len();
            if found != file.bytes {
                return Err(ManifestError::Size { path, expected: file.bytes, found });
            }
            let found = FileEntry::of(&path)?.sha256;
            if found != file.sha256 {
                return Err(ManifestError::Hash { path, expected: file.sha256.clone(), found });
            }
        }
        Ok(manifest)
    }

    /// Writes `dir/manifest.json` and flushes it to the disk. Call it last, then rename the folder into place.
    ///
    /// # Errors
    /// What the system says, with the path.
    pub fn write(&self, dir: &Path) -> Result<(), ManifestError> {
        let path = dir.join(FILE_NAME);
        let io = |error| ManifestError::Io { path: path.clone(), error };
        let sealed = Sealed { manifest: self, sha256: self.own_sha256() };
        let mut text = serde_json::to_vec_pretty(&sealed).map_err(|error| io(error.into()))?;
        text.push(b'\n');
        let mut file = File::create(&path).map_err(io)?;
        file.write_all(&text).map_err(io)?;
        file.sync_all().map_err(io)
    }
}

impl FileEntry {
    /// Name, length and hash of a file, streaming.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(path: &Path) -> Result<Self, ManifestError> {
        let io = |error| ManifestError::Io { path: path.to_owned(), error };
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let mut file = File::open(path).map_err(io)?;
        let mut hash = Sha256::new();
        let mut bytes = 0;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => {
                    hash.update(&buffer[..read]);
                    bytes += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io(error)),
            }
        }
        Ok(Self { name, bytes, sha256: hex(&hash.finalize()) })
    }
}

/// Whether `name` is one component of a path, harmless to join to a folder.
pub fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
