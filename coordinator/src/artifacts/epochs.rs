//! `epochs.csv`: a row an epoch, the table `epochs` as text. Small, so always written as a whole.

use std::fmt::Write;
use std::path::Path;

use super::replace;
use crate::store::{EpochRow, StoreError};

const HEADER: &str = "epoch,step,images,lr,train_loss,train_error,test_loss,test_error,test_error_top5,seconds,\
                      images_per_s,world_size,skipped,test_skipped\n";

/// Replaces the file.
pub(super) fn write(run_dir: &Path, rows: &[EpochRow]) -> Result<(), StoreError> {
    let mut text = HEADER.to_owned();
    for row in rows {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{},{},{},{},{},{},{},{},{},{},{},{},{},{}",
            row.epoch,
            row.step,
            row.images,
            field(row.lr),
            field(row.train_loss),
            field(row.train_error),
            field(row.test_loss),
            field(row.test_error),
            field(row.test_error_top5),
            row.seconds,
            field(row.images_per_s),
            row.world_size,
            row.skipped,
            row.test_skipped,
        );
    }
    replace(&run_dir.join("epochs.csv"), text.as_bytes())
}

fn field(value: Option<f64>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}
