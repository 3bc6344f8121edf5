//! The binary files of CIFAR-10 and CIFAR-100 (Krizhevsky 2009).
//!
//! ```text
//! CIFAR-10   record = label (1) · red plane (1024) · green · blue            3073 bytes
//! CIFAR-100  record = coarse label (1) · fine label (1) · planes as above    3074 bytes
//! ```
//! Every file is checked for its size, also where `data.limit` stops reading early; every record that is read is
//! checked for its label.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use lockstep_proto::recipe;

use crate::error::DataError;
use crate::samples::Samples;

/// Height, width, channels of both sets.
pub const SHAPE: [usize; 3] = [32, 32, 3];
const IMAGE_BYTES: usize = 32 * 32 * 3;

/// How one of the two sets lies on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// `data.kind`
    pub kind: &'static str,
    /// Labels are below this.
    pub num_classes: u32,
    /// Bytes before the pixels; the last of them is the label that is used.
    pub label_bytes: usize,
    /// Training files, in the order of their samples.
    pub train: &'static [&'static str],
    /// Test files.
    pub test: &'static [&'static str],
    /// Records of each training file.
    pub train_records: u64,
    /// Records of each test file.
    pub test_records: u64,
}

/// CIFAR-10: 50,000 + 10,000 images, 10 classes.
pub const CIFAR10: Layout = Layout {
    kind: "cifar10",
    num_classes: 10,
    label_bytes: 1,
    train: &["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"],
    test: &["test_batch.bin"],
    train_records: 10_000,
    test_records: 10_000,
};

/// CIFAR-100: 50,000 + 10,000 images, 100 fine classes.
pub const CIFAR100: Layout = Layout {
    kind: "cifar100",
    num_classes: 100,
    label_bytes: 2,
    train: &["train.bin"],
    test: &["test.bin"],
    train_records: 50_000,
    test_records: 10_000,
};

impl Layout {
    /// Bytes of a record.
    pub fn record_bytes(&self) -> u64 {
        (self.label_bytes + IMAGE_BYTES) as u64
    }

