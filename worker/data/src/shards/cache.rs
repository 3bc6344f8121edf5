//! What was read from behind a URL, kept on a local disk.
//!
//! ```text
//! DIR/blocks/<2 hex digits>/<30 more of sha256 of (shard, its content, number of the block)>
//! ```
//! The unit is a block of 1 MiB of a shard. A whole shard would make the first sample wait for a gigabyte, and would be
//! dropped as a whole; a sample alone is too little for a request that costs 20 ms wherever its neighbours are wanted soon.
//! Files get their names when they are whole. Any number of processes may share a folder: who misses a block reads it,
//! two at worst read it twice. Every process sees to it that the folder stays within the limit, by removing what was not
//! used for longest; it looks after every 16th of the limit that it has written, so n processes may go beyond by n 16ths.
//!
//! A folder that cannot be written costs a warning and no more.

use std::collections::HashSet;
use std::fs::{self, File, FileTimes};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::index::readable;
use crate::samples::hex;

/// Bytes of a block.
pub const BLOCK: u64 = 1 << 20;
/// A use within so long after the last one that was noted is not noted.
const NOTED: Duration = Duration::from_secs(60);
/// A file of a write that nobody finished.
const ABANDONED: Duration = Duration::from_secs(3_600);

/// Blocks of shards on a disk.
pub struct Cache {
    folder: PathBuf,
    limit: u64,
    /// Bytes written since the folder was last looked through.
    written: AtomicU64,
    broken: AtomicBool,
    fetching: Mutex<HashSet<PathBuf>>,
    fetched: Condvar,
}

/// Blocks that this thread is fetching; others wait for them.
struct Claim<'a> {
    cache: &'a Cache,
    paths: Vec<PathBuf>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut fetching = self.cache.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        for path in &self.paths {
            fetching.remove(path);
        }
        self.cache.fetched.notify_all();
    }
}

impl Cache {
    /// In `folder`, with at most `limit` bytes. What is there already counts.
    pub fn open(folder: &Path, limit: u64) -> Self {
        let cache = Self {
            folder: folder.join("blocks"),
            limit,
            written: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            fetching: Mutex::default(),
            fetched: Condvar::new(),
        };
        cache.trim();
        cache
    }

