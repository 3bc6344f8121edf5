//! Makes the index of shards that have none, from their tar headers; images are not read.
//!
//! What WebDataset writes and `tar` packs: files that belong together have the same path up to the first dot of their
//! name. One is the image (`jpg`, `jpeg`, `png`), the class is in `cls`, or in `json`, or is the folder inside the tar
//! file.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::error::ShardError;
use super::index::{Index, Maker, Sample, Shard};
use super::store::{Listed, Store};
use crate::Split;

/// Read at once: a header and most of what is small.
const WINDOW: u64 = 16 << 10;
/// Nothing that tells a class is larger.
const MAX_NOTE: u64 = 1 << 20;
/// Labels beyond this are taken for a mistake.
const MAX_LABEL: u32 = 1 << 20;
/// Shards that are looked at side by side: behind a URL it is latency that counts.
const THREADS: usize = 16;

/// The shards of a set without index, of both splits: `train/*.tar` and `val/*.tar`, or `*train*.tar` and `*val*.tar`.
///
/// # Errors
/// There are none, or they cannot be listed.
pub(super) fn list(store: &Store) -> Result<[Vec<Listed>; 2], ShardError> {
    let tars = |listed: Vec<Listed>| listed.into_iter().filter(|file| file.name.ends_with(".tar")).collect::<Vec<_>>();
    let folders = [tars(store.list("train")?), tars(store.list("val")?)];
    if folders.iter().all(|split| !split.is_empty()) {
        return Ok(folders);
    }
    let flat = tars(store.list("")?);
    let named = |part: &str| flat.iter().filter(|file| file.name.contains(part)).cloned().collect::<Vec<_>>();
    let flat = [named("train"), named("val")];
    if flat.iter().all(|split| !split.is_empty()) && flat[0].iter().all(|shard| !flat[1].contains(shard)) {
        return Ok(flat);
    }
    let packed = [store.list("train")?, store.list("val")?].concat();
    let hint = if packed.iter().any(|file| [".tar.gz", ".tgz", ".tar.zst"].iter().any(|end| file.name.ends_with(end))) {
        "; those that are there are compressed: unpack them, nothing can be read from their middle"
    } else if store.folder().is_none() {
        "; a web server must either have the index or show its folders as pages of links"
    } else {
        ""
    };
    Err(ShardError::NoShards { address: store.address(""), hint })
}

/// Reads the headers of shards and makes their index.
///
/// # Errors
/// A shard that is no tar file, a sample without image or class, classes that do not fit together.
pub(super) fn index(store: &Store, listed: &[Vec<Listed>; 2]) -> Result<Index, ShardError> {
    let shards: Vec<&Listed> = listed.iter().flatten().collect();
    type Slot = Mutex<Option<Result<Vec<Found>, ShardError>>>;
    let found: Vec<Slot> = shards.iter().map(|_| Slot::default()).collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..THREADS.min(shards.len()) {
            scope.spawn(|| {
                while let Some(place) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|at| *at < shards.len()) {
                    let samples = samples(store, shards[place]);
                    if let Ok(mut slot) = found[place].lock() {
                        *slot = Some(samples);
                    }
                }
            });
        }
    });
    // invariant: every place was taken by a thread, and a panic of one has ended the scope
    let found = found.into_iter().filter_map(|slot| slot.into_inner().ok().flatten());
    let found = found.collect::<Result<Vec<_>, _>>()?;
    let classes = classes(store, &shards, &found)?;
    let label = |class: &Class| match class {
        Class::Number(number) => *number,
        // invariant: `classes` has every name
        Class::Name(name) => classes.binary_search(name).unwrap_or_default() as u32,
    };
    let mut made = shards.iter().zip(&found).map(|(shard, found)| Shard {
        name: shard.name.clone(),
        bytes: shard.bytes,
        sha256: None,
        samples: found
            .iter()
            .map(|found| Sample {
                name: found.name.as_str().into(),
                class: label(&found.class),
                offset: found.offset,
                length: found.length,
                crc32: None,
            })
            .collect(),
    });
    let train = made.by_ref().take(listed[0].len()).collect();
    let index = Index::new(Maker::Headers, classes.clone(), [train, made.collect()]);
    for (split, name) in [(Split::Train, "train"), (Split::Test, "val")] {
        if index.num_samples(split) == 0 {
            return Err(ShardError::NoShards {
                address: store.address(name),
                hint: "; those that are there are empty",
            });
        }
    }
    Ok(index)
}

