//! `lockstep data pack`: a folder of images as tar shards with an index.
//!
//! ```text
//! SRC/train/<class>/* ──► samples round the classes ──► read, scale, encode: side by side ──► one shard after another
//!                                     DEST/train/000000.tar … │ hashed, renamed when whole, then a line in the journal
//!                                     DEST/lockstep-index.json when all are there; the journal goes
//! ```
//! Samples lie in the order of their numbers, which goes round the classes: so a run from shards takes the course of one
//! from the folder, any stretch has of all classes alike, and `data.limit` reads the first shards only. A shuffled order
//! would give up the first, an order of classes the others.
//!
//! Which samples a shard has follows from their sizes alone, so the same folder and options give the same bytes, with any
//! number of threads and however often it was interrupted.

mod journal;
mod shrink;
mod writer;

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};

use lockstep_proto::recipe;
use rayon::prelude::*;

use super::error::ShardError;
use super::index::{Change, INDEX, Index, Maker, Sample, Shard, write_whole};
use crate::error::DataError;
use crate::image::Format;
use crate::image_folder::{ImageFolder, read};
use crate::tree::folder;
use crate::{Dataset, Split};
use journal::Journal;
use writer::Writer;

/// How to pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// A shard ends before it would be larger.
    pub shard_bytes: u64,
    /// A shard has no more samples (0: any number).
    pub shard_samples: u64,
    /// Scale images with a longer short side to this one, pixels.
    pub short_side: Option<u32>,
    /// Quality of JPEGs that are written, 1 … 100; without `short_side` every image is.
    pub quality: Option<u8>,
    /// Images that are worked on at once.
    pub threads: usize,
}

impl Options {
    fn change(&self) -> Option<Change> {
        let is_wanted = self.short_side.is_some() || self.quality.is_some();
        is_wanted.then(|| Change { short_side: self.short_side, quality: self.quality.unwrap_or(90) })
    }
}

/// What was packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// The index.
    pub index: Index,
    /// Samples that were there already.
    pub num_kept: u64,
    /// Images that could not be read, and why: packed as they are, so that every sample keeps its number.
    pub broken: Vec<(PathBuf, String)>,
}

/// Samples done, out of all.
pub type Progress<'a> = dyn Fn(u64, u64) + Sync + 'a;

/// Packs a folder of images into `dest`. What an interrupted call has finished is not done again.
///
/// # Errors
/// No folder of images; a file that cannot be read or changes meanwhile; `dest` cannot be written, holds something else,
/// or is being written by another process.
pub fn pack(source: &Path, dest: &Path, options: &Options, progress: &Progress<'_>) -> Result<Packed, DataError> {
    let data = recipe::Data { path: source.to_string_lossy().into_owned(), ..recipe::Data::default() };
    let images = ImageFolder::open(&data)?;
    if let (Ok(inside), Ok(outside)) = (std::path::absolute(dest), std::path::absolute(source))
        && inside.starts_with(&outside)
    {
        let what = format!("it lies in {}, whose images are to be packed: name another", source.display());
        return Err(ShardError::InTheWay { path: dest.to_owned(), what }.into());
    }
    let write_error = |path: &Path| {
        let path = path.to_owned();
        move |source| DataError::Write { path, source }
    };
    for split in [Split::Train, Split::Test] {
        let folder = dest.join(folder(split));
        fs::create_dir_all(&folder).map_err(write_error(&folder))?;
    }
    let classes = images.classes().iter().map(|class| text(class, source)).collect::<Result<Vec<_>, _>>()?;
    let path = dest.join(INDEX);
    if let Some(index) = finished(&path, &images, &classes, options)? {
        let num_kept = index.num_samples(Split::Train) + index.num_samples(Split::Test);
        return Ok(Packed { index, num_kept, broken: Vec::new() });
    }
    let mut journal = Journal::open(dest, &images.identity().fingerprint, options)?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads).build();
    let pool = pool.map_err(|error| DataError::Write { path: path.clone(), source: std::io::Error::other(error) })?;
    let identity = images.identity();
    let total = identity.num_train + identity.num_test;
    let mut job = Job { images: &images, source, dest, options, pool, progress, total, done: 0 };
    let num_kept = journal.num_samples();
    let splits = [(Split::Train, identity.num_train), (Split::Test, identity.num_test)];
    for (split, num) in splits {
        job.split(split, num, &mut journal)?;
    }
    let (train, val, broken) = journal.records();
    let index = Index::new(Maker::Pack { changed: options.change() }, classes, [train, val]);
    let json = index.to_json().map_err(|error| write_error(&path)(error.into()))?;
    write_whole(&path, json.as_bytes()).map_err(write_error(&path))?;
    journal.remove();
    Ok(Packed { index, num_kept, broken })
}

