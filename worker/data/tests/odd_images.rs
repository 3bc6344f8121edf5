//! A folder of broken and odd images: each is named, none crashes, the count is exact.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use common::odd::{broken, odd, segment, with_exif};
use common::{cmyk, jpeg, jpeg_with, put, recipe};
use lockstep_data::image::{Transform, Workspace};
use lockstep_data::verify::{Kind, verify};
use lockstep_data::{DataError, Dataset, Delivered, ImageFolder, Loader, Part, Split, Wanted};
use lockstep_jpeg::{Encoding, Pixels, Subsampling, encode};
use lockstep_proto::draws::Draws;
use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Epoch, SampleRange};
use lockstep_proto::recipe::{BadImage, Recipe};

/// Everything, with what is to be found.
fn fill(root: &Path) -> BTreeSet<(Kind, String)> {
    let mut expected = BTreeSet::new();
    for (name, bytes, _) in broken() {
        put(root, &format!("train/a/{name}"), &bytes);
        expected.insert((Kind::Broken, format!("train/a/{name}")));
    }
    for (name, bytes, kind) in odd() {
        put(root, &format!("train/b/{name}"), &bytes);
        expected.extend(kind.map(|kind| (kind, format!("train/b/{name}"))));
    }
    for path in ["val/a/v.JPEG", "val/b/w.JPEG", "val/only_val/x.JPEG", "train/only_train/y.JPEG", "train/b/v.JPEG"] {
        put(root, path, &jpeg(40, 40));
    }
    for path in ["train/b/.DS_Store", "train/b/notes.txt", "train/b/inner/z.JPEG", "val/list.csv"] {
        put(root, path, b"x");
    }
    std::fs::create_dir(root.join("train/nobody")).unwrap();
    std::os::unix::fs::symlink("nowhere", root.join("train/b/link.JPEG")).unwrap();
    for (kind, path) in [
        (Kind::Unreadable, "train/b/link.JPEG"),
        (Kind::UnknownClass, "val/only_val"),
        (Kind::UntestedClass, "train/only_train"),
        (Kind::EmptyClass, "train/nobody"),
        (Kind::Twice, "val/a/v.JPEG"),
        (Kind::Stray, "train/b/.DS_Store"),
        (Kind::Stray, "train/b/notes.txt"),
        (Kind::Stray, "train/b/inner"),
        (Kind::Stray, "val/list.csv"),
    ] {
        expected.insert((kind, path.to_owned()));
    }
    expected
}

#[test]
fn each_broken_or_odd_image_is_named_none_crashes_and_the_count_is_exact() {
    let dir = tempfile::tempdir().unwrap();
    let expected = fill(dir.path());
    assert!(broken().len() + odd().iter().filter(|(.., kind)| kind.is_some()).count() >= 30);
    let heard = AtomicU64::new(0);
    let hear = |_: u64, _: u64| {
        heard.fetch_add(1, Ordering::Relaxed);
    };
    let report = verify(dir.path(), &hear).unwrap();
    let relative = |path: &Path| path.strip_prefix(dir.path()).unwrap().to_string_lossy().into_owned();
    let found: BTreeSet<_> = report.findings.iter().map(|f| (f.kind, relative(&f.path))).collect();
    assert_eq!(found, expected, "{:#?}", report.findings);
    assert_eq!(found.len(), report.findings.len());
    let num_images = (broken().len() + odd().len() + 3) as u64;
    assert_eq!((report.num_train, report.num_test, report.num_classes), (num_images, 3, 5));
    assert_eq!(heard.into_inner(), num_images + 3);
    assert_eq!(report.num_errors(), broken().len() + 2);
    for (name, _, what) in broken() {
        let finding = report.findings.iter().find(|finding| finding.path.ends_with(name)).unwrap();
        assert!(finding.what.contains(what), "{finding}");
    }
}

#[test]
fn training_reads_what_is_odd_and_names_what_is_broken() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes, _) in broken().into_iter().chain(odd().into_iter().map(|(name, bytes, _)| (name, bytes, ""))) {
        put(dir.path(), &format!("train/a/{name}"), &bytes);
    }
    put(dir.path(), "val/a/v.JPEG", &jpeg(40, 40));
    let recipe = recipe(dir.path());
    let set = ImageFolder::open(&recipe.data).unwrap();
    let broken: BTreeSet<_> = broken().into_iter().map(|(name, ..)| name.to_owned()).collect();
    let mut out = vec![0.0; 32 * 32 * 3];
    for sample in 0..set.identity().num_train {
        let path = set.path(Split::Train, sample);
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        for mut draws in [None].into_iter().chain((0..20).map(|position| Some(Draws::new(0, Epoch(1), position)))) {
            out.fill(f32::NAN);
            match set.image(Split::Train, sample, draws.as_mut(), &mut out) {
                Ok(()) => assert!(out.iter().all(|value| value.is_finite()), "{name}"),
                Err(error) => {
                    assert!(broken.contains(&name), "{error}");
                    assert!(error.to_string().contains(&name), "{error}");
                }
            }
        }
        // a crop may lie above the place where a file breaks off; nothing else of it is read
        let fails = set.image(Split::Train, sample, None, &mut out).is_err();
        let partly = ["half.JPEG", "almost.JPEG", "ends.JPEG", "passes.JPEG"].contains(&&*name);
        assert!(fails == broken.contains(&name) || partly, "{name} fails: {fails}");
    }
}