/// What a shard says about a class.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Number(u32),
    Name(String),
}

/// A sample before the classes have labels.
struct Found {
    name: String,
    offset: u64,
    length: u64,
    class: Class,
}

/// Names of all classes; the label of a sample whose class is a number is the number.
fn classes(store: &Store, shards: &[&Listed], found: &[Vec<Found>]) -> Result<Vec<String>, ShardError> {
    let all = || shards.iter().zip(found).flat_map(|(shard, found)| found.iter().map(move |sample| (*shard, sample)));
    let mut names = BTreeSet::new();
    let mut most = None;
    for (shard, sample) in all() {
        match &sample.class {
            Class::Number(number) => most = most.max(Some(*number)),
            Class::Name(name) => {
                names.insert(name.clone());
            }
        }
        if most.is_some() && !names.is_empty() {
            let what = "its class is told in another way than those before it: by number or by name, not both".into();
            let (address, member) = (store.address(&shard.name), sample.name.clone());
            return Err(ShardError::Member { address, member, what });
        }
    }
    Ok(match most {
        Some(most) => (0..=most).map(|number| number.to_string()).collect(),
        None => names.into_iter().collect(),
    })
}

/// The files of one sample.
#[derive(Default)]
struct Group {
    image: Option<(String, u64, u64)>,
    /// From `cls`, else from `json`.
    told: Option<Class>,
    by_cls: bool,
}

