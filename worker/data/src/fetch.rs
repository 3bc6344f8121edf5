//! `lockstep data fetch`: the official binary archives, downloaded, checked and unpacked.
//!
//! ```text
//! DEST/cifar-10-binary.tar.gz put there by hand? ──no──► download into DEST/.fetch-XXXX/
//!                        └───────────yes──────────┐                │
//!                                             md5 as published? ◄──┘
//!                     unpack the expected files, and no other, into DEST/.fetch-XXXX/
//!                                  rename to DEST/cifar-10-batches-bin
//! ```
//! What has the final name is whole; what was left by a process that died is hidden and harmless.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::read::GzDecoder;
use lockstep_proto::recipe::DataKind;
use md5::{Digest, Md5};

use crate::cifar::{CIFAR10, CIFAR100, Layout};
use crate::error::DataError;
use crate::samples::hex;

/// Where the archives are published.
pub const OFFICIAL_BASE: &str = "https://www.cs.toronto.edu/~kriz";

const CONNECT_DEADLINE: Duration = Duration::from_secs(30);
/// A server that sends nothing for so long is given up.
const READ_DEADLINE: Duration = Duration::from_secs(60);

/// One published archive.
#[derive(Clone, Copy, Debug)]
pub struct Archive {
    /// Its file name, also under the base address.
    pub file: &'static str,
    /// md5 of the file, lower-case hex, as published.
    pub md5: &'static str,
    /// The folder inside.
    pub folder: &'static str,
    /// The files in that folder.
    pub layout: Layout,
}

/// What became of a fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The folder, for `data.path`.
    pub folder: PathBuf,
    /// Whether it was there already.
    pub was_there: bool,
}

/// Bytes downloaded so far, and of how many when the server said so.
pub type Progress<'a> = dyn FnMut(u64, Option<u64>) + 'a;

impl Archive {
    /// The archive of a set that has one.
    ///
    /// # Errors
    /// The set is built in (64).
    pub fn of(kind: DataKind) -> Result<Self, DataError> {
        match kind {
            DataKind::Cifar10 => Ok(Self {
                file: "cifar-10-binary.tar.gz",
                md5: "c32a1d4ab5d03f1284b67883e8d87530",
                folder: "cifar-10-batches-bin",
                layout: CIFAR10,
            }),
            DataKind::Cifar100 => Ok(Self {
                file: "cifar-100-binary.tar.gz",
                md5: "03b5dce01913d631647c71ecec9e9cb8",
                folder: "cifar-100-binary",
                layout: CIFAR100,
            }),
            DataKind::Shapes => Err(DataError::NothingToFetch { kind: "shapes", is: "built in" }),
            DataKind::ImageFolder | DataKind::Webdataset => {
                Err(DataError::NothingToFetch { kind: kind.name(), is: "data of your own" })
            }
        }
    }