    /// Every file of the set with its size in bytes.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let sized = |records: u64| move |name: &&'static str| (*name, records * self.record_bytes());
        self.train.iter().map(sized(self.train_records)).chain(self.test.iter().map(sized(self.test_records)))
    }

    /// Reads both splits from `data.path`, the first `data.limit` and `data.test_limit` samples of them.
    ///
    /// # Errors
    /// Folder or file missing or unreadable (66); a file of another size, a label out of range (65).
    pub fn read(&self, data: &recipe::Data) -> Result<(Samples, Samples), DataError> {
        if data.path.is_empty() {
            return Err(DataError::NoPath { kind: self.kind });
        }
        let folder = Path::new(&data.path);
        if !folder.is_dir() {
            return Err(DataError::NoFolder { path: folder.to_owned(), kind: self.kind });
        }
        let train = self.read_split(folder, self.train, self.train_records, data.limit)?;
        let test = self.read_split(folder, self.test, self.test_records, data.test_limit)?;
        Ok((train, test))
    }

    fn read_split(&self, folder: &Path, files: &[&str], records: u64, limit: u64) -> Result<Samples, DataError> {
        let total = records * files.len() as u64;
        let mut wanted = if limit == 0 { total } else { limit.min(total) };
        let mut samples = Samples::with_capacity(SHAPE, wanted as usize);
        for name in files {
            let path = folder.join(name);
            let file = self.open(&path, records)?;
            let here = wanted.min(records);
            self.read_records(&path, file, here, &mut samples)?;
            wanted -= here;
        }
        Ok(samples)
    }

    /// Opens a file and checks its size.
    fn open(&self, path: &Path, records: u64) -> Result<File, DataError> {
        let file = File::open(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => DataError::NoFile { path: path.to_owned(), kind: self.kind },
            _ => DataError::Read { path: path.to_owned(), offset: 0, source },
        })?;
        let metadata =
            file.metadata().map_err(|source| DataError::Read { path: path.to_owned(), offset: 0, source })?;
        let (path, bytes, record_bytes) = (path.to_owned(), metadata.len(), self.record_bytes());
        let (record, expected_bytes) = (bytes / record_bytes, records * record_bytes);
        if bytes % record_bytes != 0 {
            let offset = record * record_bytes;
            return Err(DataError::Truncated {
                path,
                bytes,
                record,
                offset,
                record_bytes,
                expected: expected_bytes,
                kind: self.kind,
            });
        }
        if bytes != expected_bytes {
            let (records, expected) = (record, records);
            return Err(DataError::WrongCount { path, bytes, records, expected, expected_bytes, kind: self.kind });
        }
        Ok(file)
    }

    fn read_records(&self, path: &Path, file: File, count: u64, samples: &mut Samples) -> Result<(), DataError> {
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let mut record = vec![0; self.record_bytes() as usize];
        for index in 0..count {
            let start = index * self.record_bytes();
            reader.read_exact(&mut record).map_err(|source| DataError::Read {
                path: path.to_owned(),
                offset: start,
                source,
            })?;
            let label = record[self.label_bytes - 1];
            if u32::from(label) >= self.num_classes {
                return Err(DataError::BadLabel {
                    path: path.to_owned(),
                    record: index,
                    offset: start + self.label_bytes as u64 - 1,
                    label,
                    num_classes: self.num_classes,
                    kind: self.kind,
                });
            }
            samples.push_planar(&record[self.label_bytes..], label);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TINY: Layout =
        Layout { train: &["a.bin", "b.bin"], test: &["t.bin"], train_records: 3, test_records: 2, ..CIFAR10 };
    const TINY_100: Layout =
        Layout { train: &["a.bin"], train_records: 2, test: &["t.bin"], test_records: 1, ..CIFAR100 };

    /// Record `index` has label `index`, and value `channel + 10·index` everywhere.
    fn record(label_bytes: usize, index: u8) -> Vec<u8> {
        let mut bytes = vec![99; label_bytes];
        bytes[label_bytes - 1] = index;
        (0..3).for_each(|channel| bytes.extend([channel + 10 * index; 1024]));
        bytes
    }

    fn folder(layout: &Layout) -> (tempfile::TempDir, recipe::Data) {
        let folder = tempfile::tempdir().unwrap();
        let mut next = 0;
        for (name, bytes) in layout.files() {
            let count = bytes / layout.record_bytes();
            let content: Vec<u8> = (0..count).flat_map(|i| record(layout.label_bytes, next + i as u8)).collect();
            next += count as u8;
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        let data = recipe::Data { path: folder.path().to_str().unwrap().to_owned(), ..Default::default() };
        (folder, data)
    }

    fn message(folder: &tempfile::TempDir, error: &DataError) -> String {
        error.to_string().replace(folder.path().to_str().unwrap(), "DIR")
    }

    #[test]
    fn both_layouts_read_labels_and_interleaved_pixels_in_file_order() {
        for (layout, num_train) in [(TINY, 6), (TINY_100, 2)] {
            let (_folder, data) = folder(&layout);
            let (train, test) = layout.read(&data).unwrap();
            assert_eq!((train.len(), test.len()), (num_train, layout.test_records));
            for sample in 0..num_train {
                assert_eq!(train.label(sample), sample as u32);
                let first = 10 * sample as u8;
                assert_eq!(train.image(sample)[3 * 77..][..3], [first, first + 1, first + 2]);
            }
            assert_eq!(test.label(0), num_train as u32);
        }
    }

    #[test]
    fn limits_take_the_first_samples_across_files() {
        let (_folder, mut data) = folder(&TINY);
        (data.limit, data.test_limit) = (4, 1);
        let (train, test) = TINY.read(&data).unwrap();
        assert_eq!((train.len(), train.label(3), test.len()), (4, 3, 1));
        (data.limit, data.test_limit) = (100, 100);
        let (train, test) = TINY.read(&data).unwrap();
        assert_eq!((train.len(), test.len()), (6, 2));
    }

    #[test]
    fn a_missing_folder_or_file_is_named_with_the_remedy() {
        let (folder, data) = folder(&TINY);
        std::fs::remove_file(folder.path().join("b.bin")).unwrap();
        let error = TINY.read(&data).unwrap_err();
        assert_eq!(
            message(&folder, &error),
            "DIR/b.bin: no such file: run `lockstep data fetch cifar10` or set data.path"
        );
        assert_eq!(error.exit_code().code(), 66);

        let gone = recipe::Data { path: "no/such".to_owned(), ..Default::default() };
        let error = TINY.read(&gone).unwrap_err();
        assert_eq!(error.to_string(), "no/such: no such folder: run `lockstep data fetch cifar10` or set data.path");
        assert_eq!(error.exit_code().code(), 66);

        let error = CIFAR100.read(&recipe::Data::default()).unwrap_err();
        assert!(error.to_string().starts_with("data.path is empty: run `lockstep data fetch cifar100`"), "{error}");
        assert_eq!(error.exit_code().code(), 66);
    }

    #[test]
    fn a_truncated_file_is_named_with_the_record_that_is_cut() {
        let (folder, mut data) = folder(&TINY);
        let path = folder.path().join("b.bin");
        File::options().write(true).open(&path).unwrap().set_len(2 * 3073 + 5).unwrap();
        data.limit = 1; // sizes are checked all the same
        let error = TINY.read(&data).unwrap_err();
        assert_eq!(
            message(&folder, &error),
            "DIR/b.bin: truncated: it ends at offset 6151, inside record 2, which began at offset 6146 and has 3073 \
             bytes; a whole file has 9219 bytes: run `lockstep data fetch cifar10`"
        );
        assert_eq!(error.exit_code().code(), 65);
    }

    #[test]
    fn a_wrong_count_is_named_with_both_sizes() {
        let (folder, data) = folder(&TINY);
        File::options().write(true).open(folder.path().join("t.bin")).unwrap().set_len(3 * 3073).unwrap();
        let error = TINY.read(&data).unwrap_err();
        assert_eq!(
            message(&folder, &error),
            "DIR/t.bin: 3 records, expected 2: it ends at offset 9219, not 6146: run `lockstep data fetch cifar10`"
        );
        assert_eq!(error.exit_code().code(), 65);
    }

    #[test]
    fn a_label_out_of_range_is_named_with_record_and_offset() {
        let (folder, data) = folder(&TINY);
        let path = folder.path().join("a.bin");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[2 * 3073] = 11;
        std::fs::write(&path, bytes).unwrap();
        let error = TINY.read(&data).unwrap_err();
        assert_eq!(
            message(&folder, &error),
            "DIR/a.bin: label 11 in record 2 (offset 6146), expected 0…9: the file is damaged or belongs to another \
             set: run `lockstep data fetch cifar10`"
        );
        assert_eq!(error.exit_code().code(), 65);
    }

    #[test]
    fn the_fine_label_is_the_one_that_counts() {
        let (folder, data) = folder(&TINY_100);
        let path = folder.path().join("a.bin");
        let mut bytes = std::fs::read(&path).unwrap();
        (bytes[3074], bytes[3075]) = (200, 99); // the coarse label is not looked at
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(TINY_100.read(&data).unwrap().0.label(1), 99);
        bytes[3075] = 100;
        std::fs::write(&path, &bytes).unwrap();
        let error = TINY_100.read(&data).unwrap_err();
        assert!(error.to_string().contains("label 100 in record 1 (offset 3075), expected 0…99"), "{error}");
    }
}
