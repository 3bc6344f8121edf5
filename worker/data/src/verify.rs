//! `lockstep data verify`: looks at every image of a folder or of shards, and names what is broken, odd, or in the wrong place.
//!
//! Broken is what training would end at; odd is what it reads and a person may not expect.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use crate::Split;
use crate::error::DataError;
use crate::image::{Format, Orientation, Whole};
use crate::image_folder::{read, with_workspace};
use crate::shards;
use crate::tree::{Tree, folder};

/// What kind of finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A file that cannot be read from disk.
    Unreadable,
    /// A shard that is missing, or not what its index says.
    Shard,
    /// An image that is damaged or of a kind that is not read.
    Broken,
    /// A class with images in `val` and none in `train`.
    UnknownClass,
    /// A class with images in `train` and none in `val`.
    UntestedClass,
    /// A class folder without images.
    EmptyClass,
    /// Not an image in a class's folder: no run sees it.
    Stray,
    /// A file name that is in several folders.
    Twice,
    /// An ending that belongs to another format.
    Misnamed,
    /// Four inks.
    Cmyk,
    /// EXIF says that the picture is to be turned.
    Turned,
    /// libjpeg-turbo found something odd that did no harm.
    Warning,
    /// A side of fewer than 16 pixels.
    Tiny,
}

impl Kind {
    /// Whether a run would not start, or end at it.
    pub fn is_error(self) -> bool {
        matches!(self, Self::Unreadable | Self::Shard | Self::Broken | Self::UnknownClass)
    }

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Shard => "shard",
            Self::Broken => "broken",
            Self::UnknownClass => "unknown_class",
            Self::UntestedClass => "untested_class",
            Self::EmptyClass => "empty_class",
            Self::Stray => "stray",
            Self::Twice => "twice",
            Self::Misnamed => "misnamed",
            Self::Cmyk => "cmyk",
            Self::Turned => "turned",
            Self::Warning => "warning",
            Self::Tiny => "tiny",
        }
    }
}

/// Something that a person should know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// What kind.
    pub kind: Kind,
    /// The file or folder.
    pub path: PathBuf,
    /// In words.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.what)
    }
}

/// What was found in a folder.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Classes of either split.
    pub num_classes: u64,
    /// Images of the training split.
    pub num_train: u64,
    /// Images of the test split.
    pub num_test: u64,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Mean of red, green, blue over every pixel of every readable training image, as a fraction of full light.
    pub mean: [f64; 3],
    /// Their standard deviations.
    pub std: [f64; 3],
    /// Errors first, then by kind and path.
    pub findings: Vec<Finding>,
}

impl Report {
    /// How many findings would end a run.
    pub fn num_errors(&self) -> usize {
        self.findings.iter().filter(|finding| finding.kind.is_error()).count()
    }

    /// How many findings of each kind there are.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        let mut counts = BTreeMap::new();
        self.findings.iter().for_each(|finding| *counts.entry(finding.kind.name()).or_insert(0) += 1);
        counts
    }
}

/// Exact sums over pixels.
#[derive(Clone, Copy, Default)]
pub(crate) struct Moments {
    pixels: u64,
    sum: [u64; 3],
    squares: [u64; 3],
}

impl Moments {
    fn of(rgb: &[u8]) -> Self {
        let mut moments = Self { pixels: (rgb.len() / 3) as u64, ..Self::default() };
        for pixel in rgb.chunks_exact(3) {
            for (channel, &value) in pixel.iter().enumerate() {
                moments.sum[channel] += u64::from(value);
                moments.squares[channel] += u64::from(value) * u64::from(value);
            }
        }
        moments
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            pixels: self.pixels + other.pixels,
            sum: std::array::from_fn(|c| self.sum[c] + other.sum[c]),
            squares: std::array::from_fn(|c| self.squares[c] + other.squares[c]),
        }
    }

    pub(crate) fn mean_and_deviation(&self, channel: usize) -> (f64, f64) {
        let pixels = self.pixels.max(1) as f64;
        let mean = self.sum[channel] as f64 / pixels;
        (mean / 255.0, (self.squares[channel] as f64 / pixels - mean * mean).max(0.0).sqrt() / 255.0)
    }
}

