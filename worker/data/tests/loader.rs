//! What a loader delivers, against naive references and against the audit's own computation.
#![allow(clippy::unwrap_used)] // helpers of tests may panic

use std::collections::BTreeSet;
use std::sync::Arc;

use lockstep_data::augment::Augmentation;
use lockstep_data::{Dataset, Loader, LoaderFault, Split, expected_digest};
use lockstep_proto::draws::Draws;
use lockstep_proto::ids::{Epoch, SampleRange};
use lockstep_proto::recipe::{Recipe, Sampling};

const NUM_TRAIN: u64 = 200;
const VALUES: usize = 32 * 32 * 3;

fn recipe(seed: u64, sampling: Sampling) -> Recipe {
    let mut recipe = Recipe::default();
    recipe.train.seed = seed;
    (recipe.data.limit, recipe.data.test_limit, recipe.data.sampling) = (NUM_TRAIN, 50, sampling);
    recipe
}

fn dataset(recipe: &Recipe) -> Arc<dyn Dataset> {
    lockstep_data::open(&recipe.data, recipe.train.seed).unwrap()
}

struct Batch {
    images: Vec<f32>,
    labels: Vec<i64>,
    digest: u64,
}

fn load(loader: &Loader, epoch: u64, start: u64, len: u64) -> Batch {
    let (mut images, mut labels) = (vec![f32::NAN; len as usize * VALUES], vec![-1; len as usize]);
    let digest = loader.load_train(Epoch(epoch), SampleRange { start, len }, &mut images, &mut labels).unwrap();
    Batch { images, labels, digest }
}

#[test]
fn digests_are_what_the_audit_expects_for_any_range_and_sampling() {
    for sampling in [Sampling::Once, Sampling::WithReplacement] {
        let recipe = recipe(7, sampling);
        let dataset = dataset(&recipe);
        let loader = Loader::with_fault(dataset.clone(), &recipe, None);
        for (epoch, start, len) in [(1, 0, NUM_TRAIN), (1, 3, 0), (1, 199, 1), (2, 128, 72), (9, 16, 16)] {
            let expected = expected_digest(dataset.as_ref(), &recipe, Epoch(epoch), SampleRange { start, len });
            assert_eq!(load(&loader, epoch, start, len).digest, expected, "epoch {epoch}, {start} + {len}");
        }
        assert_eq!(load(&loader, 1, 5, 0).digest, 0);
        let halves = load(&loader, 1, 0, 90).digest.wrapping_add(load(&loader, 1, 90, 110).digest);
        assert_eq!(halves, load(&loader, 1, 0, 200).digest);
    }
}

#[test]
fn a_position_brings_the_same_bits_whoever_loads_it_in_whatever_range() {
    let recipe = recipe(1, Sampling::Once);
    let dataset = dataset(&recipe);
    let whole = load(&Loader::with_fault(dataset.clone(), &recipe, None), 3, 0, NUM_TRAIN);
    let other = Loader::with_fault(dataset, &recipe, None);
    std::thread::scope(|scope| {
        for (start, len) in [(0, 16), (16, 16), (100, 37), (199, 1)] {
            let (whole, other) = (&whole, &other);
            scope.spawn(move || {
                let part = load(other, 3, start, len);
                let (from, to) = (start as usize, (start + len) as usize);
                assert_eq!(part.labels, whole.labels[from..to]);
                let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&part.images), bits(&whole.images[from * VALUES..to * VALUES]));
            });
        }
    });
}

