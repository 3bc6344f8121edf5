//! `lockstep data pack`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use lockstep_data::shards::pack::{Options, pack};
use lockstep_data::shards::{INDEX, Index, Shards};
use lockstep_data::verify::{Kind, verify};
use lockstep_data::{Dataset, ImageFolder, Split};
use lockstep_proto::exit::ExitCode;

use super::{files, folder, options, packed, recipe, refused, seen};
use crate::common;

#[test]
fn packed_shards_are_the_folder_sample_by_sample() {
    let dir = tempfile::tempdir().unwrap();
    let (source, dest) = (dir.path().join("folder"), dir.path().join("shards"));
    folder(&source);
    let result = packed(&source, &dest, &options());
    assert!(result.index.train.len() > 1 && result.broken.is_empty() && result.num_kept == 0);
    let from_folder = ImageFolder::open(&common::recipe(&source).data).unwrap();
    let mut shards = recipe(&dest.to_string_lossy(), dir.path());
    let from_shards = Shards::open(&shards.data).unwrap();
    assert_eq!(from_folder.identity().fingerprint, from_shards.identity().fingerprint);
    assert_eq!(from_shards.identity().name, "webdataset");
    assert_eq!(seen(&from_folder), seen(&from_shards));
    // limits take the same samples of both
    shards.data.limit = 5;
    let mut limited = common::recipe(&source);
    limited.data.limit = 5;
    let (limited, shards) = (ImageFolder::open(&limited.data).unwrap(), Shards::open(&shards.data).unwrap());
    assert_eq!(limited.identity().fingerprint, shards.identity().fingerprint);
    assert_ne!(limited.identity().fingerprint, from_folder.identity().fingerprint);
    assert_eq!(shards.identity().num_train, 5);
}

#[test]
fn any_tar_reads_them_and_no_shard_is_larger_than_was_asked() {
    let dir = tempfile::tempdir().unwrap();
    folder(&dir.path().join("folder"));
    let dest = dir.path().join("shards");
    let index = packed(&dir.path().join("folder"), &dest, &options()).index;
    let mut names = Vec::new();
    for shard in index.train.iter().chain(&index.val) {
        assert!(
            shard.bytes <= options().shard_bytes && shard.bytes == fs::metadata(dest.join(&shard.name)).unwrap().len()
        );
        let told = Command::new("tar").arg("tf").arg(dest.join(&shard.name)).output().unwrap();
        assert!(told.status.success(), "{told:?}");
        names.extend(String::from_utf8(told.stdout).unwrap().lines().map(str::to_owned));
    }
    assert_eq!(names[..4], ["00000000.jpg", "00000000.cls", "00000001.jpg", "00000001.cls"]);
    assert!(names.iter().any(|name| name.ends_with(".png")), "a PNG that was named JPEG: {names:?}");
    assert_eq!(names.len(), 2 * 14);
}

#[test]
fn the_same_folder_gives_the_same_bytes_whatever_the_threads() {
    let dir = tempfile::tempdir().unwrap();
    folder(&dir.path().join("folder"));
    for (short_side, quality) in [(None, None), (Some(40), Some(80)), (None, Some(60))] {
        let of = |threads: usize| {
            let dest = dir.path().join(format!("{short_side:?} {quality:?} {threads}"));
            packed(&dir.path().join("folder"), &dest, &Options { short_side, quality, threads, ..options() });
            files(&dest)
        };
        let one = of(1);
        assert!(one == of(3));
        assert!(one.len() >= 3);
    }
}

/// A pack that is killed after so many images: its progress panics.
fn killed(source: &Path, dest: &Path, after: u64) {
    let count = AtomicU64::new(0);
    let progress = |_: u64, _: u64| assert!(count.fetch_add(1, Ordering::Relaxed) < after, "killed");
    let run = || pack(source, dest, &Options { threads: 1, ..options() }, &progress).map(drop);
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
}

