//! `lockstep data verify` for shards: their hashes, and every image in them, in one pass.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockstep_proto::recipe;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::error::ShardError;
use super::index::{INDEX, Index, Sample, Shard};
use super::store::Store;
use super::{checked, scan, stored};
use crate::error::DataError;
use crate::samples::hex;
use crate::verify::{Finding, Kind, Moments, Report, look_at};
use crate::{Split, tree};

/// Read at once: samples in it are looked at side by side.
const STRETCH: u64 = 16 << 20;

/// Looks at shards with their index, or with one that is made and not kept.
pub(crate) fn verify(root: &Path, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<Report, DataError> {
    let address = root.to_string_lossy();
    let timeout = recipe::Data::default().read_timeout_s;
    let store = Store::open(&address, Duration::from_secs_f64(timeout))?;
    let index = match store.read_all(INDEX)? {
        Some(bytes) => Index::parse(&bytes, &store.address(INDEX))?,
        None => scan::index(&store, &scan::list(&store)?)?,
    };
    let total = index.num_samples(Split::Train) + index.num_samples(Split::Test);
    let look = Look { store: &store, done: AtomicU64::new(0), total, progress };
    let mut findings = Vec::new();
    let mut moments = Moments::default();
    for split in [Split::Train, Split::Test] {
        for shard in index.shards(split) {
            let (found, of_shard) = look.shard(shard);
            findings.extend(found);
            moments = if split == Split::Train { moments.plus(of_shard) } else { moments };
        }
    }
    findings.extend(of_classes(&store, &index));
    findings.extend(twice(&store, &index));
    findings.extend(strays(&store, &index)?);
    findings.sort();
    let samples = || index.train.iter().chain(&index.val).flat_map(|shard| &shard.samples);
    Ok(Report {
        num_classes: index.classes.len() as u64,
        num_train: index.num_samples(Split::Train),
        num_test: index.num_samples(Split::Test),
        bytes: samples().map(|sample| sample.length).sum(),
        mean: std::array::from_fn(|channel| moments.mean_and_deviation(channel).0),
        std: std::array::from_fn(|channel| moments.mean_and_deviation(channel).1),
        findings,
    })
}

struct Look<'a> {
    store: &'a Store,
    done: AtomicU64,
    total: u64,
    progress: &'a (dyn Fn(u64, u64) + Sync),
}

impl Look<'_> {
    /// Reads a shard from its first byte to its last.
    fn shard(&self, shard: &Shard) -> (Vec<Finding>, Moments) {
        let mut findings = Vec::new();
        let mut moments = Moments::default();
        let mut hasher = Sha256::new();
        let mut bytes = Vec::new();
        let (mut at, mut next) = (0, 0);
        let mut order: Vec<&Sample> = shard.samples.iter().collect();
        order.sort_by_key(|sample| sample.offset);
        while at < shard.bytes {
            // whole samples that end within a stretch; one that is longer has a stretch of its own
            let fits = |sample: &&&Sample| sample.offset + sample.length <= at + STRETCH;
            let mut num = order[next..].iter().take_while(fits).count();
            let ahead = order.get(next + num).map_or(shard.bytes, |sample| stored(sample).start.max(at));
            let mut end = shard.bytes.min(at + STRETCH).min(ahead);
            if end == at {
                num = 1;
                end = order[next].offset + order[next].length;
            }
            if let Err(error) = self.store.read(&shard.name, at..end, shard.bytes, &mut bytes) {
                findings.push(of_shard(self.store, shard, what(&error)));
                self.told(order.len() - next);
                return (findings, moments);
            }
            hasher.update(&bytes);
            let looked = order[next..next + num].par_iter().map(|sample| {
                let range = stored(sample);
                let mut own = match bytes.get((range.start.max(at) - at) as usize..(range.end - at) as usize) {
                    Some(own) if range.start >= at => own.to_vec(),
                    _ => Vec::new(), // a sample inside another one: no tar file has that
                };
                self.told(1);
                if own.len() as u64 != range.end - range.start {
                    return (
                        vec![of_shard(self.store, shard, format!("{} lies in another sample", sample.name))],
                        Moments::default(),
                    );
                }
                if let Err(what) = checked(sample, &mut own) {
                    return (vec![of_shard(self.store, shard, what)], Moments::default());
                }
                look_at(&PathBuf::from(format!("{}: {}", self.store.address(&shard.name), sample.name)), &own)
            });
            let (found, of_samples): (Vec<_>, Vec<_>) = looked.unzip();
            findings.extend(found.into_iter().flatten());
            moments = of_samples.into_iter().fold(moments, Moments::plus);
            (at, next) = (end, next + num);
        }
        let found = hex(&hasher.finalize());
        if let Some(expected) = shard.sha256.as_ref().filter(|expected| **expected != found) {
            findings.push(of_shard(self.store, shard, format!("sha256 {found}, and its index says {expected}")));
        }
        (findings, moments)
    }

    fn told(&self, num: usize) {
        let done = self.done.fetch_add(num as u64, Ordering::Relaxed) + num as u64;
        (self.progress)(done, self.total);
    }
}

