//! `tensorboard/`: scalars as TensorBoard reads them (TFRecord framing around `Event` messages). A new file begins with
//! every start and every rollback; its first event tells TensorBoard to forget later steps of older files.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use lockstep_proto::ids::Step;
use prost::Message;
use uuid::Uuid;

use super::file_error;
use crate::clock;
use crate::host;
use crate::store::{EpochRow, StepRow, StoreError};

/// tensorflow/core/util/event.proto, the fields used here.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    /// 1: a session starts; data of this step and later, from before, are void.
    #[prost(int32, tag = "1")]
    status: i32,
}

/// An event file, open at its end.
#[derive(Debug)]
pub(super) struct EventFile {
    path: PathBuf,
    file: BufWriter<File>,
}

impl EventFile {
    /// A new file that continues after `last`.
    pub(super) fn create(run_dir: &Path, last: Step) -> Result<Self, StoreError> {
        let dir = run_dir.join("tensorboard");
        std::fs::create_dir_all(&dir).map_err(file_error(&dir))?;
        let now = clock::unix_s();
        // TensorBoard orders files by name.
        let name = format!("events.out.tfevents.{:010}.{}.{}", now as u64, host::name(), Uuid::new_v4().simple());
        let path = dir.join(name);
        let file = BufWriter::new(File::create_new(&path).map_err(file_error(&path))?);
        let mut events = Self { path, file };
        let version = Some("brain.Event:2".to_owned());
        events.write(&Event { wall_time: now, file_version: version, ..Event::default() })?;
        events.write(&Event {
            wall_time: now,
            step: last.0 as i64 + 1,
            session_log: Some(SessionLog { status: 1 }),
            ..Event::default()
        })?;
        events.flush()?;
        Ok(events)
    }

    /// The scalars of a step.
    pub(super) fn step(&mut self, row: &StepRow) -> Result<(), StoreError> {
        let scalars = [
            ("train/loss", Some(row.loss)),
            ("train/error", Some(row.error)),
            ("train/lr", Some(row.lr)),
            ("speed/images_per_s", Some(row.images_per_s())),
            ("speed/data_s", Some(row.times.data)),
            ("speed/compute_s", Some(row.times.compute)),
            ("speed/comm_s", Some(row.times.comm)),
            ("speed/data_ready", row.ready),
        ];
        self.scalars(row.committed_at, row.step, &scalars)
    }

    /// The scalars of an epoch.
    pub(super) fn epoch(&mut self, row: &EpochRow) -> Result<(), StoreError> {
        let scalars = [
            ("epoch/train_loss", row.train_loss),
            ("epoch/train_error", row.train_error),
            ("test/loss", row.test_loss),
            ("test/error", row.test_error),
            ("test/error_top5", row.test_error_top5),
        ];
        self.scalars(clock::unix_s(), row.step, &scalars)
    }

    /// Hands everything to the system.
    pub(super) fn flush(&mut self) -> Result<(), StoreError> {
        self.file.flush().map_err(file_error(&self.path))
    }

    fn scalars(&mut self, wall_time: f64, step: Step, scalars: &[(&str, Option<f64>)]) -> Result<(), StoreError> {
        let value = scalars
            .iter()
            .filter_map(|(tag, value)| {
                value.map(|value| Value { tag: (*tag).to_owned(), simple_value: Some(value as f32) })
            })
            .collect();
        self.write(&Event { wall_time, step: step.0 as i64, summary: Some(Summary { value }), ..Event::default() })
    }

    fn write(&mut self, event: &Event) -> Result<(), StoreError> {
        let data = event.encode_to_vec();
        let len = (data.len() as u64).to_le_bytes();
        let record = [&len[..], &masked(&len).to_le_bytes(), &data, &masked(&data).to_le_bytes()].concat();
        self.file.write_all(&record).map_err(file_error(&self.path))
    }
}

/// TFRecord's checksum.
fn masked(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bit by bit: records are short.
fn crc32c(data: &[u8]) -> u32 {
    let shift = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
    !data.iter().fold(!0_u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), shift))
}

#[cfg(test)]
mod tests {
    use super::crc32c;

    #[test]
    fn checksum_is_castagnolis() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}
