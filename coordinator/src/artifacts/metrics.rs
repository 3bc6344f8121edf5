//! `metrics.jsonl`: a line a committed step.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use lockstep_proto::ids::Step;
use serde::Serialize;

use super::{file_error, rows};
use crate::store::{StepRow, Store, StoreError, read};

const FILE_NAME: &str = "metrics.jsonl";

/// Keys of a line, in their order.
#[derive(Serialize)]
struct Line {
    step: u64,
    epoch: u64,
    generation: u64,
    world_size: u32,
    lr: f64,
    loss: f64,
    error: f64,
    samples: u64,
    images_per_s: f64,
    data_s: f64,
    compute_s: f64,
    comm_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_ready: Option<f64>,
}

fn line(row: &StepRow) -> String {
    let line = Line {
        step: row.step.0,
        epoch: row.epoch.0,
        generation: row.generation.0,
        world_size: row.world_size,
        lr: row.lr,
        loss: row.loss,
        error: row.error,
        samples: row.samples,
        images_per_s: row.images_per_s(),
        data_s: row.times.data,
        compute_s: row.times.compute,
        comm_s: row.times.comm,
        data_ready: row.ready,
    };
    // invariant: numbers under fixed keys always serialise (NaN as null).
    let mut text = serde_json::to_string(&line).unwrap_or_default();
    text.push('\n');
    text
}

/// The file, open at its end.
#[derive(Debug)]
pub(super) struct Metrics {
    path: PathBuf,
    file: BufWriter<File>,
    last: Step,
}

impl Metrics {
    /// Opens the file if it ends with the store's last step, else writes it anew.
    pub(super) fn open(run_dir: &Path, store: &Store) -> Result<Self, StoreError> {
        let mut lines = Digest::default();
        rows(store, read::steps(store.connection(), Step(0), |row| lines.push(row.step, &line(&row))))?;
        let path = run_dir.join(FILE_NAME);
        if Digest::of(&path).is_some_and(|found| found.count == lines.count && found.last == lines.last) {
            let file = OpenOptions::new().append(true).open(&path).map_err(file_error(&path))?;
            return Ok(Self { path, file: BufWriter::new(file), last: lines.step });
        }
        Self::rebuild(run_dir, store)
    }

    /// Writes the whole file from the store.
    pub(super) fn rebuild(run_dir: &Path, store: &Store) -> Result<Self, StoreError> {
        let path = run_dir.join(FILE_NAME);
        let temporary = run_dir.join("metrics.jsonl.tmp");
        let io = file_error(&path);
        let file = BufWriter::new(File::create(&temporary).map_err(&io)?);
        let mut metrics = Self { path: path.clone(), file, last: Step(0) };
        metrics.append(store)?;
        metrics.file.get_ref().sync_all().map_err(&io)?;
        std::fs::rename(&temporary, &path).map_err(&io)?;
        Ok(metrics)
    }

    /// Writes the lines of steps that the store has and the file has not.
    pub(super) fn append(&mut self, store: &Store) -> Result<Vec<StepRow>, StoreError> {
        let mut new = Vec::new();
        let mut result = Ok(());
        rows(
            store,
            read::steps(store.connection(), self.last, |row| {
                if result.is_ok() {
                    result = self.file.write_all(line(&row).as_bytes());
                }
                new.push(row);
            }),
        )?;
        result.and_then(|()| self.file.flush()).map_err(file_error(&self.path))?;
        self.last = new.last().map_or(self.last, |row| row.step);
        Ok(new)
    }

    /// The last step in the file.
    pub(super) fn last(&self) -> Step {
        self.last
    }
}

/// Enough of a file to tell whether it was cut off: lines are only ever added at its end.
#[derive(Default)]
struct Digest {
    count: u64,
    last: String,
    step: Step,
}

impl Digest {
    fn push(&mut self, step: Step, line: &str) {
        self.count += 1;
        line.clone_into(&mut self.last);
        self.step = step;
    }

    /// `None` when there is no readable file.
    fn of(path: &Path) -> Option<Self> {
        let mut reader = BufReader::new(File::open(path).ok()?);
        let mut digest = Self::default();
        let mut line = String::new();
        while reader.read_line(&mut line).ok()? > 0 {
            digest.push(Step(0), &line);
            line.clear();
        }
        Some(digest)
    }
}
