//! `webdataset`: images in tar shards, in a folder or behind a URL, read and transformed as they are needed.
//!
//! ```text
//! data.path ─► store: a folder (local) or a URL (remote: HTTP, S3, GCS, Azure) ◄── cache: blocks on a local disk
//!                │
//!             index: where every sample lies ◄── scan: made from tar headers where there is none
//!                │                           ◄── pack: `lockstep data pack`
//!             Shards: one read of a range a sample ─► image        verify: looks at all of them
//! ```
//! Samples are numbered as they lie: shards by name, then by offset. `pack` writes them round the classes, in the numbering
//! of the folder, so that a run takes the same course from either.

mod cache;
mod error;
mod index;
pub mod pack;
mod scan;
mod store;
mod verify;

use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_proto::draws::Draws;
use lockstep_proto::ids::Epoch;
use lockstep_proto::message::DataIdentity;
use lockstep_proto::recipe::{self, DataKind, Order};
use sha2::{Digest, Sha256};

use crate::error::DataError;
use crate::image::Transform;
use crate::image_folder::with_workspace;
use crate::listing;
use crate::samples::hex;
use crate::{Dataset, Split};
use cache::Cache;
pub use error::ShardError;
pub use index::{Change, INDEX, Index, Maker, Sample, Shard};
use store::Store;
pub(crate) use verify::verify;

/// Bytes of a tar header, which stands right before its file.
const HEADER: u64 = 512;

/// A set of shards.
pub struct Shards {
    address: String,
    store: Store,
    cache: Option<Cache>,
    index: Index,
    /// For each split: where each sample is.
    places: [Vec<Place>; 2],
    identity: DataIdentity,
    transform: Transform,
}

/// A sample: its shard, and its place in it.
#[derive(Clone, Copy)]
struct Place {
    shard: u32,
    sample: u32,
}

/// Whether `data.path` of a set is one of shards, as far as can be told without reading. Tar files beside folders are what
/// unpacking leaves behind.
pub fn is_shards(path: &Path) -> bool {
    let has_tars = |folder: &Path| {
        let entries: Vec<PathBuf> =
            std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
        let is_tar = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "tar");
        entries.iter().any(is_tar) && !entries.iter().any(|path| path.is_dir())
    };
    store::is_url(path) || path.join(INDEX).is_file() || has_tars(&path.join("train")) || has_tars(path)
}

/// Where a recipe's cache is.
fn cache_folder(data: &recipe::Data) -> PathBuf {
    if !data.cache_dir.is_empty() {
        return PathBuf::from(&data.cache_dir);
    }
    let of_user = std::env::var_os("XDG_CACHE_HOME").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let of_user = of_user.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    of_user.map_or_else(|| std::env::temp_dir().join("lockstep-cache"), |folder| folder.join("lockstep"))
}

/// Opens a store and finds its index, or makes it.
fn indexed(data: &recipe::Data) -> Result<(Store, Index), ShardError> {
    // invariant: the recipe's check allows finite times above 0 only
    let timeout = Duration::try_from_secs_f64(data.read_timeout_s).unwrap_or(Duration::MAX);
    let store = Store::open(&data.path, timeout)?;
    let found = store.read_all(INDEX)?.map(|bytes| Index::parse(&bytes, &store.address(INDEX))).transpose()?;
    let index = match found {
        Some(index) if index.made_by == Maker::Headers && store.folder().is_some() => {
            // shards come and go where nobody packed them
            let listed = scan::list(&store)?;
            let is_current = listed.iter().flatten().map(|file| (&file.name, file.bytes)).eq(index
                .train
                .iter()
                .chain(&index.val)
                .map(|shard| (&shard.name, shard.bytes)));
            if is_current { index } else { made(&store, &listed, data)? }
        }
        Some(index) => {
            all_there(&store, &index)?;
            index
        }
        None => {
            let listed = scan::list(&store)?;
            made(&store, &listed, data)?
        }
    };
    if let Some((shard, class)) = index.untrained() {
        let class = index.classes[class as usize].clone();
        return Err(ShardError::UnknownClass { address: store.address(&shard.name), class });
    }
    Ok((store, index))
}

/// Shards in a folder are there and have their sizes; behind a URL the first read of each tells.
fn all_there(store: &Store, index: &Index) -> Result<(), ShardError> {
    let Some(folder) = store.folder() else { return Ok(()) };
    for shard in index.train.iter().chain(&index.val) {
        let address = || store.address(&shard.name);
        match std::fs::metadata(folder.join(&shard.name)) {
            Ok(metadata) if metadata.len() == shard.bytes => {}
            Ok(metadata) => {
                let what = format!("it has {} bytes, not {}", metadata.len(), shard.bytes);
                return Err(ShardError::Changed { address: address(), what });
            }
            Err(_) => return Err(ShardError::Missing { address: address() }),
        }
    }
    Ok(())
}