    /// Reads a range of a shard of `whole` bytes into `out`. `shard` names it with its content. What is missing is
    /// fetched as one stretch of whole blocks.
    ///
    /// # Errors
    /// What `fetch` says.
    pub fn read<E>(
        &self,
        (shard, whole): (&str, u64),
        range: Range<u64>,
        out: &mut Vec<u8>,
        fetch: impl FnOnce(Range<u64>, &mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        out.clear();
        if range.is_empty() {
            return Ok(());
        }
        out.resize((range.end - range.start) as usize, 0);
        let blocks: Vec<u64> = (range.start / BLOCK..=(range.end - 1) / BLOCK).collect();
        let extent = |block: u64| block * BLOCK..whole.min((block + 1) * BLOCK);
        let paths: Vec<PathBuf> = blocks.iter().map(|block| self.path(shard, *block)).collect();
        let missing = |out: &mut [u8]| {
            let missing = |at: &usize| !take(&paths[*at], extent(blocks[*at]), &range, out);
            let missing: Vec<usize> = (0..blocks.len()).filter(missing).collect();
            Some(*missing.first()?..=*missing.last()?)
        };
        let (places, _claim) = loop {
            let Some(places) = missing(out) else { return Ok(()) };
            let wanted = paths[places.clone()].to_vec();
            let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
            if wanted.iter().any(|path| fetching.contains(path)) {
                // whoever fetches it ends by its own deadline; then it is looked for again
                drop(self.fetched.wait(fetching));
                continue;
            }
            fetching.extend(wanted.iter().cloned());
            drop(fetching);
            let claim = Claim { cache: self, paths: wanted };
            // somebody may have brought it since it was missed
            match missing(out) {
                None => return Ok(()),
                Some(still) if still == places => break (places, claim),
                Some(_) => {}
            }
        };
        let stretch = extent(blocks[*places.start()]).start..extent(blocks[*places.end()]).end;
        let mut bytes = Vec::new();
        fetch(stretch.clone(), &mut bytes)?;
        for place in places {
            let extent = extent(blocks[place]);
            let block = &bytes[(extent.start - stretch.start) as usize..(extent.end - stretch.start) as usize];
            copy(block, &extent, &range, out);
            self.keep(&paths[place], block);
        }
        Ok(())
    }

    /// Drops the blocks of a range, which turned out to be wrong.
    pub fn forget(&self, shard: &str, range: &Range<u64>) {
        for block in range.start / BLOCK..=range.end.saturating_sub(1) / BLOCK {
            let _ = fs::remove_file(self.path(shard, block)); // not there: then so much the better
        }
    }

    fn path(&self, shard: &str, block: u64) -> PathBuf {
        let mut hasher = Sha256::new();
        hasher.update(shard.as_bytes());
        hasher.update(block.to_le_bytes());
        let name = hex(&hasher.finalize()[..16]);
        self.folder.join(&name[..2]).join(&name[2..])
    }

    fn keep(&self, path: &Path, block: &[u8]) {
        if self.broken.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = write(path, block) {
            if !self.broken.swap(true, Ordering::Relaxed) {
                let folder = self.folder.display();
                tracing::warn!(%folder, %error, "the cache cannot be written: going on without; see data.cache_dir");
            }
            return;
        }
        let written = self.written.fetch_add(block.len() as u64, Ordering::Relaxed) + block.len() as u64;
        if written >= self.limit / 16 {
            self.trim();
        }
    }

    /// Removes what was not used for longest until a 16th of the limit is free.
    fn trim(&self) {
        self.written.store(0, Ordering::Relaxed);
        let mut files = Vec::new();
        let mut total = 0;
        let now = SystemTime::now();
        let folders = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        for entry in folders.filter_map(|folder| fs::read_dir(folder.path()).ok()).flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let is_abandoned = now.duration_since(used).is_ok_and(|age| age > ABANDONED);
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                if is_abandoned {
                    let _ = fs::remove_file(entry.path()); // another process was faster
                }
                continue;
            }
            total += metadata.len();
            files.push((used, metadata.len(), entry.path()));
        }
        if total + self.limit / 16 <= self.limit {
            return;
        }
        files.sort();
        for (_, bytes, path) in files {
            if total + self.limit / 16 <= self.limit {
                break;
            }
            let _ = fs::remove_file(path); // another process was faster
            total -= bytes;
        }
    }
}

/// Copies what a range has of a block that is there whole.
fn take(path: &Path, extent: Range<u64>, range: &Range<u64>, out: &mut [u8]) -> bool {
    let Ok(file) = File::open(path) else { return false };
    let Ok(metadata) = file.metadata() else { return false };
    if metadata.len() != extent.end - extent.start {
        return false; // a power cut may leave a name without its content
    }
    let (from, to) = (range.start.max(extent.start), range.end.min(extent.end));
    let slot = &mut out[(from - range.start) as usize..(to - range.start) as usize];
    if file.read_exact_at(slot, from - extent.start).is_err() {
        return false;
    }
    let now = SystemTime::now();
    let is_old = |used| now.duration_since(used).is_ok_and(|age| age > NOTED);
    if metadata.modified().is_ok_and(is_old) {
        let _ = file.set_times(FileTimes::new().set_modified(now)); // somebody else's file: it ages as it does
    }
    true
}

/// Copies what a range has of a block.
fn copy(block: &[u8], extent: &Range<u64>, range: &Range<u64>, out: &mut [u8]) {
    let (from, to) = (range.start.max(extent.start), range.end.min(extent.end));
    if from < to {
        out[(from - range.start) as usize..(to - range.start) as usize]
            .copy_from_slice(&block[(from - extent.start) as usize..(to - extent.start) as usize]);
    }
}

