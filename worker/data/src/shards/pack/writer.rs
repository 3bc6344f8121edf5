//! A tar file (POSIX ustar) whose bytes depend on its files alone: no owner, no time.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::super::HEADER;
use crate::error::DataError;
use crate::samples::hex;

/// What is being written, under a name that no finished shard has.
pub(super) struct Writer {
    path: PathBuf,
    part: PathBuf,
    out: BufWriter<File>,
    hasher: Sha256,
    bytes: u64,
}

impl Writer {
    /// Begins a shard; what a process that died has left of it is overwritten.
    pub(super) fn create(path: &Path) -> Result<Self, DataError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let part = path.with_file_name(format!(".{name}.part"));
        let file = File::create(&part).map_err(|source| DataError::Write { path: part.clone(), source })?;
        let out = BufWriter::with_capacity(1 << 20, file);
        Ok(Self { path: path.to_owned(), part, out, hasher: Sha256::new(), bytes: 0 })
    }

    /// How large the shard would be at its end, with one more sample whose image has `image` bytes.
    pub(super) fn bytes_with(&self, image: u64) -> u64 {
        self.bytes + 2 * HEADER + image.next_multiple_of(HEADER) + HEADER + 2 * HEADER
    }

    /// Adds a file; returns where its content begins.
    pub(super) fn file(&mut self, name: &str, content: &[u8]) -> Result<u64, DataError> {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).map_err(self.wrong())?;
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.put(header.as_bytes())?;
        let offset = self.bytes;
        self.put(content)?;
        let padding = content.len().next_multiple_of(HEADER as usize) - content.len();
        self.put(&[0; HEADER as usize][..padding])?;
        Ok(offset)
    }

    /// Ends the shard and gives it its name; returns its size and its sha256.
    pub(super) fn finish(mut self) -> Result<(u64, String), DataError> {
        self.put(&[0; 2 * HEADER as usize])?;
        self.out.flush().map_err(self.wrong())?;
        self.out.get_ref().sync_all().map_err(self.wrong())?;
        fs::rename(&self.part, &self.path).map_err(self.wrong())?;
        Ok((self.bytes, hex(&self.hasher.finalize())))
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), DataError> {
        self.out.write_all(bytes).map_err(self.wrong())?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn wrong(&self) -> impl Fn(io::Error) -> DataError + use<> {
        let path = self.path.clone();
        move |source| DataError::Write { path: path.clone(), source }
    }
}