#[test]
fn exif_turns_an_image_only_where_the_recipe_says_so() {
    let dir = tempfile::tempdir().unwrap();
    // red at the left, so that a clockwise turn brings it to the top
    let row: Vec<u8> = (0..64).flat_map(|x| if x < 32 { [200, 0, 0] } else { [0, 0, 200] }).collect();
    let plain = encode(Pixels::Rgb, (64, 64), &row.repeat(64), Encoding::default()).unwrap();
    let exif = with_exif(6);
    let bytes = [&plain[..2], &exif[2..segment(&exif, 0xe0).max(2)], &plain[2..]].concat();
    put(dir.path(), "train/a/t.JPEG", &bytes);
    put(dir.path(), "val/a/v.JPEG", &bytes);
    let mut recipe = recipe(dir.path());
    let mut look = |exif| {
        recipe.data.image.exif = exif;
        let mut out = vec![0.0; 32 * 32 * 3];
        ImageFolder::open(&recipe.data).unwrap().image(Split::Test, 0, None, &mut out).unwrap();
        let red = |y: usize, x: usize| out[(y * 32 + x) * 3] > out[(y * 32 + x) * 3 + 2];
        (red(16, 2), red(16, 29), red(2, 16), red(29, 16))
    };
    let (left, right, ..) = look(false);
    assert!(left && !right);
    let (.., top, bottom) = look(true);
    assert!(top && !bottom);
}

#[test]
fn what_is_said_of_an_image_does_not_depend_on_which_came_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let transform = Transform::new(&recipe(dir.path()).data);
    let mut out = vec![0.0; 32 * 32 * 3];
    let mut used = Workspace::new().unwrap();
    for (name, bytes, _) in broken() {
        let fresh = transform.apply(&bytes, None, &mut Workspace::new().unwrap(), &mut out).unwrap_err();
        for before in [jpeg(90, 60), jpeg_with(Subsampling::Quarter, true), cmyk()] {
            transform.apply(&before, None, &mut used, &mut out).unwrap();
            assert_eq!(transform.apply(&bytes, None, &mut used, &mut out), Err(fresh.clone()), "{name}");
        }
    }
}

#[test]
fn with_either_policy_each_broken_image_is_named_and_the_count_is_exact() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes, _) in broken().into_iter().chain(odd().into_iter().map(|(name, bytes, _)| (name, bytes, ""))) {
        put(dir.path(), &format!("train/a/{name}"), &bytes);
        put(dir.path(), &format!("val/a/{name}"), &bytes);
    }
    let mut recipe = recipe(dir.path());
    // every row of every image is needed
    recipe.data.image.resize = 32;
    recipe.data.image.random_crop = false;
    let (num, num_broken) = ((broken().len() + odd().len()) as u64, broken().len());
    let range = SampleRange { start: 0, len: num };
    let train = |positions| Wanted::Train(Part { epoch: Epoch(2), batch: range, positions });
    for (wanted, folder) in [(train(range), "train"), (Wanted::Test(range), "val")] {
        recipe.data.image.bad = BadImage::Skip;
        let mut rows = Delivered::default();
        let loader = |recipe: &Recipe| Loader::new(lockstep_data::open(&recipe.data, 0).unwrap(), recipe);
        loader(&recipe).deliver(wanted, &mut rows).unwrap();
        assert_eq!((rows.labels.len(), rows.images.len()), (odd().len(), odd().len() * 32 * 32 * 3));
        assert!(rows.images.iter().all(|value| value.is_finite()));
        assert_eq!(rows.skipped.len(), num_broken, "{:#?}", rows.skipped);
        for (name, _, reason) in broken() {
            let file = format!("{folder}/a/{name}");
            let skipped = rows.skipped.iter().find(|skipped| skipped.file == file).unwrap();
            assert!(skipped.reason.contains(reason), "{skipped:?}");
        }

        recipe.data.image.bad = BadImage::Error;
        let loader = loader(&recipe);
        let one = |at: u64| match wanted {
            Wanted::Train(_) => train(SampleRange { start: at, len: 1 }),
            Wanted::Test(_) => Wanted::Test(SampleRange { start: at, len: 1 }),
        };
        let errors: Vec<_> = (0..num).filter_map(|at| loader.deliver(one(at), &mut rows).err()).collect();
        assert_eq!(errors.len(), num_broken);
        assert!(errors.iter().all(|error| error.exit_code() == ExitCode::Data));
        for (name, _, reason) in broken() {
            let path = dir.path().join(folder).join("a").join(name);
            let named = |error: &&DataError| error.to_string().contains(&format!(": {}: ", path.display()));
            let error = errors.iter().find(named).unwrap();
            assert!(error.to_string().contains(reason), "{error}");
        }
    }
}