/// Looks at every image of a folder, or of shards in a folder or behind a URL, in parallel on rayon's threads; `progress`
/// hears of images done, out of all.
///
/// # Errors
/// A folder or index that is missing or cannot be read. Everything else is a finding.
pub fn verify(root: &Path, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<Report, DataError> {
    if shards::is_shards(root) {
        return shards::verify(root, progress);
    }
    let tree = Tree::read(root)?;
    let mut files = Vec::new();
    for split in [Split::Train, Split::Test] {
        for (class, entries) in tree.split(split) {
            files.extend(entries.iter().map(|entry| (split, class, entry)));
        }
    }
    let done = AtomicU64::new(0);
    let total = files.len() as u64;
    let looked = files.par_iter().map(|(split, class, entry)| {
        let (findings, moments) = look(&tree.path(*split, class, &entry.name));
        progress(done.fetch_add(1, Ordering::Relaxed) + 1, total);
        (findings, if *split == Split::Train { moments } else { Moments::default() })
    });
    let (findings, moments): (Vec<_>, Vec<_>) = looked.unzip();
    let moments = moments.into_iter().fold(Moments::default(), Moments::plus);
    let mut findings: Vec<Finding> = findings.into_iter().flatten().collect();
    findings.extend(of_classes(&tree, root));
    findings.extend(twice(&tree));
    let stray = |path: &PathBuf| Finding {
        kind: Kind::Stray,
        path: path.clone(),
        what: "no image by its name or place: no run sees it".into(),
    };
    findings.extend(tree.strays.iter().map(stray));
    findings.sort();
    let num = |split| files.iter().filter(|(of, ..)| *of == split).count() as u64;
    Ok(Report {
        num_classes: tree.classes().len() as u64,
        num_train: num(Split::Train),
        num_test: num(Split::Test),
        bytes: files.iter().map(|(.., entry)| entry.bytes).sum(),
        mean: std::array::from_fn(|channel| moments.mean_and_deviation(channel).0),
        std: std::array::from_fn(|channel| moments.mean_and_deviation(channel).1),
        findings,
    })
}

/// Reads one image, all of it.
fn look(path: &Path) -> (Vec<Finding>, Moments) {
    let finding = |kind, what: String| Finding { kind, path: path.to_owned(), what };
    let mut bytes = Vec::new();
    if let Err(error) = read(path, &mut bytes) {
        let what = match error {
            DataError::Read { source, .. } => format!("cannot be read: {source}"),
            other => other.to_string(),
        };
        return (vec![finding(Kind::Unreadable, what)], Moments::default());
    }
    look_at(path, &bytes)
}

/// Looks at the bytes of one image; its name tells what it should be.
pub(crate) fn look_at(path: &Path, bytes: &[u8]) -> (Vec<Finding>, Moments) {
    let finding = |kind, what: String| Finding { kind, path: path.to_owned(), what };
    let looked = with_workspace(|workspace| {
        let whole = workspace.whole(bytes)?;
        let odd = oddities(path, bytes, &whole).into_iter().map(|(kind, what)| finding(kind, what)).collect();
        Ok((odd, Moments::of(whole.rgb)))
    });
    looked.unwrap_or_else(|error| (vec![finding(Kind::Broken, error.to_string())], Moments::default()))
}

fn oddities(path: &Path, bytes: &[u8], whole: &Whole<'_>) -> Vec<(Kind, String)> {
    let mut odd = Vec::new();
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let (fits, is) = match whole.format {
        Format::Jpeg => (matches!(&*ending, "jpg" | "jpeg" | "jpe" | "jfif"), "a JPEG"),
        Format::Png => (ending == "png", "a PNG"),
    };
    if !fits {
        odd.push((Kind::Misnamed, format!("{is}, named .{ending}: read as what it is")));
    }
    if whole.num_inks == 4 {
        odd.push((Kind::Cmyk, "a JPEG of four inks (CMYK): turned to RGB as Pillow does".into()));
    }
    if whole.format == Format::Jpeg && Orientation::of_jpeg(bytes) != Orientation::default() {
        odd.push((Kind::Turned, "its EXIF says to turn it: done only with data.image.exif = true".into()));
    }
    if let Some(warning) = &whole.warning {
        odd.push((Kind::Warning, format!("harmless: {warning}")));
    }
    if whole.width.min(whole.height) < 16 {
        odd.push((Kind::Tiny, format!("only {} × {} pixels", whole.width, whole.height)));
    }
    odd
}

fn of_classes(tree: &Tree, root: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |kind, split, class: &OsString, what| {
        findings.push(Finding { kind, path: root.join(folder(split)).join(class), what });
    };
    for (class, num) in tree.only_in(Split::Test) {
        let what = format!("a class with {num} images in val and none in train: no run starts with it");
        add(Kind::UnknownClass, Split::Test, class, what);
    }
    for (class, num) in tree.only_in(Split::Train) {
        let what = format!("a class with {num} images in train and none in val: it is never tested");
        add(Kind::UntestedClass, Split::Train, class, what);
    }
    for split in [Split::Train, Split::Test] {
        for (class, _) in tree.split(split).iter().filter(|(_, files)| files.is_empty()) {
            add(Kind::EmptyClass, split, class, "a class folder without images".into());
        }
    }
    findings
}

/// Names that stand in several folders, each told at its second place and after.
fn twice(tree: &Tree) -> Vec<Finding> {
    let mut first: BTreeMap<&OsString, PathBuf> = BTreeMap::new();
    let mut findings = Vec::new();
    for split in [Split::Train, Split::Test] {
        for (class, entry) in tree.split(split).iter().flat_map(|(class, files)| files.iter().map(move |f| (class, f)))
        {
            let path = tree.path(split, class, &entry.name);
            if let Some(other) = first.get(&entry.name) {
                let what = format!("the same name as {}", other.display());
                findings.push(Finding { kind: Kind::Twice, path, what });
            } else {
                first.insert(&entry.name, path);
            }
        }
    }
    findings
}
