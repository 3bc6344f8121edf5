//! What lies in an image folder: `train/<class>/*` and `val/<class>/*`, listed in an order that is the same everywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::Split;
use crate::error::DataError;

/// Files with these endings are taken for images, whatever is in them; others are strays.
const ENDINGS: [&str; 13] =
    ["jpg", "jpeg", "jpe", "jfif", "png", "gif", "webp", "bmp", "tif", "tiff", "ppm", "pgm", "heic"];

/// A file in a class's folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Its name.
    pub name: OsString,
    /// Its size, bytes.
    pub bytes: u64,
}

/// Both splits, as they lie on disk.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    root: PathBuf,
    train: BTreeMap<OsString, Vec<Entry>>,
    val: BTreeMap<OsString, Vec<Entry>>,
    /// What is neither a class's folder nor an image in one: hidden files, other endings, folders in folders.
    pub strays: Vec<PathBuf>,
}

/// The folder of a split.
pub fn folder(split: Split) -> &'static str {
    match split {
        Split::Train => "train",
        Split::Test => "val",
    }
}

impl Tree {
    /// Lists `root`. Links are followed.
    ///
    /// # Errors
    /// A folder that is missing or cannot be read (66).
    pub fn read(root: &Path) -> Result<Self, DataError> {
        let mut tree = Self { root: root.to_owned(), ..Self::default() };
        for split in [Split::Train, Split::Test] {
            let path = root.join(folder(split));
            if !path.is_dir() {
                return Err(DataError::NoSplit { path });
            }
            let mut classes = BTreeMap::new();
            for (name, is_folder, _) in list(&path)? {
                if !is_folder || hidden(&name) {
                    tree.strays.push(path.join(name));
                    continue;
                }
                let mut entries = Vec::new();
                for (file, is_folder, bytes) in list(&path.join(&name))? {
                    if is_folder || hidden(&file) || !is_image(&file) {
                        tree.strays.push(path.join(&name).join(file));
                    } else {
                        entries.push(Entry { name: file, bytes });
                    }
                }
                entries.sort();
                classes.insert(name, entries);
            }
            match split {
                Split::Train => tree.train = classes,
                Split::Test => tree.val = classes,
            }
        }
        tree.strays.sort();
        Ok(tree)
    }

    /// Class folders of a split with their files, both sorted by name.
    pub fn split(&self, split: Split) -> &BTreeMap<OsString, Vec<Entry>> {
        match split {
            Split::Train => &self.train,
            Split::Test => &self.val,
        }
    }

    /// The classes: names of folders of either split, sorted. Their places in this list are the labels.
    pub fn classes(&self) -> Vec<OsString> {
        self.train.keys().chain(self.val.keys()).collect::<BTreeSet<_>>().into_iter().cloned().collect()
    }

    /// Classes with images in `split` and none in the other, with their number of images.
    pub fn only_in(&self, split: Split) -> Vec<(&OsString, usize)> {
        let other = self.split(if split == Split::Train { Split::Test } else { Split::Train });
        let lacks = |name: &OsString| other.get(name).is_none_or(Vec::is_empty);
        let has = self.split(split).iter().filter(|(name, files)| !files.is_empty() && lacks(name));
        has.map(|(name, files)| (name, files.len())).collect()
    }

    /// Where a file lies.
    pub fn path(&self, split: Split, class: &OsString, file: &OsString) -> PathBuf {
        self.root.join(folder(split)).join(class).join(file)
    }
}

fn list(path: &Path) -> Result<Vec<(OsString, bool, u64)>, DataError> {
    let wrong = |source| DataError::Read { path: path.to_owned(), offset: 0, source };
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(wrong)? {
        let entry = entry.map_err(wrong)?;
        // follows links; one that leads nowhere counts as an empty file, which reading it will name
        let meta = fs::metadata(entry.path());
        let (is_folder, bytes) = meta.map_or((false, 0), |meta| (meta.is_dir(), meta.len()));
        found.push((entry.file_name(), is_folder, bytes));
    }
    Ok(found)
}

fn hidden(name: &OsString) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

fn is_image(name: &OsString) -> bool {
    let ending = Path::new(name).extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
    ending.is_some_and(|ending| ENDINGS.contains(&&*ending))
}