fn of_shard(store: &Store, shard: &Shard, what: String) -> Finding {
    Finding { kind: Kind::Shard, path: store.address(&shard.name).into(), what }
}

/// What is wrong, without the address, which stands before it anyway.
fn what(error: &ShardError) -> String {
    match error {
        ShardError::Missing { .. } => format!("not there, though {INDEX} lists it"),
        ShardError::Changed { what, .. } | ShardError::Unreachable { what, .. } | ShardError::Refused { what, .. } => {
            what.clone()
        }
        other => other.to_string(),
    }
}

fn of_classes(store: &Store, index: &Index) -> Vec<Finding> {
    let counts = |split: Split| {
        let mut counts: BTreeMap<u32, u64> = BTreeMap::new();
        let samples = index.shards(split).iter().flat_map(|shard| &shard.samples);
        samples.for_each(|sample| *counts.entry(sample.class).or_default() += 1);
        counts
    };
    let (train, val) = (counts(Split::Train), counts(Split::Test));
    let mut findings = Vec::new();
    let mut add = |kind, split: Split, class: u32, what: String| {
        let path = format!("{}/{}", store.address(tree::folder(split)), index.classes[class as usize]);
        findings.push(Finding { kind, path: path.into(), what });
    };
    for (class, num) in val.iter().filter(|(class, _)| !train.contains_key(class)) {
        let what = format!("a class with {num} images in val and none in train: no run starts with it");
        add(Kind::UnknownClass, Split::Test, *class, what);
    }
    for (class, num) in train.iter().filter(|(class, _)| !val.contains_key(class)) {
        let what = format!("a class with {num} images in train and none in val: it is never tested");
        add(Kind::UntestedClass, Split::Train, *class, what);
    }
    findings
}

/// Names that stand in several places, each told at its second place and after. Where names are numbers of a tar file,
/// every shard may have them.
fn twice(store: &Store, index: &Index) -> Vec<Finding> {
    let mut first: BTreeMap<&str, &Shard> = BTreeMap::new();
    let mut findings = Vec::new();
    if index.made_by == super::Maker::Headers {
        return findings;
    }
    for shard in index.train.iter().chain(&index.val) {
        for sample in &shard.samples {
            if let Some(other) = first.get(&*sample.name) {
                let path = format!("{}: {}", store.address(&shard.name), sample.name).into();
                let what = format!("the same name as one in {}", store.address(&other.name));
                findings.push(Finding { kind: Kind::Twice, path, what });
            } else {
                first.insert(&sample.name, shard);
            }
        }
    }
    findings
}

/// Shards in a folder that the index does not list.
fn strays(store: &Store, index: &Index) -> Result<Vec<Finding>, ShardError> {
    if store.folder().is_none() {
        return Ok(Vec::new());
    }
    let known: BTreeSet<&str> = index.train.iter().chain(&index.val).map(|shard| &*shard.name).collect();
    let listed = [store.list("train")?, store.list("val")?].concat();
    let strays = listed.iter().filter(|file| file.name.ends_with(".tar") && !known.contains(&*file.name));
    let what = || format!("{INDEX} does not list it: no run sees it");
    Ok(strays.map(|file| Finding { kind: Kind::Stray, path: store.address(&file.name).into(), what: what() }).collect())
}