/// The index of an earlier call, if it is of the same images.
fn finished(
    path: &Path,
    images: &ImageFolder,
    classes: &[String],
    options: &Options,
) -> Result<Option<Index>, DataError> {
    let Ok(bytes) = fs::read(path) else { return Ok(None) };
    let index = Index::parse(&bytes, &path.display().to_string())?;
    let same = |split: Split| {
        let packed = index.shards(split).iter().flat_map(|shard| &shard.samples);
        let num = index.num_samples(split);
        let whole = match split {
            Split::Train => images.identity().num_train,
            Split::Test => images.identity().num_test,
        };
        let fits = |(number, sample): (u64, &Sample)| {
            let (class, entry) = images.entry(split, number);
            let sized = options.change().is_some() || entry.bytes == sample.length;
            sized && class == sample.class && entry.name.to_str() == Some(&sample.name)
        };
        num == whole && (0..).zip(packed).all(fits)
    };
    let is_same = index.made_by == Maker::Pack { changed: options.change() } && index.classes == classes;
    if is_same && same(Split::Train) && same(Split::Test) {
        return Ok(Some(index));
    }
    let what = "shards of other images, or packed with other options".to_owned();
    Err(ShardError::InTheWay { path: path.to_owned(), what }.into())
}

fn text(name: &std::ffi::OsStr, around: &Path) -> Result<String, DataError> {
    let what = || ShardError::Member {
        address: around.display().to_string(),
        member: name.to_string_lossy().into_owned(),
        what: "its name is not UTF-8, so no index can have it: rename it".into(),
    };
    Ok(name.to_str().ok_or_else(what)?.to_owned())
}

struct Job<'a> {
    images: &'a ImageFolder,
    source: &'a Path,
    dest: &'a Path,
    options: &'a Options,
    pool: rayon::ThreadPool,
    progress: &'a Progress<'a>,
    total: u64,
    done: u64,
}

/// An image on its way into a shard.
struct Item {
    name: String,
    class: u32,
    bytes: Vec<u8>,
    broken: Option<String>,
}

impl Job<'_> {
    /// Writes what a split still lacks.
    fn split(&mut self, split: Split, num: u64, journal: &mut Journal) -> Result<(), DataError> {
        let mut next = journal.num_samples_of(split);
        self.done += next;
        (self.progress)(self.done, self.total);
        let mut ready: VecDeque<Item> = VecDeque::new();
        while next < num {
            let name = format!("{}/{:06}.tar", folder(split), journal.num_shards(split));
            let path = self.dest.join(&name);
            let mut writer = Writer::create(&path)?;
            let mut samples: Vec<Sample> = Vec::new();
            let mut broken = Vec::new();
            loop {
                if ready.is_empty() {
                    ready = self.items(split, next..num)?;
                }
                let Some(item) = ready.front() else { break };
                let is_full = self.options.shard_samples > 0 && samples.len() as u64 >= self.options.shard_samples
                    || writer.bytes_with(item.bytes.len() as u64) > self.options.shard_bytes;
                if is_full && !samples.is_empty() {
                    break;
                }
                // invariant: there is a front
                let Some(item) = ready.pop_front() else { break };
                let ending = ending(&item);
                let offset = writer.file(&format!("{next:08}.{ending}"), &item.bytes)?;
                writer.file(&format!("{next:08}.cls"), item.class.to_string().as_bytes())?;
                if let Some(what) = item.broken {
                    broken.push((self.images.path(split, next), what));
                }
                samples.push(Sample {
                    name: item.name.into(),
                    class: item.class,
                    offset,
                    length: item.bytes.len() as u64,
                    crc32: Some(crc32fast::hash(&item.bytes)),
                });
                next += 1;
                self.done += 1;
                (self.progress)(self.done, self.total);
            }
            let (bytes, sha256) = writer.finish()?;
            journal.add(split, Shard { name, bytes, sha256: Some(sha256), samples }, broken)?;
        }
        Ok(())
    }

    /// The next few images, in order, read and changed side by side.
    fn items(&self, split: Split, left: std::ops::Range<u64>) -> Result<VecDeque<Item>, DataError> {
        let few = left.start..left.end.min(left.start + 8 * self.pool.current_num_threads() as u64);
        self.pool.install(|| few.into_par_iter().map(|number| self.item(split, number)).collect())
    }

    fn item(&self, split: Split, number: u64) -> Result<Item, DataError> {
        let (class, entry) = self.images.entry(split, number);
        let path = self.images.path(split, number);
        let mut bytes = Vec::new();
        read(&path, &mut bytes)?;
        if bytes.len() as u64 != entry.bytes {
            let what = format!("it has {} bytes now, and had {} when packing began", bytes.len(), entry.bytes);
            let (address, member) = (self.source.display().to_string(), path.display().to_string());
            let what = format!("{what}: pack again when nobody writes to the folder");
            return Err(ShardError::Member { address, member, what }.into());
        }
        let name = text(&entry.name, &path)?;
        let mut broken = None;
        if let Some(change) = self.options.change() {
            match shrink::image(&bytes, change) {
                Ok(Some(smaller)) => bytes = smaller,
                Ok(None) => {}
                Err(error) => broken = Some(error.to_string()),
            }
        }
        Ok(Item { name, class, bytes, broken })
    }
}

/// What readers of WebDataset go by.
fn ending(item: &Item) -> String {
    match Format::of(&item.bytes) {
        Ok(Format::Jpeg) => "jpg".into(),
        Ok(Format::Png) => "png".into(),
        // broken, or of a kind that is not read: it stays a sample, which the run's policy decides about
        Err(_) => match Path::new(&item.name).extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase()) {
            Some(ending) if ["png", "jpeg"].contains(&&*ending) => ending,
            _ => "jpg".into(),
        },
    }
}
