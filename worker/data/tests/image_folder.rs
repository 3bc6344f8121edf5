//! A folder of images as a data set.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use common::{jpeg, put, recipe};
use lockstep_data::{DataError, Dataset, ImageFolder, Loader, Split, expected_digest};
use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Epoch, SampleRange};
use lockstep_proto::recipe::Recipe;

/// Two classes of three and one training images, and one test image each.
fn folder(root: &Path) {
    for (place, path) in
        ["train/b/1.JPEG", "train/b/2.JPEG", "train/b/3.JPEG", "train/a/9.jpg", "val/a/5.JPEG", "val/b/6.JPEG"]
            .into_iter()
            .enumerate()
    {
        put(root, path, &jpeg(60 + 10 * place as u32, 50));
    }
}

fn open(recipe: &Recipe) -> Result<ImageFolder, DataError> {
    ImageFolder::open(&recipe.data)
}

#[test]
fn samples_go_round_the_classes_and_labels_are_places_of_sorted_names() {
    let dir = tempfile::tempdir().unwrap();
    folder(dir.path());
    let set = open(&recipe(dir.path())).unwrap();
    let identity = set.identity();
    assert_eq!((identity.num_train, identity.num_test, identity.num_classes), (4, 2, 2));
    assert_eq!((&*identity.name, set.shape()), ("image-folder", [32, 32, 3]));
    let names = (0..4).map(|sample| set.path(Split::Train, sample)).collect::<Vec<_>>();
    let expected = ["a/9.jpg", "b/1.JPEG", "b/2.JPEG", "b/3.JPEG"].map(|name| dir.path().join("train").join(name));
    assert_eq!(names, expected);
    assert_eq!([0, 1, 2, 3].map(|sample| set.label(Split::Train, sample)), [0, 1, 1, 1]);
    assert_eq!(set.classes(), ["a", "b"]);
}

#[test]
fn the_fingerprint_sees_names_sizes_labels_and_limits() {
    let dir = tempfile::tempdir().unwrap();
    folder(dir.path());
    let print = |change: &dyn Fn(&mut Recipe)| {
        let mut recipe = recipe(dir.path());
        change(&mut recipe);
        open(&recipe).unwrap().identity().fingerprint.clone()
    };
    let same = |_: &mut Recipe| ();
    let plain = print(&same);
    assert_eq!(plain, print(&|recipe| recipe.data.image.crop = 16), "what is done to images does not matter");
    let mut prints = vec![plain, print(&|recipe| recipe.data.limit = 3)];
    fs::rename(dir.path().join("train/b/1.JPEG"), dir.path().join("train/b/0.JPEG")).unwrap();
    prints.push(print(&same));
    put(dir.path(), "train/b/0.JPEG", &jpeg(33, 33));
    prints.push(print(&same));
    fs::rename(dir.path().join("train/b/0.JPEG"), dir.path().join("train/a/0.JPEG")).unwrap();
    prints.push(print(&same));
    put(dir.path(), "train/c/0.JPEG", &jpeg(33, 33));
    prints.push(print(&same));
    prints.sort();
    prints.dedup();
    assert_eq!(prints.len(), 6);
}

#[test]
fn what_is_wrong_with_a_folder_is_named_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let said = || {
        let error = open(&recipe(root)).err().unwrap();
        (error.exit_code(), error.to_string().replace(&*root.to_string_lossy(), "DIR"))
    };
    let lacks = "no such folder: set data.path to a folder with train/<class>/ and val/<class>/ in it";
    assert_eq!(said(), (ExitCode::NoInput, format!("DIR/train: {lacks}")));
    put(root, "train/a/1.JPEG", &jpeg(40, 40));
    assert_eq!(said(), (ExitCode::NoInput, format!("DIR/val: {lacks}")));
    fs::create_dir(root.join("val")).unwrap();
    assert_eq!(said(), (ExitCode::Data, "DIR/val: no images in it: they belong into a folder for each class".into()));
    put(root, "val/z/1.JPEG", &jpeg(40, 40));
    put(root, "val/z/2.JPEG", &jpeg(40, 40));
    let (code, text) = said();
    assert_eq!(code, ExitCode::Data);
    assert!(text.starts_with("DIR: val has the class z (2 images), which train lacks:"), "{text}");
    assert!(text.contains("put its images into train/z too"), "{text}");
}

fn batch(loader: &Loader, epoch: u64, start: u64, len: u64) -> (Vec<f32>, u64) {
    let (mut images, mut labels) = (vec![f32::NAN; len as usize * 32 * 32 * 3], vec![-1; len as usize]);
    let digest = loader.load_train(Epoch(epoch), SampleRange { start, len }, &mut images, &mut labels).unwrap();
    (images, digest)
}

