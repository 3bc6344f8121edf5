//! Checkpoints on their way between a worker and a coordinator that share no disk.
//!
//! ```text
//! upload     Header(files) ─ Chunk{file 0} … Chunk{file 1} …      every file in order, each from its start
//! download   File(name) ─ Chunk … Chunk ─ File(name) ─ Chunk …
//! ```
//! Names are single components of a path; whoever receives one may join it to a folder.

use crate::ids::{Epoch, Generation, StateId, WorkerId};
use crate::manifest::FileEntry;

/// The most bytes of one chunk.
pub const MAX_CHUNK_BYTES: usize = 1 << 20;

/// A message of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UploadPart {
    /// The first message.
    Header(UploadHeader),
    /// More bytes of a file.
    Chunk {
        /// Index into the header's files.
        file: u32,
        /// At most [`MAX_CHUNK_BYTES`].
        bytes: Vec<u8>,
    },
}

/// What is about to be uploaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadHeader {
    /// The run that it belongs to.
    pub run_id: String,
    /// Who sends it.
    pub worker: WorkerId,
    /// The generation that asked for it.
    pub generation: Generation,
    /// The state in it.
    pub state: StateId,
    /// Its epoch.
    pub epoch: Epoch,
    /// `step-N`.
    pub dir: String,
    /// All files, `manifest.json` too.
    pub files: Vec<FileEntry>,
}

/// Which checkpoint to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DownloadRequest {
    /// The run that asks.
    pub run_id: String,
    /// `step-N`.
    pub dir: String,
}

/// A message of a download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DownloadPart {
    /// A file begins.
    File {
        /// Its name.
        name: String,
        /// Its length.
        bytes: u64,
    },
    /// More bytes of it.
    Chunk {
        /// At most [`MAX_CHUNK_BYTES`].
        bytes: Vec<u8>,
    },
}