    /// Brings the set from `base` into a folder of `dest`, which is made if need be. A whole set that is there already
    /// is left alone; an archive that lies in `dest` under its own name is used instead of the network.
    ///
    /// # Errors
    /// No connection, or an answer other than the file (69); another checksum or content (65); `dest` cannot be written,
    /// or holds a folder of that name that is not whole (73).
    pub fn fetch_from(&self, base: &str, dest: &Path, progress: &mut Progress<'_>) -> Result<Fetched, DataError> {
        let folder = dest.join(self.folder);
        if folder.exists() {
            let whole = self.layout.files().all(|(name, bytes)| {
                folder.join(name).metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == bytes)
            });
            return if whole {
                Ok(Fetched { folder, was_there: true })
            } else {
                Err(DataError::InTheWay { path: folder })
            };
        }
        fs::create_dir_all(dest).map_err(cannot_write(dest))?;
        let scratch = tempfile::Builder::new().prefix(".fetch-").tempdir_in(dest).map_err(cannot_write(dest))?;
        let by_hand = dest.join(self.file);
        let (archive, shown) = if by_hand.is_file() {
            (by_hand.clone(), by_hand)
        } else {
            let path = scratch.path().join(self.file);
            let url = format!("{base}/{}", self.file);
            self.download(&url, &path, &by_hand, progress)?;
            (path, url.into())
        };
        self.check(&archive, &shown)?;
        self.unpack(&archive, &shown, scratch.path())?;
        fs::rename(scratch.path().join(self.folder), &folder).map_err(cannot_write(&folder))?;
        Ok(Fetched { folder, was_there: false })
    }

    fn download(&self, url: &str, path: &Path, place: &Path, progress: &mut Progress<'_>) -> Result<(), DataError> {
        let unreachable =
            |reason: String| DataError::Unreachable { url: url.to_owned(), reason, place: place.to_owned() };
        let agent = ureq::Agent::new_with_config(
            ureq::Agent::config_builder()
                .timeout_resolve(Some(CONNECT_DEADLINE))
                .timeout_connect(Some(CONNECT_DEADLINE))
                .timeout_recv_response(Some(READ_DEADLINE))
                .timeout_per_read(Some(READ_DEADLINE))
                .build(),
        );
        let response = agent.get(url).call().map_err(|error| unreachable(error.to_string()))?;
        let mut body = response.into_body();
        let total = body.content_length();
        let mut reader = body.as_reader();
        let mut file = File::create(path).map_err(cannot_write(path))?;
        let mut buffer = vec![0; 1 << 16];
        let mut done = 0;
        loop {
            progress(done, total);
            let count = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(unreachable(format!("{error} after {done} bytes"))),
            };
            file.write_all(&buffer[..count]).map_err(cannot_write(path))?;
            done += count as u64;
        }
        match total {
            Some(total) if total != done => Err(unreachable(format!("{done} bytes came, {total} were announced"))),
            _ => Ok(()),
        }
    }

    /// `shown` is what messages call the archive: its path, or the address it came from.
    fn check(&self, archive: &Path, shown: &Path) -> Result<(), DataError> {
        let read_error = |source| DataError::Read { path: shown.to_owned(), offset: 0, source };
        let mut hasher = Md5::new();
        io::copy(&mut File::open(archive).map_err(read_error)?, &mut hasher).map_err(read_error)?;
        let found = hex(&hasher.finalize());
        if found == self.md5 {
            return Ok(());
        }
        Err(DataError::Checksum { path: shown.to_owned(), found, expected: self.md5 })
    }

    /// Writes the expected files into `into`/folder. Whatever else is in the archive is passed over.
    fn unpack(&self, archive: &Path, shown: &Path, into: &Path) -> Result<(), DataError> {
        let odd = |reason: String| DataError::Archive { path: shown.to_owned(), reason, kind: self.layout.kind };
        let folder = into.join(self.folder);
        fs::create_dir(&folder).map_err(cannot_write(&folder))?;
        let file = File::open(archive).map_err(|error| odd(error.to_string()))?;
        let mut tar = tar::Archive::new(GzDecoder::new(file));
        let mut missing: Vec<(&str, u64)> = self.layout.files().collect();
        for entry in tar.entries().map_err(|error| odd(error.to_string()))? {
            let mut entry = entry.map_err(|error| odd(error.to_string()))?;
            let Some(index) = missing.iter().position(|(name, _)| {
                // compared as bytes with names of our own, so nothing in the archive decides where a file goes
                entry.path_bytes().as_ref() == format!("{}/{name}", self.folder).as_bytes()
            }) else {
                continue;
            };
            let (name, bytes) = missing.swap_remove(index);
            if !entry.header().entry_type().is_file() || entry.size() != bytes {
                return Err(odd(format!("{name} is no file of {bytes} bytes")));
            }
            let path = folder.join(name);
            let mut out = File::create(&path).map_err(cannot_write(&path))?;
            copy_all(&mut entry, &mut out, |error| odd(format!("{name}: {error}")), cannot_write(&path))?;
            out.sync_all().map_err(cannot_write(&path))?;
        }
        match missing.first() {
            Some((name, _)) => Err(odd(format!("{name} is not in it"))),
            None => Ok(()),
        }
    }
}

/// Fetches a set from its official address into a folder of `dest`; see [`Archive::fetch_from`].
pub fn fetch(kind: DataKind, dest: &Path, progress: &mut Progress<'_>) -> Result<Fetched, DataError> {
    Archive::of(kind)?.fetch_from(OFFICIAL_BASE, dest, progress)
}

fn cannot_write(path: &Path) -> impl Fn(io::Error) -> DataError + use<'_> {
    move |source| DataError::Write { path: path.to_owned(), source }
}

/// `io::copy` that tells an unreadable source from an unwritable destination.
fn copy_all<E>(
    from: &mut impl Read,
    to: &mut impl Write,
    unreadable: impl Fn(io::Error) -> E,
    unwritable: impl Fn(io::Error) -> E,
) -> Result<(), E> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&buffer[..count]).map_err(&unwritable)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
}