fn samples(store: &Store, shard: &Listed) -> Result<Vec<Found>, ShardError> {
    let address = || store.address(&shard.name);
    let failed = RefCell::default();
    let reader = Window { store, shard, at: 0, start: 0, bytes: Vec::new(), failed: &failed };
    let mut archive = tar::Archive::new(reader);
    let mut last = 0;
    let wrong = |offset, error: io::Error| match failed.take() {
        Some(error) => error,
        None => ShardError::Tar { address: address(), offset, what: error.to_string() },
    };
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for entry in archive.entries_with_seek().map_err(|error| wrong(0, error))? {
        let mut entry = entry.map_err(|error| wrong(last, error))?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let path = path.trim_start_matches("./").to_owned();
        let (offset, length) = (entry.raw_file_position(), entry.size());
        last = offset;
        if offset.checked_add(length).is_none_or(|end| end > shard.bytes) {
            let what = format!("{path} has {length} bytes, and the file ends before");
            return Err(ShardError::Tar { address: address(), offset, what });
        }
        let odd = |what: String| ShardError::Member { address: address(), member: path.clone(), what };
        let Some((key, kind)) = key_and_kind(&path) else { continue };
        match &*kind {
            "jpg" | "jpeg" | "png" => {
                let group = groups.entry(key).or_default();
                if group.image.is_some() {
                    return Err(odd(
                        "a second image of its sample: each needs a name of its own up to the first dot".into()
                    ));
                }
                group.image = Some((path, offset, length));
            }
            "cls" | "json" => {
                if length > MAX_NOTE {
                    return Err(odd(format!("{length} bytes are too many to tell a class")));
                }
                let mut text = String::new();
                entry.read_to_string(&mut text).map_err(|error| wrong(offset, error))?;
                let class = if kind == "cls" { Some(number_or_name(&text)) } else { from_json(&text) };
                let group = groups.entry(key).or_default();
                if kind == "cls" || !group.by_cls {
                    group.told = class.or(group.told.take());
                    group.by_cls |= kind == "cls";
                }
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    for group in groups.into_values() {
        let Some((name, offset, length)) = group.image else { continue };
        let folder = || name.rsplit_once('/').map(|(folders, _)| folders.rsplit('/').next().unwrap_or(folders));
        let class = group.told.or_else(|| folder().map(|folder| Class::Name(folder.to_owned())));
        let odd = |what: String| ShardError::Member { address: address(), member: name.clone(), what };
        let class = match class {
            Some(Class::Number(number)) if number > MAX_LABEL => {
                return Err(odd(format!("label {number} is too large")));
            }
            Some(class) => class,
            None => {
                let needs = "its class is nowhere: neither a .cls nor a .json with \"cls\" or \"label\" beside it, and no \
                             folder around it";
                return Err(odd(needs.into()));
            }
        };
        found.push(Found { name, offset, length, class });
    }
    found.sort_by_key(|sample| sample.offset);
    Ok(found)
}

/// The path up to the first dot of the name, and what stands after the last one, in lower case.
fn key_and_kind(path: &str) -> Option<(String, String)> {
    let start = path.rfind('/').map_or(0, |slash| slash + 1);
    let name = &path[start..];
    let dot = name.find('.').filter(|dot| *dot > 0)?; // a name that starts with a dot is hidden
    let kind = name.rsplit('.').next()?.to_ascii_lowercase();
    Some((path[..start + dot].to_owned(), kind))
}

fn number_or_name(text: &str) -> Class {
    let text = text.trim();
    text.parse().map_or_else(|_| Class::Name(text.to_owned()), Class::Number)
}

/// A number under one of the usual keys, else a name.
fn from_json(text: &str) -> Option<Class> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    let keys = ["cls", "label", "class", "class_id", "class_index", "target", "synset", "wnid", "class_name"];
    let values: Vec<_> = keys.iter().filter_map(|key| value.get(key)).collect();
    let number = values.iter().find_map(|value| u32::try_from(value.as_u64()?).ok()).map(Class::Number);
    number.or_else(|| values.iter().find_map(|value| value.as_str()).map(number_or_name))
}

/// A shard as a file that is read in small parts.
struct Window<'a> {
    store: &'a Store,
    shard: &'a Listed,
    at: u64,
    start: u64,
    bytes: Vec<u8>,
    /// Why a read failed: what `tar` makes of an error is only its text.
    failed: &'a RefCell<Option<ShardError>>,
}

impl Read for Window<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.shard.bytes || out.is_empty() {
            return Ok(0);
        }
        if !(self.start..self.start + self.bytes.len() as u64).contains(&self.at) {
            let end = self.shard.bytes.min(self.at + WINDOW);
            self.start = self.at;
            let read = self.store.read(&self.shard.name, self.at..end, self.shard.bytes, &mut self.bytes);
            if let Err(error) = read {
                self.bytes.clear();
                let text = io::Error::other(error.to_string());
                self.failed.replace(Some(error));
                return Err(text);
            }
        }
        let from = &self.bytes[(self.at - self.start) as usize..];
        let count = from.len().min(out.len());
        out[..count].copy_from_slice(&from[..count]);
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Window<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let from = |base: u64, by: i64| base.checked_add_signed(by);
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => from(self.at, by),
            SeekFrom::End(by) => from(self.shard.bytes, by),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_belong_together_by_their_path_up_to_the_first_dot() {
        for (path, key, kind) in
            [("000.jpg", "000", "jpg"), ("a.b/000.left.JPEG", "a.b/000", "jpeg"), ("x/y/z.cls", "x/y/z", "cls")]
        {
            assert_eq!(key_and_kind(path), Some((key.to_owned(), kind.to_owned())));
        }
        assert_eq!(key_and_kind("a/README"), None);
        assert_eq!(key_and_kind("a/._000.jpg"), None);
    }

    #[test]
    fn a_class_is_a_number_or_a_name() {
        assert_eq!(number_or_name(" 17\n"), Class::Number(17));
        assert_eq!(number_or_name("n01440764"), Class::Name("n01440764".into()));
        for (json, class) in [
            (r#"{"label": 3, "class_name": "tench"}"#, Some(Class::Number(3))),
            (r#"{"cls": "12"}"#, Some(Class::Number(12))),
            (r#"{"wnid": "n01440764", "label": null}"#, Some(Class::Name("n01440764".into()))),
            (r#"{"width": 3}"#, None),
            ("no json", None),
        ] {
            assert_eq!(from_json(json), class, "{json}");
        }
    }
}
