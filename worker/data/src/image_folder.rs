//! `image-folder`: a set of image files, read and transformed as they are needed.
//!
//! Samples are numbered round the classes — the first file of every class, then the second of every class, … — so that
//! `data.limit` takes of all classes alike.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use lockstep_proto::draws::Draws;
use lockstep_proto::ids::Epoch;
use lockstep_proto::message::DataIdentity;
use lockstep_proto::recipe;

use crate::error::DataError;
use crate::image::{ImageError, Transform, Workspace};
use crate::listing;
use crate::tree::{Entry, Tree, folder};
use crate::{Dataset, Split};

/// `data.kind`
pub const KIND: &str = "image-folder";

thread_local! {
    static WORKSPACE: RefCell<Option<Workspace>> = const { RefCell::new(None) };
}

/// Runs `f` with this thread's room for images.
///
/// # Errors
/// What `f` says, or no memory.
pub(crate) fn with_workspace<T>(f: impl FnOnce(&mut Workspace) -> Result<T, ImageError>) -> Result<T, ImageError> {
    WORKSPACE.with_borrow_mut(|workspace| match workspace {
        Some(workspace) => f(workspace),
        None => f(workspace.insert(Workspace::new()?)),
    })
}

/// Reads a file into `bytes`, whose room is kept.
///
/// # Errors
/// Missing or unreadable (66).
pub(crate) fn read(path: &Path, bytes: &mut Vec<u8>) -> Result<(), DataError> {
    bytes.clear();
    let read = File::open(path).and_then(|mut file| file.read_to_end(bytes));
    read.map(drop).map_err(|source| DataError::Read { path: path.to_owned(), offset: bytes.len() as u64, source })
}

struct Sample {
    class: u32,
    entry: Entry,
}

/// A folder of images.
pub struct ImageFolder {
    root: PathBuf,
    classes: Vec<OsString>,
    train: Vec<Sample>,
    test: Vec<Sample>,
    identity: DataIdentity,
    transform: Transform,
}

impl ImageFolder {
    /// Lists the folder of a recipe; no image is opened.
    ///
    /// # Errors
    /// A folder is missing (66); no images, or a class of `val` that `train` lacks (65).
    pub fn open(data: &recipe::Data) -> Result<Self, DataError> {
        let root = PathBuf::from(&data.path);
        let tree = Tree::read(&root)?;
        if let Some((class, num_images)) = tree.only_in(Split::Test).first() {
            let (class, num_images) = (class.to_string_lossy().into_owned(), *num_images);
            return Err(DataError::UnknownClass { root, class, num_images });
        }
        let classes = tree.classes();
        let train = number(&tree, Split::Train, &classes, data.limit);
        let test = number(&tree, Split::Test, &classes, data.test_limit);
        for (split, samples) in [(Split::Train, &train), (Split::Test, &test)] {
            if samples.is_empty() {
                return Err(DataError::NoImages { path: root.join(folder(split)) });
            }
        }
        let identity = DataIdentity {
            name: KIND.to_owned(),
            num_train: train.len() as u64,
            num_test: test.len() as u64,
            // invariant: a folder does not hold 2³² folders
            num_classes: classes.len() as u32,
            fingerprint: fingerprint(&classes, [&train, &test]),
        };
        Ok(Self { root, classes, train, test, identity, transform: Transform::new(data) })
    }

    /// Names of the classes, in the order of their labels.
    pub fn classes(&self) -> &[OsString] {
        &self.classes
    }

    /// The file of a sample.
    pub fn path(&self, split: Split, sample: u64) -> PathBuf {
        let Sample { class, entry } = self.sample(split, sample);
        self.root.join(folder(split)).join(&self.classes[*class as usize]).join(&entry.name)
    }

    /// The class of a sample, and its file in the class's folder.
    pub(crate) fn entry(&self, split: Split, sample: u64) -> (u32, &Entry) {
        let Sample { class, entry } = self.sample(split, sample);
        (*class, entry)
    }

    fn sample(&self, split: Split, sample: u64) -> &Sample {
        match split {
            Split::Train => &self.train[sample as usize],
            Split::Test => &self.test[sample as usize],
        }
    }
}

impl Dataset for ImageFolder {
    fn identity(&self) -> &DataIdentity {
        &self.identity
    }

    fn shape(&self) -> [usize; 3] {
        self.train_shape(Epoch(1))
    }

    fn train_shape(&self, epoch: Epoch) -> [usize; 3] {
        let side = self.transform.train_side(epoch);
        [side, side, 3]
    }

    fn test_shape(&self) -> [usize; 3] {
        let side = self.transform.eval_side();
        [side, side, 3]
    }

    fn label(&self, split: Split, sample: u64) -> u32 {
        self.sample(split, sample).class
    }

    fn name(&self, split: Split, sample: u64) -> Option<String> {
        let path = self.path(split, sample);
        Some(path.strip_prefix(&self.root).unwrap_or(&path).to_string_lossy().into_owned())
    }

    fn image(&self, split: Split, sample: u64, draws: Option<&mut Draws>, out: &mut [f32]) -> Result<(), DataError> {
        let path = self.path(split, sample);
        let mut bytes = with_workspace(|workspace| Ok(std::mem::take(&mut workspace.file))).unwrap_or_default();
        read(&path, &mut bytes)?;
        let result = with_workspace(|workspace| {
            let result = self.transform.apply(&bytes, draws, workspace, out);
            workspace.file = bytes;
            result
        });
        result.map_err(|error| DataError::Image { path, error, root: self.root.clone() })
    }
}

/// The first `limit` samples (0: all), round the classes.
fn number(tree: &Tree, split: Split, classes: &[OsString], limit: u64) -> Vec<Sample> {
    let folders = tree.split(split);
    let files = |class: &OsString| folders.get(class).map_or(&[][..], Vec::as_slice);
    let most = classes.iter().map(|class| files(class).len()).max().unwrap_or(0);
    let rounds = (0..most).flat_map(|round| {
        let labelled = classes.iter().enumerate();
        labelled.filter_map(move |(label, class)| Some((label as u32, files(class).get(round)?)))
    });
    let samples = rounds.map(|(class, entry)| Sample { class, entry: entry.clone() });
    samples.take(if limit == 0 { usize::MAX } else { limit as usize }).collect()
}

fn fingerprint(classes: &[OsString], splits: [&[Sample]; 2]) -> String {
    let classes = classes.iter().map(|class| class.as_encoded_bytes());
    let splits = splits.map(|samples| {
        samples.iter().map(|Sample { class, entry }| (*class, entry.bytes, entry.name.as_encoded_bytes()))
    });
    listing::fingerprint(listing::IMAGE_FOLDER, classes, splits)
}