#[test]
fn a_killed_pack_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("folder");
    folder(&source);
    packed(&source, &dir.path().join("whole"), &options());
    let whole = files(&dir.path().join("whole"));
    for after in 1..14 {
        let dest = dir.path().join(after.to_string());
        killed(&source, &dest, after);
        assert!(!dest.join(INDEX).exists(), "an index tells that all is there");
        let finished: Vec<_> =
            files(&dest).into_iter().filter(|(name, _)| whole.iter().any(|of| of.0 == *name)).collect();
        let times = |name: &str| fs::metadata(dest.join(name)).unwrap().modified().unwrap();
        let before: Vec<_> = finished.iter().map(|(name, _)| times(name)).collect();
        let result = packed(&source, &dest, &options());
        assert!(files(&dest) == whole, "after {after}");
        let again: Vec<_> = finished.iter().map(|(name, _)| times(name)).collect();
        assert_eq!(before, again, "finished shards are not made again");
        let kept = finished.iter().filter(|(name, _)| name.ends_with(".tar"));
        let num = |name: &str| {
            let all = result.index.train.iter().chain(&result.index.val);
            all.filter(|shard| shard.name == name).map(|shard| shard.samples.len() as u64).sum::<u64>()
        };
        assert_eq!(result.num_kept, kept.map(|(name, _)| num(name)).sum::<u64>());
    }
    // and once it is whole, there is nothing to do
    let result = packed(&source, &dir.path().join("whole"), &options());
    assert_eq!(result.num_kept, 14);
    assert!(files(&dir.path().join("whole")) == whole);
}

#[test]
fn a_torn_journal_and_a_lost_shard_cost_only_what_they_lost() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("folder");
    folder(&source);
    packed(&source, &dir.path().join("whole"), &options());
    let whole = files(&dir.path().join("whole"));
    let dest = dir.path().join("part");
    killed(&source, &dest, 13);
    let journal = dest.join(".lockstep-pack.jsonl");
    let text = fs::read(&journal).unwrap();
    assert!(text.iter().filter(|byte| **byte == b'\n').count() >= 3);
    fs::write(&journal, &text[..text.len() - 20]).unwrap();
    packed(&source, &dest, &options());
    assert!(files(&dest) == whole);
    fs::remove_file(dest.join(INDEX)).unwrap();
    fs::write(&journal, &text).unwrap();
    fs::remove_file(dest.join("train/000000.tar")).unwrap();
    assert_eq!(packed(&source, &dest, &options()).num_kept, 0);
    assert!(files(&dest) == whole);
}

#[test]
fn another_job_does_not_go_on_with_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("folder");
    folder(&source);
    let dest = dir.path().join("shards");
    killed(&source, &dest, 8);
    let said = |options: &Options| {
        let error = pack(&source, &dest, options, &|_, _| ()).unwrap_err();
        (error.exit_code(), error.to_string().replace(&*dir.path().to_string_lossy(), "DIR"))
    };
    let smaller = Options { short_side: Some(32), ..options() };
    let part = "DIR/shards: it holds part of a pack of other images or with other options: give another folder, or move \
                that away";
    assert_eq!(said(&smaller), (ExitCode::CantCreate, part.into()));
    packed(&source, &dest, &options());
    let (code, text) = said(&smaller);
    assert_eq!(code, ExitCode::CantCreate);
    assert!(text.contains("shards of other images, or packed with other options"), "{text}");
    common::put(&source, "train/a/new.JPEG", &common::jpeg(40, 40));
    assert_eq!(said(&options()).0, ExitCode::CantCreate);
}

