//! What an unfinished pack has finished: a line for the job, then a line a shard.
//!
//! The file is locked while a process packs, so that no second one writes into the same place.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::error::ShardError;
use super::super::index::Shard;
use super::Options;
use crate::Split;
use crate::error::DataError;

/// Its name.
const JOURNAL: &str = ".lockstep-pack.jsonl";

/// The job: another one does not go on with its shards.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Job {
    format: String,
    source: String,
    shard_bytes: u64,
    shard_samples: u64,
    short_side: Option<u32>,
    quality: Option<u8>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Record {
    split: String,
    shard: Shard,
    broken: Vec<(PathBuf, String)>,
}

pub(super) struct Journal {
    path: PathBuf,
    file: File,
    records: Vec<Record>,
}

fn split_name(split: Split) -> &'static str {
    crate::tree::folder(split)
}

impl Journal {
    /// Opens that of `dest`, or begins one. `source` is the fingerprint of the folder.
    pub(super) fn open(dest: &Path, source: &str, options: &Options) -> Result<Self, DataError> {
        let path = dest.join(JOURNAL);
        let wrong = |source| DataError::Write { path: path.clone(), source };
        let in_the_way = |what: &str| ShardError::InTheWay { path: dest.to_owned(), what: what.to_owned() };
        let opened = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = opened.map_err(wrong)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_the_way("shards that another process is packing").into()),
            Err(TryLockError::Error(_)) => {} // a file system without locks
        }
        let job = Job {
            format: "lockstep-pack-1".into(),
            source: source.to_owned(),
            shard_bytes: options.shard_bytes,
            shard_samples: options.shard_samples,
            short_side: options.short_side,
            quality: options.quality,
        };
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(wrong)?;
        // the last line may be cut: its shard is made again
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        let mut lines = whole.lines();
        let mut journal = match lines.next().map(serde_json::from_str::<Job>) {
            None => {
                let mut journal = Self { path: path.clone(), file, records: Vec::new() };
                journal.file.set_len(0).and_then(|()| journal.file.seek(SeekFrom::Start(0))).map_err(wrong)?;
                journal.line(&job)?;
                return Ok(journal);
            }
            Some(Ok(found)) if found == job => Self { path: path.clone(), file, records: Vec::new() },
            Some(_) => return Err(in_the_way("part of a pack of other images or with other options").into()),
        };
        let mut end = whole.find('\n').map_or(0, |end| end + 1);
        for line in lines {
            let Ok(record) = serde_json::from_str::<Record>(line) else { break };
            let is_there =
                fs::metadata(dest.join(&record.shard.name)).is_ok_and(|file| file.len() == record.shard.bytes);
            if !is_there {
                break; // those after it begin where it ended, but its bytes are wanted first
            }
            journal.records.push(record);
            end += line.len() + 1;
        }
        // what follows the lines that count goes
        journal.file.set_len(end as u64).and_then(|()| journal.file.seek(SeekFrom::End(0))).map_err(wrong)?;
        Ok(journal)
    }

    /// A shard is whole.
    pub(super) fn add(&mut self, split: Split, shard: Shard, broken: Vec<(PathBuf, String)>) -> Result<(), DataError> {
        let record = Record { split: split_name(split).into(), shard, broken };
        self.line(&record)?;
        self.records.push(record);
        Ok(())
    }

    fn line(&mut self, value: &impl Serialize) -> Result<(), DataError> {
        let wrong = |source| DataError::Write { path: self.path.clone(), source };
        let mut line = serde_json::to_string(value).map_err(|error| wrong(error.into()))?;
        line.push('\n');
        self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data()).map_err(wrong)
    }

    fn of(&self, split: Split) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(move |record| record.split == split_name(split))
    }

    pub(super) fn num_shards(&self, split: Split) -> usize {
        self.of(split).count()
    }

    pub(super) fn num_samples_of(&self, split: Split) -> u64 {
        self.of(split).map(|record| record.shard.samples.len() as u64).sum()
    }

    pub(super) fn num_samples(&self) -> u64 {
        self.num_samples_of(Split::Train) + self.num_samples_of(Split::Test)
    }

    /// Shards of both splits, and what was broken.
    pub(super) fn records(&self) -> (Vec<Shard>, Vec<Shard>, Vec<(PathBuf, String)>) {
        let shards = |split| self.of(split).map(|record| record.shard.clone()).collect();
        let broken = self.records.iter().flat_map(|record| record.broken.clone()).collect();
        (shards(Split::Train), shards(Split::Test), broken)
    }

    pub(super) fn remove(self) {
        let _ = fs::remove_file(self.path); // one that stays is of this very job, and hurts nobody
    }
}
