//! What can be wrong with data, said so that a person can act on it.

use std::fmt;
use std::io;
use std::path::PathBuf;

use lockstep_jpeg::JpegError;
use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::Epoch;

use crate::image::ImageError;
use crate::shards::ShardError;

/// Data that is missing, damaged, or cannot be fetched.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The recipe names no folder.
    #[error("data.path is empty: run `lockstep data fetch {kind}`, then set data.path to the folder that it prints")]
    NoPath {
        /// `data.kind`
        kind: &'static str,
    },
    /// The folder of `data.path` is not there.
    #[error("{}: no such folder: run `lockstep data fetch {kind}` or set data.path", path.display())]
    NoFolder {
        /// `data.path`
        path: PathBuf,
        /// `data.kind`
        kind: &'static str,
    },
    /// A file of the set is not there.
    #[error("{}: no such file: run `lockstep data fetch {kind}` or set data.path", path.display())]
    NoFile {
        /// The file.
        path: PathBuf,
        /// `data.kind`
        kind: &'static str,
    },
    /// A file of the set cannot be read.
    #[error("{}: cannot read at offset {offset}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Bytes from its start.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// A file ends inside a record.
    #[error(
        "{}: truncated: it ends at offset {bytes}, inside record {record}, which began at offset {offset} and has \
         {record_bytes} bytes; a whole file has {expected} bytes: run `lockstep data fetch {kind}`",
        path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The record that is cut, from 0.
        record: u64,
        /// Where that record begins.
        offset: u64,
        /// Size of a record.
        record_bytes: u64,
        /// Size of a whole file.
        expected: u64,
        /// `data.kind`
        kind: &'static str,
    },
    /// A file has whole records, but too few or too many.
    #[error(
        "{}: {records} records, expected {expected}: it ends at offset {bytes}, not {expected_bytes}: run `lockstep \
         data fetch {kind}`",
        path.display()
    )]
    WrongCount {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// Records in it.
        records: u64,
        /// Records of a good file.
        expected: u64,
        /// Size of a good file.
        expected_bytes: u64,
        /// `data.kind`
        kind: &'static str,
    },
    /// A label that the set does not have.
    #[error(
        "{}: label {label} in record {record} (offset {offset}), expected 0…{}: the file is damaged or belongs to \
         another set: run `lockstep data fetch {kind}`",
        path.display(), num_classes - 1
    )]
    BadLabel {
        /// The file.
        path: PathBuf,
        /// The record, from 0.
        record: u64,
        /// Where its label byte lies.
        offset: u64,
        /// The label.
        label: u8,
        /// Labels are below this.
        num_classes: u32,
        /// `data.kind`
        kind: &'static str,
    },
    /// A split of an image folder is not there.
    #[error(
        "{}: no such folder: set data.path to a folder with train/<class>/ and val/<class>/ in it", path.display()
    )]
    NoSplit {
        /// `train` or `val`.
        path: PathBuf,
    },
    /// A split of an image folder is empty.
    #[error("{}: no images in it: they belong into a folder for each class", path.display())]
    NoImages {
        /// `train` or `val`.
        path: PathBuf,
    },
    /// A class that cannot have been learnt.
    #[error(
        "{}: val has the class {class} ({num_images} images), which train lacks: the labels would not fit; put its images \
         into train/{class} too, or take val/{class} away (`lockstep data verify` lists all such classes)",
        root.display()
    )]
    UnknownClass {
        /// `data.path`
        root: PathBuf,
        /// The first such class.
        class: String,
        /// Its images in `val`.
        num_images: usize,
    },
    /// An image that cannot be read.
    #[error(
        "{}: {error}: replace or remove it; `lockstep data verify {}` finds all such files", path.display(), root.display()
    )]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: ImageError,
        /// `data.path`
        root: PathBuf,
    },
    /// Shards that are missing, changed or out of reach.
    #[error(transparent)]
    Shards(#[from] ShardError),
    /// A sample could not be delivered.
    #[error("{at}: {source}")]
    Sample {
        /// Which.
        at: Place,
        /// Why.
        source: Box<DataError>,
    },
    /// Asked to fetch what cannot be.
    #[error("{kind} is {is}: there is nothing to fetch")]
    NothingToFetch {
        /// `data.kind`
        kind: &'static str,
        /// Where it comes from.
        is: &'static str,
    },
    /// The archive cannot be downloaded.
    #[error(
        "cannot download {url}: {reason}; without a network download it elsewhere, put it at {} and run this command \
         again",
        place.display()
    )]
    Unreachable {
        /// What was asked for.
        url: String,
        /// What went wrong.
        reason: String,
        /// Where a copy made by hand is found.
        place: PathBuf,
    },
    /// The archive is not the official one.
    #[error(
        "{}: md5 {found}, expected {expected}: the copy is damaged or is another file: remove it and fetch again",
        path.display()
    )]
    Checksum {
        /// The archive, or its address.
        path: PathBuf,
        /// Its md5.
        found: String,
        /// The official one's md5.
        expected: &'static str,
    },
    /// The archive does not hold what it should.
    #[error("{}: {reason}: not the archive of {kind}", path.display())]
    Archive {
        /// The archive, or its address.
        path: PathBuf,
        /// What is odd.
        reason: String,
        /// `data.kind`
        kind: &'static str,
    },
    /// The destination is there but not whole.
    #[error("{}: already there, and not whole: move it away and run this command again", path.display())]
    InTheWay {
        /// The folder.
        path: PathBuf,
    },
    /// The destination cannot be written.
    #[error("{}: cannot write: {source}", path.display())]
    Write {
        /// What was to be written.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Where in a run a sample was wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A training sample.
    Train {
        /// In which epoch.
        epoch: Epoch,
        /// At which position of its order.
        position: u64,
        /// Its number in the set.
        sample: u64,
    },
    /// A test sample.
    Test {
        /// Its number in the set.
        sample: u64,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Train { epoch, position, sample } => {
                write!(f, "position {position} of epoch {epoch} (training sample {sample})")
            }
            Self::Test { sample } => write!(f, "test sample {sample}"),
        }
    }
}

impl DataError {
    /// The same, with where in a run the sample was wanted.
    pub(crate) fn at(self, at: Place) -> Self {
        Self::Sample { at, source: Box::new(self) }
    }

    /// What is wrong with an image, if that is what it is: its bytes, the same wherever they are read. A file that is
    /// missing or unreadable is not, nor is a decoder without memory: another machine may have it.
    pub fn bad_image(&self) -> Option<&ImageError> {
        match self {
            Self::Image { error: ImageError::Jpeg(JpegError::Library { .. }), .. } => None,
            Self::Image { error, .. } => Some(error),
            Self::Sample { source, .. } => source.bad_image(),
            _ => None,
        }
    }

    /// How a process ends that meets this.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::NoPath { .. }
            | Self::NoFolder { .. }
            | Self::NoFile { .. }
            | Self::NoSplit { .. }
            | Self::Read { .. } => ExitCode::NoInput,
            Self::Sample { source, .. } => source.exit_code(),
            Self::Shards(error) => error.exit_code(),
            Self::Truncated { .. }
            | Self::WrongCount { .. }
            | Self::BadLabel { .. }
            | Self::NoImages { .. }
            | Self::UnknownClass { .. }
            | Self::Image { .. }
            | Self::Checksum { .. }
            | Self::Archive { .. } => ExitCode::Data,
            Self::NothingToFetch { .. } => ExitCode::Usage,
            Self::Unreachable { .. } => ExitCode::Unavailable,
            Self::InTheWay { .. } | Self::Write { .. } => ExitCode::CantCreate,
        }
    }
}