/// Makes the index of shards without one, and keeps it beside them, or where that cannot be in the cache.
fn made(store: &Store, listed: &[Vec<store::Listed>; 2], data: &recipe::Data) -> Result<Index, ShardError> {
    let mut hasher = Sha256::new();
    hasher.update(store.address(""));
    for file in listed.iter().flatten() {
        hasher.update(format!("\n{} {}", file.name, file.bytes));
    }
    let spare = cache_folder(data).join("indexes").join(format!("{}.json", &hex(&hasher.finalize())[..32]));
    let kept = std::fs::read(&spare).ok().and_then(|bytes| Index::parse(&bytes, "").ok());
    if let Some(index) = kept {
        return Ok(index);
    }
    tracing::info!(set = store.address(""), "no index of these shards: reading their headers");
    let index = scan::index(store, listed)?;
    let Ok(text) = index.to_json() else { return Ok(index) };
    let beside = store.folder().map(|folder| folder.join(INDEX));
    let is_kept = beside.is_some_and(|path| index::write_whole(&path, text.as_bytes()).is_ok());
    if !is_kept {
        let folder = spare.parent().map(std::fs::create_dir_all);
        if folder.is_none_or(|made| made.is_err()) || index::write_whole(&spare, text.as_bytes()).is_err() {
            tracing::warn!(place = %spare.display(), "the index cannot be kept: the next start makes it again");
        }
    }
    Ok(index)
}

impl Shards {
    /// Opens the shards of a recipe: reads their index, or makes it; no image is read.
    ///
    /// # Errors
    /// No shards, one that is missing or changed, a class of `val` that `train` lacks, a store that does not answer.
    pub fn open(data: &recipe::Data) -> Result<Self, ShardError> {
        let (store, index) = indexed(data)?;
        let places = [(Split::Train, data.limit), (Split::Test, data.test_limit)].map(|(split, limit)| {
            let shards = index.shards(split).iter().enumerate();
            let all = shards.flat_map(|(shard, of)| {
                // invariant: an index of 2³² shards or samples a shard does not fit into memory
                (0..of.samples.len()).map(move |sample| Place { shard: shard as u32, sample: sample as u32 })
            });
            all.take(if limit == 0 { usize::MAX } else { limit as usize }).collect::<Vec<_>>()
        });
        let identity = DataIdentity {
            name: DataKind::Webdataset.name().to_owned(),
            num_train: places[0].len() as u64,
            num_test: places[1].len() as u64,
            num_classes: index.classes.len() as u32,
            fingerprint: fingerprint(&index, &places),
        };
        let cache = cache(&store, &index, data);
        let (address, transform) = (data.path.clone(), Transform::new(data));
        Ok(Self { address, store, cache, index, places, identity, transform })
    }

    /// Where the samples lie.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The shard of a sample, and what the index says about it.
    pub fn sample(&self, split: Split, sample: u64) -> (&Shard, &Sample) {
        let Place { shard, sample } = self.places[split as usize][sample as usize];
        let shard = &self.index.shards(split)[shard as usize];
        (shard, &shard.samples[sample as usize])
    }

    /// What messages call a sample: the address of its shard and its name there.
    pub fn full_name(&self, split: Split, sample: u64) -> String {
        let (shard, sample) = self.sample(split, sample);
        format!("{}: {}", self.store.address(&shard.name), sample.name)
    }

    /// Reads the bytes of an image into `out`.
    ///
    /// # Errors
    /// The shard is missing, out of reach, or not what the index was made of.
    pub fn read(&self, split: Split, sample: u64, out: &mut Vec<u8>) -> Result<(), ShardError> {
        let (shard, sample) = self.sample(split, sample);
        let Some(cache) = &self.cache else { return read(&self.store, shard, sample, out) };
        let range = stored(sample);
        // blocks belong to the content, as far as it is known, so that another version does not meet them
        let content =
            shard.sha256.clone().unwrap_or_else(|| format!("{} {}", self.store.address(&shard.name), shard.bytes));
        let fetch = |stretch, bytes: &mut Vec<u8>| self.store.read(&shard.name, stretch, shard.bytes, bytes);
        cache.read((&content, shard.bytes), range.clone(), out, fetch)?;
        if checked(sample, out).is_ok() {
            return Ok(());
        }
        cache.forget(&content, &range);
        read(&self.store, shard, sample, out)
    }
}