#[test]
fn changed_images_are_labelled_and_broken_ones_keep_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("folder");
    folder(&source);
    common::put(&source, "train/b/b.0.JPEG", b"<html>not found</html>");
    let dest = dir.path().join("shards");
    let result = packed(&source, &dest, &Options { short_side: Some(40), quality: Some(70), ..options() });
    let [(path, what)] = &result.broken[..] else { panic!("{:?}", result.broken) };
    assert!(path.ends_with("train/b/b.0.JPEG") && what.contains("a web page"), "{what}");
    let text = fs::read_to_string(dest.join(INDEX)).unwrap();
    assert!(text.contains(r#""made_by":{"pack":{"changed":{"short_side":40,"quality":70}}}"#), "{text}");
    let from_folder = ImageFolder::open(&common::recipe(&source).data).unwrap();
    let shards = Shards::open(&recipe(&dest.to_string_lossy(), dir.path()).data).unwrap();
    assert_ne!(from_folder.identity().fingerprint, shards.identity().fingerprint, "other data");
    let mut bytes = Vec::new();
    let mut room = lockstep_data::image::Workspace::new().unwrap();
    for sample in 0..shards.identity().num_train {
        assert_eq!(from_folder.label(Split::Train, sample), shards.label(Split::Train, sample));
        shards.read(Split::Train, sample, &mut bytes).unwrap();
        let broken = bytes.starts_with(b"<html>");
        let short = room.whole(&bytes).map(|whole| whole.width.min(whole.height));
        assert!(broken || short == Ok(40), "{short:?}");
    }
    let mut out = vec![0.0; 32 * 32 * 3];
    let broken = (0..10).find_map(|sample| shards.image(Split::Train, sample, None, &mut out).err()).unwrap();
    let said = broken.to_string().replace(&*dir.path().to_string_lossy(), "DIR");
    assert!(said.starts_with("DIR/shards/train/00000"), "{said}");
    assert!(said.contains(".tar: b.0.JPEG: not a JPEG or PNG but a web page"), "{said}");
    let report = verify(&dest, &|_, _| ()).unwrap();
    assert_eq!((report.num_errors(), report.findings[0].kind), (1, Kind::Broken), "{:?}", report.findings);
}

#[test]
fn verify_sees_hashes_images_classes_and_strays() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("folder");
    folder(&source);
    common::put(&source, "train/d/lonely.JPEG", &common::jpeg(40, 40));
    let dest = dir.path().join("shards");
    let index: Index = packed(&source, &dest, &options()).index;
    let kinds = || {
        let report = verify(&dest, &|_, _| ()).unwrap();
        report.findings.iter().map(|finding| (finding.kind, finding.to_string())).collect::<Vec<_>>()
    };
    let plain = verify(&dest, &|_, _| ()).unwrap();
    assert_eq!((plain.num_train, plain.num_test, plain.num_classes, plain.num_errors()), (11, 4, 4, 0));
    assert_eq!(plain.counts().get("untested_class"), Some(&1));
    let folder_report = verify(&source, &|_, _| ()).unwrap();
    assert_eq!((plain.mean, plain.std, plain.bytes), (folder_report.mean, folder_report.std, folder_report.bytes));
    // one flipped bit in an image, and one in padding, which only the hash of the shard sees
    for (place, both) in [(index.train[0].samples[1].offset + 300, true), (5 * 512 - 1, false)] {
        let path = dest.join(&index.train[0].name);
        let whole = fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        let place = if both { place } else { index.train[0].bytes - 1 };
        bytes[place as usize] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let found: Vec<_> = kinds().into_iter().filter(|(kind, _)| kind.is_error()).collect();
        assert_eq!(found.len(), 1 + usize::from(both), "{found:?}");
        assert!(found.iter().all(|(kind, text)| *kind == Kind::Shard && text.contains("000000.tar: ")), "{found:?}");
        assert!(found.iter().any(|(_, text)| text.contains("sha256 ")), "{found:?}");
        fs::write(&path, whole).unwrap();
    }
    fs::copy(dest.join("val/000000.tar"), dest.join("val/other.tar")).unwrap();
    fs::remove_file(dest.join(&index.train[1].name)).unwrap();
    let found = kinds();
    assert!(found.iter().any(|(kind, text)| *kind == Kind::Stray && text.contains("val/other.tar")), "{found:?}");
    let missing = |text: &str| text.contains("train/000001.tar: not there, though lockstep-index.json lists it");
    assert!(found.iter().any(|(kind, text)| *kind == Kind::Shard && missing(text)), "{found:?}");
}

#[test]
fn a_shard_that_is_missing_or_changed_is_named_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    folder(&dir.path().join("folder"));
    let dest = dir.path().join("shards");
    let index = packed(&dir.path().join("folder"), &dest, &options()).index;
    let recipe = recipe(&dest.to_string_lossy(), dir.path());
    let clean = |text: String| text.replace(&*dir.path().to_string_lossy(), "DIR");
    let path = dest.join("train/000001.tar");
    let whole = fs::read(&path).unwrap();
    // other bytes of the same size: seen when a sample is read
    let mut bytes = whole.clone();
    let (sample, at) = (index.train[0].samples.len() as u64, index.train[1].samples[0].offset as usize);
    bytes[at + 200] ^= 0x10;
    fs::write(&path, &bytes).unwrap();
    let set = Shards::open(&recipe.data).unwrap();
    let mut out = vec![0.0; 32 * 32 * 3];
    set.image(Split::Train, 0, None, &mut out).unwrap();
    let error = set.image(Split::Train, sample, None, &mut out).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Data);
    let text = clean(error.to_string());
    assert!(text.starts_with("DIR/shards/train/000001.tar: other bytes at offset 512 ("), "{text}");
    assert!(
        text.contains("put the shard back as it was, or remove lockstep-index.json to have it made again"),
        "{text}"
    );
    // cut: seen when the set is opened
    fs::write(&path, &whole[..whole.len() - 512]).unwrap();
    let (code, text) = refused(&recipe);
    assert_eq!(code, ExitCode::Data);
    let text = clean(text);
    assert!(text.starts_with("DIR/shards/train/000001.tar: it has ") && text.contains(" bytes, not "), "{text}");
    fs::remove_file(&path).unwrap();
    let (code, text) = refused(&recipe);
    assert_eq!(code, ExitCode::NoInput);
    assert!(clean(text).starts_with("DIR/shards/train/000001.tar: no such shard, though lockstep-index.json lists it"));
}
