//! Mixup and CutMix against what they are by definition, in whatever parts a batch is loaded.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

use std::sync::Arc;

use lockstep_data::{Dataset, Destination, Loader, Part, Partner, expected_digest};
use lockstep_proto::ids::{Epoch, SampleRange};
use lockstep_proto::mixing::{Mix, Mixing};
use lockstep_proto::recipe::Recipe;

const VALUES: usize = 32 * 32 * 3;

fn recipe(mixup: f64, cutmix: f64, repeats: u32) -> Recipe {
    let mut recipe = Recipe::default();
    (recipe.data.train_size, recipe.data.test_size, recipe.data.repeats) = (50, 10, repeats);
    (recipe.train.mixup_alpha, recipe.train.cutmix_alpha, recipe.train.mix_probability) = (mixup, cutmix, 0.8);
    recipe.check().unwrap();
    recipe
}

struct Loaded {
    images: Vec<f32>,
    labels: Vec<i64>,
    partners: Vec<Partner>,
    digest: u64,
}

fn load(loader: &Loader, batch: SampleRange, positions: SampleRange) -> Loaded {
    let n = positions.len as usize;
    let (mut images, mut labels, mut partners) = (vec![f32::NAN; n * VALUES], vec![-1; n], Vec::new());
    let part = Part { epoch: Epoch(2), batch, positions };
    let into = Destination { images: &mut images, labels: &mut labels, partners: &mut partners };
    let digest = loader.load_part(part, into).unwrap();
    Loaded { images, labels, partners, digest }
}

/// Every position from its own image and its partner's, loaded alone and without mixing.
fn by_definition(recipe: &Recipe, data: &Arc<dyn Dataset>, batch: SampleRange) -> Loaded {
    let loader = Loader::new(Arc::clone(data), recipe);
    let mixing = Mixing::new(recipe).unwrap();
    let plain = |position: u64| {
        let (mut image, mut label) = (vec![0.0; VALUES], [0]);
        let alone = SampleRange { start: position, len: 1 };
        loader.load_train(Epoch(2), alone, &mut image, &mut label).unwrap();
        (image, label[0])
    };
    let mut out = Loaded { images: Vec::new(), labels: Vec::new(), partners: Vec::new(), digest: 0 };
    for position in batch.start..batch.end() {
        let (own, label) = plain(position);
        let (theirs, other) = plain(mixing.partner(position, batch));
        let (image, partner) = match mixing.at(Epoch(2), position, [32, 32]) {
            // A batch of one sample only: there is nobody else.
            Mix::Blend { keep } | Mix::Paste { keep, .. } if mixing.partner(position, batch) == position => {
                (own, Partner { label, keep })
            }
            Mix::Alone => (own, Partner { label, keep: 1.0 }),
            Mix::Blend { keep } => {
                let (a, b) = (keep as f32, (1.0 - keep) as f32);
                let image = own.iter().zip(&theirs).map(|(own, theirs)| a * own + b * theirs).collect();
                (image, Partner { label: other, keep })
            }
            Mix::Paste { area, keep } => {
                let is_theirs = |i: usize| {
                    let (row, column) = ((i / 3 / 32) as u32, (i / 3 % 32) as u32);
                    (area.top..area.bottom).contains(&row) && (area.left..area.right).contains(&column)
                };
                let image = (0..VALUES).map(|i| if is_theirs(i) { theirs[i] } else { own[i] }).collect();
                (image, Partner { label: other, keep })
            }
        };
        out.images.extend::<Vec<f32>>(image);
        out.labels.push(label);
        out.partners.push(partner);
    }
    out.digest = expected_digest(&**data, recipe, Epoch(2), batch);
    out
}

#[test]
fn a_batch_is_mixed_by_definition_in_whatever_parts_it_is_loaded() {
    for (mixup, cutmix, repeats) in [(0.2, 0.0, 1), (0.0, 1.0, 1), (0.2, 1.0, 1), (0.4, 1.0, 4)] {
        let recipe = recipe(mixup, cutmix, repeats);
        let data = lockstep_data::open(&recipe.data, 0).unwrap();
        let loader = Loader::new(Arc::clone(&data), &recipe);
        // the second batch, whole, and a short one at the end
        for (start, len) in [(16, 16), (48, 2)] {
            let batch = SampleRange { start, len };
            let want = by_definition(&recipe, &data, batch);
            for chunk in [1, 3, 8, 16] {
                let mut have = Loaded { images: Vec::new(), labels: Vec::new(), partners: Vec::new(), digest: 0 };
                let mut at = start;
                while at < batch.end() {
                    let positions = SampleRange { start: at, len: chunk.min(batch.end() - at) };
                    let part = load(&loader, batch, positions);
                    have.images.extend(part.images);
                    have.labels.extend(part.labels);
                    have.partners.extend(part.partners);
                    have.digest = have.digest.wrapping_add(part.digest);
                    at += chunk;
                }
                let what = format!("α {mixup} and {cutmix}, repeats {repeats}, batch {batch}, parts of {chunk}");
                assert!(have.images == want.images, "{what}: images");
                assert_eq!((have.labels, have.partners), (want.labels.clone(), want.partners.clone()), "{what}");
                assert_eq!(have.digest, want.digest, "{what}: what is delivered at a position is its own sample");
            }
        }
    }
}

#[test]
fn mixing_shows() {
    let recipe = recipe(0.0, 1.0, 1);
    let data = lockstep_data::open(&recipe.data, 0).unwrap();
    let batch = SampleRange { start: 0, len: 16 };
    let mixed = load(&Loader::new(Arc::clone(&data), &recipe), batch, batch);
    let mut plain = recipe.clone();
    plain.train.cutmix_alpha = 0.0;
    let plain = load(&Loader::new(data, &plain), batch, batch);
    assert!(plain.partners.is_empty());
    assert_eq!((plain.labels, plain.digest), (mixed.labels, mixed.digest));
    let differing = plain.images.chunks(VALUES).zip(mixed.images.chunks(VALUES)).filter(|(a, b)| a != b).count();
    assert!((8..16).contains(&differing), "{differing} of 16 differ");
}

#[test]
fn repeats_are_one_sample_in_a_row_with_draws_of_their_own() {
    let mut recipe = recipe(0.2, 0.0, 3);
    recipe.train.mixup_alpha = 0.0;
    let data = lockstep_data::open(&recipe.data, 0).unwrap();
    let loader = Loader::new(data, &recipe);
    assert_eq!(loader.num_positions(), 150);
    let whole = SampleRange { start: 0, len: 150 };
    let Loaded { images, labels, .. } = load(&loader, whole, whole);
    let samples: Vec<u64> = (0..150).map(|position| loader.named(Epoch(2), position).0).collect();
    let mut seen: Vec<u64> = samples.iter().step_by(3).copied().collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..50).collect::<Vec<_>>(), "every sample");
    let mut differing = 0;
    for i in (0..150).step_by(3) {
        assert!(samples[i..i + 3].iter().all(|sample| *sample == samples[i]));
        assert!(labels[i..i + 3].iter().all(|label| *label == labels[i]));
        differing += usize::from(images[i * VALUES..(i + 1) * VALUES] != images[(i + 1) * VALUES..(i + 2) * VALUES]);
    }
    assert!(differing > 45, "{differing} of 50 are augmented in another way");
}
