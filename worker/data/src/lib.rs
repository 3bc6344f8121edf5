//! Data sets, and what a loader delivers of them. Without libtorch: the command line uses this crate too.
//!
//! ```text
//! recipe.data ──► open ──► Dataset ─► Loader ─► ReadAhead ─► rows: images NHWC f32 · labels · digest · what has no row
//!                  ├─ cifar    files   ┐ bytes in     ├─ order, draws, digest   (lockstep-proto)
//!                  ├─ shapes   built in┘ memory       └─ fault   injected by tests
//!                  ├─ image_folder ── tree: files ─┐
//!                  └─ shards ── index, store, cache ┴ image: decode, cut, resize, colour
//!                                │
//!                  normalize · augment · mix        audit   the digest that should have come
//!                                                   fetch   downloads a set
//!                                                   verify  looks at every image of a folder
//! ```
//! May never: know a tensor or a rank, keep state between two loads, or take a decision from a clock or a thread.
#![forbid(unsafe_code)]

mod ahead;
pub mod audit;
pub mod augment;
pub mod bench;
mod chosen;
pub mod cifar;
mod class_names;
mod delivered;
mod error;
mod fault;
pub mod fetch;
mod files;
pub mod image;
mod image_folder;
mod in_memory;
mod listing;
mod loader;
mod mix;
pub mod normalize;
mod samples;
pub mod shapes;
pub mod shards;
mod tree;
pub mod verify;

use std::sync::Arc;

use lockstep_proto::draws::Draws;
use lockstep_proto::ids::Epoch;
use lockstep_proto::message::DataIdentity;
use lockstep_proto::recipe::{self, DataKind};

pub use ahead::ReadAhead;
pub use audit::expected_digest;
pub use chosen::Chosen;
pub use class_names::class_names;
pub use delivered::{Delivered, Part, Partner, Wanted};
pub use error::{DataError, Place};
pub use fault::{FAULT_VARIABLE, LoaderFault};
pub use files::Files;
pub use image_folder::ImageFolder;
pub use in_memory::InMemory;
pub use loader::Loader;
pub use samples::{Samples, fingerprint};

/// Which part of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Split {
    /// What the weights learn from.
    Train,
    /// What the error is measured on.
    Test,
}

/// A set of labelled images with random access. The content of a sample never changes.
pub trait Dataset: Send + Sync {
    /// What the join check and the audit compare.
    fn identity(&self) -> &DataIdentity;

    /// Height, width and channels of every image; where they change in the course of a run, those of epoch 1.
    fn shape(&self) -> [usize; 3];

    /// Height, width and channels of training images in an epoch.
    fn train_shape(&self, _epoch: Epoch) -> [usize; 3] {
        self.shape()
    }

    /// Height, width and channels of test images.
    fn test_shape(&self) -> [usize; 3] {
        self.shape()
    }

    /// What people know a sample by, such as its file, relative to `data.path`, where there is such a thing.
    fn name(&self, _split: Split, _sample: u64) -> Option<String> {
        None
    }

    /// Whether its samples lie in memory, so that there is nothing to gain by reading ahead.
    fn is_in_memory(&self) -> bool {
        false
    }

    /// The set as it lies in memory, where it does: for a device that keeps a copy of its own.
    fn resident(&self) -> Option<&InMemory> {
        None
    }

    /// The class of a sample.
    fn label(&self, split: Split, sample: u64) -> u32;

    /// Writes one normalised image, NHWC (height × width × channels floats), augmented by `draws` when given. The length
    /// of `out` is that of [`train_shape`](Self::train_shape) or [`test_shape`](Self::test_shape), and says which.
    ///
    /// # Errors
    /// The image is broken (65) or cannot be read (66): its file, what is wrong, the remedy.
    fn image(&self, split: Split, sample: u64, draws: Option<&mut Draws>, out: &mut [f32]) -> Result<(), DataError>;
}

/// What events call a sample: its name, or where it has none its number.
pub fn sample_name(dataset: &dyn Dataset, split: Split, sample: u64) -> String {
    let numbered = || match split {
        Split::Train => format!("training sample {sample}"),
        Split::Test => format!("test sample {sample}"),
    };
    dataset.name(split, sample).unwrap_or_else(numbered)
}

/// Opens the set of a recipe: reads it into memory (CIFAR), draws it (`shapes`), lists it (`image-folder`), or reads its index
/// (`webdataset`). `_seed` is `train.seed`, for sets
/// that depend on it; none does yet: the same samples are there whatever the seed.
///
/// # Errors
/// Data that is missing (66) or wrong (65); see [`DataError::exit_code`].
pub fn open(data: &recipe::Data, _seed: u64) -> Result<Arc<dyn Dataset>, DataError> {
    let cifar = |layout: cifar::Layout| -> Result<InMemory, DataError> {
        let (train, test) = layout.read(data)?;
        Ok(InMemory::new(layout.kind, layout.num_classes, train, test, data))
    };
    Ok(Arc::new(match data.kind {
        DataKind::Cifar10 => cifar(cifar::CIFAR10)?,
        DataKind::Cifar100 => cifar(cifar::CIFAR100)?,
        DataKind::Shapes => {
            let (train, test) = shapes::generate(data);
            InMemory::new("shapes", shapes::NUM_CLASSES, train, test, data)
        }
        DataKind::ImageFolder => return Ok(Arc::new(ImageFolder::open(data)?)),
        DataKind::Webdataset => return Ok(Arc::new(shards::Shards::open(data)?)),
    }))
}