/// The cache, where there is something to be kept in it.
fn cache(store: &Store, index: &Index, data: &recipe::Data) -> Option<Cache> {
    if store.folder().is_some() || data.cache_bytes == 0 {
        return None;
    }
    if data.order == Order::Full && index.bytes() > data.cache_bytes {
        // with any sample next, few blocks would be there again before they are dropped, and each costs ten samples
        tracing::warn!(
            bytes = index.bytes(),
            "the set is larger than data.cache_bytes: it is read anew every epoch; give it room, or set data.order = \
             \"blocks\""
        );
        return None;
    }
    Some(Cache::open(&cache_folder(data), data.cache_bytes))
}

/// Where a sample is, with its header if that is needed to see that it is there.
fn stored(sample: &Sample) -> std::ops::Range<u64> {
    let header = if sample.crc32.is_some() { 0 } else { HEADER.min(sample.offset) };
    sample.offset - header..sample.offset + sample.length
}

fn read(store: &Store, shard: &Shard, sample: &Sample, out: &mut Vec<u8>) -> Result<(), ShardError> {
    store.read(&shard.name, stored(sample), shard.bytes, out)?;
    checked(sample, out).map_err(|what| ShardError::Changed { address: store.address(&shard.name), what })
}

/// Sees that bytes are those of a sample, and leaves only the image.
fn checked(sample: &Sample, bytes: &mut Vec<u8>) -> Result<(), String> {
    let Some(expected) = sample.crc32 else {
        let header = bytes.len() - sample.length as usize;
        let is_there = is_header(&bytes[..header], sample.length);
        bytes.drain(..header);
        let what =
            || format!("no file of {} bytes begins at offset {} ({})", sample.length, sample.offset, sample.name);
        return is_there.then_some(()).ok_or_else(what);
    };
    let found = crc32fast::hash(bytes);
    let what =
        || format!("other bytes at offset {} ({}): CRC-32 {found:08x}, not {expected:08x}", sample.offset, sample.name);
    (found == expected).then_some(()).ok_or_else(what)
}

/// Whether bytes are the tar header of a file of so many bytes.
fn is_header(bytes: &[u8], length: u64) -> bool {
    if bytes.len() as u64 != HEADER {
        return false;
    }
    let header = tar::Header::from_byte_slice(bytes);
    let sum = |at: usize, byte: &u8| if (148..156).contains(&at) { 32 } else { u32::from(*byte) };
    let sum: u32 = bytes.iter().enumerate().map(|(at, byte)| sum(at, byte)).sum();
    let size = header.entry_size().ok();
    // a PAX header before it may have the size
    header.cksum().is_ok_and(|expected| expected == sum) && (size == Some(length) || size == Some(0))
}

impl Dataset for Shards {
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

    fn name(&self, split: Split, sample: u64) -> Option<String> {
        let (shard, sample) = self.sample(split, sample);
        Some(format!("{}: {}", shard.name, sample.name))
    }

    fn label(&self, split: Split, sample: u64) -> u32 {
        self.sample(split, sample).1.class
    }

    fn image(&self, split: Split, sample: u64, draws: Option<&mut Draws>, out: &mut [f32]) -> Result<(), DataError> {
        let mut bytes = with_workspace(|workspace| Ok(std::mem::take(&mut workspace.file))).unwrap_or_default();
        self.read(split, sample, &mut bytes)?;
        let result = with_workspace(|workspace| {
            let result = self.transform.apply(&bytes, draws, workspace, out);
            workspace.file = bytes;
            result
        });
        result.map_err(|error| DataError::Image {
            path: self.full_name(split, sample).into(),
            error,
            root: PathBuf::from(&self.address),
        })
    }
}

/// That of the folder, where the images are its files byte by byte; else the same under another heading.
fn fingerprint(index: &Index, places: &[Vec<Place>; 2]) -> String {
    let heading = match &index.made_by {
        Maker::Pack { changed: None } => listing::IMAGE_FOLDER.to_owned(),
        Maker::Headers => "webdataset 1\n".to_owned(),
        Maker::Pack { changed: Some(Change { short_side, quality }) } => {
            format!("webdataset 1 short side {} quality {quality}\n", short_side.unwrap_or_default())
        }
    };
    let of = |split: Split| {
        let shards = index.shards(split);
        places[split as usize].iter().map(|place| &shards[place.shard as usize].samples[place.sample as usize])
    };
    let rows = |split| of(split).map(|sample| (sample.class, sample.length, sample.name.as_bytes()));
    let classes = index.classes.iter().map(String::as_bytes);
    listing::fingerprint(&heading, classes, [rows(Split::Train), rows(Split::Test)])
}