#[test]
fn what_is_delivered_depends_on_seed_epoch_and_position_alone() {
    let dir = tempfile::tempdir().unwrap();
    folder(dir.path());
    let mut recipe = recipe(dir.path());
    recipe.data.image.brightness = 0.4;
    recipe.data.image.hue = 0.1;
    recipe.data.image.lighting = 0.1;
    let loader = |recipe: &Recipe| Loader::new(lockstep_data::open(&recipe.data, 0).unwrap(), recipe);
    let (whole, digest) = batch(&loader(&recipe), 1, 0, 4);
    assert!(whole.iter().all(|value| value.is_finite()));
    // in another order, from other threads
    let parts: Vec<_> = std::thread::scope(|scope| {
        let shared = loader(&recipe);
        let threads: Vec<_> = [3, 1, 0, 2]
            .map(|at| (at, shared.clone()))
            .into_iter()
            .map(|(at, l)| scope.spawn(move || (at, batch(&l, 1, at, 1))))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (at, (image, _)) in &parts {
        assert_eq!(image[..], whole[*at as usize * 32 * 32 * 3..][..32 * 32 * 3]);
    }
    assert_eq!(parts.iter().fold(0_u64, |sum, (_, (_, digest))| sum.wrapping_add(*digest)), digest);
    let set = lockstep_data::open(&recipe.data, 0).unwrap();
    assert_eq!(digest, expected_digest(&*set, &recipe, Epoch(1), SampleRange { start: 0, len: 4 }));
    assert_ne!(batch(&loader(&recipe), 2, 0, 4).0, whole);
    recipe.train.seed = 1;
    assert_ne!(batch(&loader(&recipe), 1, 0, 4).0, whole);
}

#[test]
fn without_random_crops_training_sees_what_evaluation_sees() {
    let dir = tempfile::tempdir().unwrap();
    folder(dir.path());
    let mut recipe = recipe(dir.path());
    recipe.data.image.random_crop = false;
    recipe.data.augment.flip = false;
    let set = lockstep_data::open(&recipe.data, 0).unwrap();
    let mut drawn = vec![0.0; 32 * 32 * 3];
    let mut plain = drawn.clone();
    let mut draws = lockstep_proto::draws::Draws::new(0, Epoch(1), 0);
    set.image(Split::Train, 2, Some(&mut draws), &mut drawn).unwrap();
    set.image(Split::Train, 2, None, &mut plain).unwrap();
    assert_eq!(drawn, plain);
}

#[test]
fn sides_grow_with_the_epoch_and_evaluation_has_its_own() {
    let dir = tempfile::tempdir().unwrap();
    folder(dir.path());
    let mut recipe = recipe(dir.path());
    let image = &mut recipe.data.image;
    (image.crop, image.crop_milestones, image.crop_sizes) = (16, vec![2, 3], vec![24, 32]);
    (image.eval_crop, image.resize) = (36, 40);
    recipe.check().unwrap();
    let set = lockstep_data::open(&recipe.data, 0).unwrap();
    assert_eq!((set.shape(), set.test_shape()), ([16, 16, 3], [36, 36, 3]));
    let loader = Loader::new(Arc::clone(&set), &recipe);
    let mut before = Vec::new();
    for (epoch, side) in [(1, 16), (2, 16), (3, 24), (4, 32), (5, 32)] {
        assert_eq!(set.train_shape(Epoch(epoch)), [side, side, 3], "epoch {epoch}");
        let (mut images, mut labels) = (vec![f32::NAN; 4 * side * side * 3], vec![0; 4]);
        loader.load_train(Epoch(epoch), SampleRange { start: 0, len: 4 }, &mut images, &mut labels).unwrap();
        assert!(images.iter().all(|value| value.is_finite()) && images != before);
        before = images;
    }
    let (mut images, mut labels) = (vec![f32::NAN; 2 * 36 * 36 * 3], vec![0; 2]);
    loader.load_test(SampleRange { start: 0, len: 2 }, &mut images, &mut labels).unwrap();
    assert!(images.iter().all(|value| value.is_finite()));
    // The same part of an image, drawn larger: the draws are those of the position, whatever the side.
    let (small, large) = (recipe.clone(), {
        let mut recipe = recipe.clone();
        (recipe.data.image.crop, recipe.data.image.crop_milestones, recipe.data.image.crop_sizes) =
            (32, vec![], vec![]);
        recipe
    });
    let mean = |recipe: &Recipe, side: usize| {
        let loader = Loader::new(lockstep_data::open(&recipe.data, 0).unwrap(), recipe);
        let (mut images, mut labels) = (vec![0.0; 4 * side * side * 3], vec![0; 4]);
        loader.load_train(Epoch(1), SampleRange { start: 0, len: 4 }, &mut images, &mut labels).unwrap();
        let each = images.chunks(side * side * 3).map(|image| image.iter().sum::<f32>() / image.len() as f32);
        each.collect::<Vec<_>>()
    };
    for (small, large) in mean(&small, 16).into_iter().zip(mean(&large, 32)) {
        assert!((small - large).abs() < 0.05, "{small} and {large}");
    }
}

#[test]
fn a_broken_image_is_named_with_its_file_its_position_and_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    folder(dir.path());
    put(dir.path(), "train/a/9.jpg", b"<html>not found</html>");
    put(dir.path(), "val/b/6.JPEG", b"");
    let recipe = recipe(dir.path());
    let loader = Loader::new(lockstep_data::open(&recipe.data, 0).unwrap(), &recipe);
    let (mut images, mut labels) = (vec![0.0; 4 * 32 * 32 * 3], vec![0; 4]);
    let error = loader.load_train(Epoch(3), SampleRange { start: 0, len: 4 }, &mut images, &mut labels).unwrap_err();
    let text = error.to_string().replace(&*dir.path().to_string_lossy(), "DIR");
    assert_eq!(error.exit_code(), ExitCode::Data);
    assert!(
        text.starts_with("position ") && text.contains(" of epoch 3 (training sample 0): DIR/train/a/9.jpg: "),
        "{text}"
    );
    assert!(text.contains("not a JPEG or PNG but a web page"), "{text}");
    assert!(text.ends_with("replace or remove it; `lockstep data verify DIR` finds all such files"), "{text}");
    let found = loader.load_test(SampleRange { start: 0, len: 2 }, &mut images[..2 * 32 * 32 * 3], &mut labels[..2]);
    assert!(found.unwrap_err().to_string().starts_with("test sample 1: "));
    fs::remove_file(dir.path().join("val/b/6.JPEG")).unwrap();
    let found = loader.load_test(SampleRange { start: 0, len: 2 }, &mut images[..2 * 32 * 32 * 3], &mut labels[..2]);
    assert_eq!(found.unwrap_err().exit_code(), ExitCode::NoInput);
}
