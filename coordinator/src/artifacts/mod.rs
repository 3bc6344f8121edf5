//! Files that are derived from the store, for people and programs: `metrics.jsonl`, `epochs.csv`, `tensorboard/`,
//! `provenance.json`. Written after the transaction; when they disagree with the store at the start, or after a
//! rollback, they are written anew.

mod epochs;
mod metrics;
mod tensorboard;

use std::io;
use std::path::{Path, PathBuf};

use lockstep_proto::ids::{Epoch, Step};

use crate::engine::Record;
use crate::progress::Progress;
use crate::provenance::Provenance;
use crate::store::{Store, StoreError, read};

/// The derived files of one run.
#[derive(Debug)]
pub struct Artifacts {
    run_dir: PathBuf,
    metrics: metrics::Metrics,
    tensorboard: Option<tensorboard::EventFile>,
    last_event: i64,
}

impl Artifacts {
    /// Brings the files in line with the store and opens them for more.
    ///
    /// # Errors
    /// When one of them cannot be written, or the store cannot be read.
    pub fn open(run_dir: &Path, store: &Store, tensorboard: bool) -> Result<Self, StoreError> {
        let metrics = metrics::Metrics::open(run_dir, store)?;
        epochs::write(run_dir, &rows(store, read::epochs(store.connection()))?)?;
        let tensorboard =
            if tensorboard { Some(tensorboard::EventFile::create(run_dir, metrics.last())?) } else { None };
        let last_event = rows(store, read::events(store.connection(), 0))?.last().map_or(0, |event| event.id);
        Ok(Self { run_dir: run_dir.to_owned(), metrics, tensorboard, last_event })
    }

    /// Takes over what the last transaction wrote, and gives back what there is to show of it.
    ///
    /// # Errors
    /// When a file cannot be written, or the store cannot be read.
    pub fn catch_up(&mut self, store: &Store, records: &[Record]) -> Result<Vec<Progress>, StoreError> {
        let mut news = Vec::new();
        if let Some(to) = records.iter().filter_map(rolled_back_to).min() {
            self.metrics = metrics::Metrics::rebuild(&self.run_dir, store)?;
            if self.tensorboard.is_some() {
                self.tensorboard = Some(tensorboard::EventFile::create(&self.run_dir, to)?);
            }
        }
        for step in self.metrics.append(store)? {
            if let Some(file) = &mut self.tensorboard {
                file.step(&step)?;
            }
            news.push(Progress::Step(step));
        }
        let touched: Vec<Epoch> = records.iter().filter_map(epoch_of).collect();
        if !touched.is_empty() || records.iter().any(|record| rolled_back_to(record).is_some()) {
            let rows = rows(store, read::epochs(store.connection()))?;
            epochs::write(&self.run_dir, &rows)?;
            for row in rows.into_iter().filter(|row| touched.contains(&row.epoch)) {
                if let Some(file) = &mut self.tensorboard {
                    file.epoch(&row)?;
                }
                news.push(Progress::Epoch(row));
            }
        }
        if let Some(file) = &mut self.tensorboard {
            file.flush()?;
        }
        for event in rows(store, read::events(store.connection(), self.last_event))? {
            self.last_event = event.id;
            news.push(Progress::Event(event));
        }
        if records.iter().any(|record| matches!(record, Record::Settled { .. } | Record::Joined { .. })) {
            Provenance::update(&self.run_dir, |provenance| {
                records.iter().for_each(|record| provenance.learn(record));
            })?;
        }
        Ok(news)
    }
}

fn rolled_back_to(record: &Record) -> Option<Step> {
    match record {
        Record::RolledBack { to, .. } => Some(*to),
        _ => None,
    }
}

fn epoch_of(record: &Record) -> Option<Epoch> {
    match record {
        Record::Evaluated { epoch, .. } | Record::EpochEnded { epoch, .. } => Some(*epoch),
        _ => None,
    }
}

fn rows<T>(store: &Store, rows: rusqlite::Result<T>) -> Result<T, StoreError> {
    rows.map_err(|error| StoreError::Sql { path: store.path().to_owned(), error })
}

fn file_error(path: &Path) -> impl Fn(io::Error) -> StoreError {
    move |error| StoreError::File { path: path.to_owned(), error }
}

/// Replaces a file as a whole: a reader sees the old one or the new one.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let write = || {
        std::fs::write(&temporary, content)?;
        std::fs::File::open(&temporary)?.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(file_error(path))
}