fn write(path: &Path, block: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(folder)?;
    file.write_all(block)?;
    readable(file.as_file())?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn byte(at: u64) -> u8 {
        (at ^ (at >> 8) ^ (at >> 16)) as u8
    }

    const WHOLE: u64 = 5 * BLOCK / 2;

    fn read(cache: &Cache, shard: &str, range: Range<u64>, asked: &mut Vec<Range<u64>>) {
        let mut out = vec![9; 3];
        let fetch = |stretch: Range<u64>, bytes: &mut Vec<u8>| {
            asked.push(stretch.clone());
            bytes.extend(stretch.map(byte));
            Ok::<(), Infallible>(())
        };
        cache.read((shard, WHOLE), range.clone(), &mut out, fetch).unwrap();
        assert!(out.into_iter().eq(range.map(byte)));
    }

    #[test]
    fn what_is_missing_is_fetched_as_one_stretch_and_only_once() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), 100 * BLOCK);
        let mut asked = Vec::new();
        read(&cache, "a", 10..20, &mut asked);
        read(&cache, "a", 0..BLOCK, &mut asked);
        assert_eq!(asked, std::slice::from_ref(&(0..BLOCK)));
        read(&cache, "a", BLOCK - 5..2 * BLOCK + 5, &mut asked);
        assert_eq!(&asked[1..], std::slice::from_ref(&(BLOCK..WHOLE)), "the last block is short");
        read(&cache, "a", 0..WHOLE, &mut asked);
        read(&cache, "a", 7..7, &mut asked);
        assert_eq!(asked.len(), 2);
        read(&cache, "b", 10..20, &mut asked);
        assert_eq!(asked.len(), 3, "another shard");
        let other = Cache::open(dir.path(), 100 * BLOCK);
        read(&other, "a", 0..WHOLE, &mut asked);
        assert_eq!(asked.len(), 3, "another process finds what is there");
    }

    #[test]
    fn a_block_that_is_cut_or_was_forgotten_is_fetched_again() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), 100 * BLOCK);
        let mut asked = Vec::new();
        read(&cache, "a", 10..20, &mut asked);
        File::options().write(true).open(cache.path("a", 0)).unwrap().set_len(100).unwrap();
        read(&cache, "a", 10..20, &mut asked);
        assert_eq!(asked.len(), 2);
        cache.forget("a", &(10..20));
        read(&cache, "a", 10..20, &mut asked);
        assert_eq!(asked.len(), 3);
    }

    #[test]
    fn the_folder_stays_within_its_limit_and_what_was_used_last_stays() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), 8 * BLOCK);
        let mut asked = Vec::new();
        for shard in 0..30 {
            read(&cache, &shard.to_string(), 0..10, &mut asked);
            let age = Duration::from_secs(1_000 - shard); // written one after another
            let file = File::options().write(true).open(cache.path(&shard.to_string(), 0)).unwrap();
            file.set_times(FileTimes::new().set_modified(SystemTime::now() - age)).unwrap();
            read(&cache, "0", 0..10, &mut asked); // always used again
        }
        assert_eq!(asked.len(), 30);
        let there = |shard: &u64| cache.path(&shard.to_string(), 0).exists();
        let kept: Vec<u64> = (0..30).filter(there).collect();
        assert!(kept.len() <= 8, "{kept:?}");
        assert_eq!(kept[0], 0, "{kept:?}");
        assert!(kept[1..].iter().all(|shard| *shard > 20), "{kept:?}");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_done_without() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let cache = Cache::open(&file, 8 * BLOCK);
        let mut asked = Vec::new();
        read(&cache, "a", 10..20, &mut asked);
        read(&cache, "a", 10..20, &mut asked);
        assert_eq!(asked.len(), 2);
    }

    #[test]
    fn threads_that_want_one_block_fetch_it_once_and_an_error_frees_it() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), 100 * BLOCK);
        let mut out = Vec::new();
        let error = cache.read(("a", WHOLE), 0..10, &mut out, |_, _| Err("no")).unwrap_err();
        assert_eq!(error, "no");
        let count = AtomicU64::new(0);
        let begin = std::sync::Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    begin.wait();
                    let fetch = |stretch: Range<u64>, bytes: &mut Vec<u8>| {
                        count.fetch_add(1, Ordering::Relaxed);
                        bytes.extend(stretch.map(byte));
                        Ok::<(), Infallible>(())
                    };
                    cache.read(("a", WHOLE), 0..WHOLE, &mut Vec::new(), fetch).unwrap();
                });
            }
        });
        assert_eq!(count.into_inner(), 1);
    }
}