#[test]
fn an_epoch_brings_each_sample_once_with_the_augmentation_of_its_position() {
    let recipe = recipe(11, Sampling::Once);
    let dataset = dataset(&recipe);
    let plain: Vec<Vec<f32>> = (0..NUM_TRAIN)
        .map(|sample| {
            let mut image = vec![0.0; VALUES];
            dataset.image(Split::Train, sample, None, &mut image).unwrap();
            image
        })
        .collect();
    let batch = load(&Loader::with_fault(dataset.clone(), &recipe, None), 2, 0, NUM_TRAIN);
    let mut seen = BTreeSet::new();
    for position in 0..NUM_TRAIN as usize {
        let augmentation = Augmentation::draw(&recipe.data.augment, &mut Draws::new(11, Epoch(2), position as u64));
        let delivered = &batch.images[position * VALUES..][..VALUES];
        // value by value: pad, crop, flip
        let shows = |image: &Vec<f32>| {
            (0..VALUES).all(|index| {
                let (y, x, c) = ((index / 96) as i32, (index / 3 % 32) as i32, index % 3);
                let x = if augmentation.flip { 31 - x } else { x };
                let (y, x) = (y + augmentation.down, x + augmentation.right);
                let inside = (0..32).contains(&y) && (0..32).contains(&x);
                delivered[index] == if inside { image[(y * 32 + x) as usize * 3 + c] } else { 0.0 }
            })
        };
        let sample = plain.iter().position(shows).expect("an image of the set");
        assert_eq!(batch.labels[position], i64::from(dataset.label(Split::Train, sample as u64)));
        assert!(seen.insert(sample), "sample {sample} came twice");
    }
    assert_eq!(seen.len() as u64, NUM_TRAIN);
}

#[test]
fn epochs_and_seeds_order_and_augment_differently() {
    let first = recipe(1, Sampling::Once);
    let loader = Loader::with_fault(dataset(&first), &first, None);
    let second = recipe(2, Sampling::Once);
    let other = Loader::with_fault(dataset(&second), &second, None);
    let [a, b, c] = [load(&loader, 1, 0, 50), load(&loader, 2, 0, 50), load(&other, 1, 0, 50)];
    assert!(a.digest != b.digest && a.images != b.images);
    assert!(a.digest != c.digest && a.images != c.images);
}

#[test]
fn test_samples_come_plain_and_in_their_own_order() {
    let recipe = recipe(1, Sampling::Once);
    let dataset = dataset(&recipe);
    let loader = Loader::with_fault(dataset.clone(), &recipe, None);
    let (mut images, mut labels) = (vec![f32::NAN; 20 * VALUES], vec![-1; 20]);
    loader.load_test(SampleRange { start: 30, len: 20 }, &mut images, &mut labels).unwrap();
    for slot in 0..20 {
        let mut image = vec![0.0; VALUES];
        dataset.image(Split::Test, 30 + slot as u64, None, &mut image).unwrap();
        assert_eq!(images[slot * VALUES..][..VALUES], image);
        assert_eq!(labels[slot], i64::from(dataset.label(Split::Test, 30 + slot as u64)));
    }
}

#[test]
fn an_injected_fault_delivers_the_next_sample_and_the_digest_says_so() {
    let recipe = recipe(5, Sampling::Once);
    let dataset = dataset(&recipe);
    let good = Loader::with_fault(dataset.clone(), &recipe, None);
    for (at, next) in [(40, 41), (NUM_TRAIN - 1, 0)] {
        let fault = LoaderFault { epoch: Epoch(2), position: at };
        let bad = Loader::with_fault(dataset.clone(), &recipe, Some(fault));
        let range = SampleRange { start: at, len: 1 };
        let expected = expected_digest(dataset.as_ref(), &recipe, Epoch(2), range);
        assert_ne!(load(&bad, 2, at, 1).digest, expected);
        assert_eq!(load(&bad, 2, at, 1).labels, load(&good, 2, next, 1).labels);
        assert_eq!(load(&bad, 2, 0, at).digest, load(&good, 2, 0, at).digest);
        assert_eq!(load(&bad, 1, at, 1).digest, load(&good, 1, at, 1).digest);
    }
}

#[test]
#[should_panic(expected = "range [190, 210) of 200 samples")]
fn a_range_past_the_end_of_the_epoch_is_refused() {
    let recipe = recipe(5, Sampling::Once);
    load(&Loader::with_fault(dataset(&recipe), &recipe, None), 1, 190, 20);
}
