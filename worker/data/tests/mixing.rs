//! Mixup and CutMix against what they are by definition, in whatever parts a batch is loaded.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

use std::sync::Arc;

use lockstep_data::image::ImageError;
use lockstep_data::{DataError, Dataset, Delivered, Loader, Part, Partner, Split, expected_digest};
use lockstep_proto::draws::Draws;
use lockstep_proto::ids::{Epoch, SampleRange};
use lockstep_proto::message::DataIdentity;
use lockstep_proto::mixing::{Mix, Mixing};
use lockstep_proto::order::SampleOrder;
use lockstep_proto::recipe::{BadImage, Recipe};

const VALUES: usize = 32 * 32 * 3;

fn recipe(mixup: f64, cutmix: f64, repeats: u32) -> Recipe {
    let mut recipe = Recipe::default();
    (recipe.data.train_size, recipe.data.test_size, recipe.data.repeats) = (50, 10, repeats);
    (recipe.train.mixup_alpha, recipe.train.cutmix_alpha, recipe.train.mix_probability) = (mixup, cutmix, 0.8);
    recipe.check().unwrap();
    recipe
}

fn load(loader: &Loader, batch: SampleRange, positions: SampleRange) -> Delivered {
    let mut into = Delivered::default();
    loader.load_part(Part { epoch: Epoch(2), batch, positions }, &mut into).unwrap();
    into
}

/// Every position from its own image and its partner's, loaded alone and without mixing.
fn by_definition(recipe: &Recipe, data: &Arc<dyn Dataset>, batch: SampleRange) -> Delivered {
    let loader = Loader::new(Arc::clone(data), recipe);
    let mixing = Mixing::new(recipe).unwrap();
    let plain = |position: u64| {
        let (mut image, mut label) = (vec![0.0; VALUES], [0]);
        let alone = SampleRange { start: position, len: 1 };
        loader.load_train(Epoch(2), alone, &mut image, &mut label).unwrap();
        (image, label[0])
    };
    let mut out = Delivered::default();
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
                let mut have = Delivered::default();
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

/// A set of which some samples are broken.
struct Holey(Arc<dyn Dataset>, Vec<u64>);

impl Dataset for Holey {
    fn identity(&self) -> &DataIdentity {
        self.0.identity()
    }

    fn shape(&self) -> [usize; 3] {
        self.0.shape()
    }

    fn label(&self, split: Split, sample: u64) -> u32 {
        self.0.label(split, sample)
    }

    fn image(&self, split: Split, sample: u64, draws: Option<&mut Draws>, out: &mut [f32]) -> Result<(), DataError> {
        if !self.1.contains(&sample) {
            return self.0.image(split, sample, draws, out);
        }
        out.fill(f32::NAN);
        let path = format!("{sample}.JPEG").into();
        Err(DataError::Image { path, error: ImageError::Kind { is: "text" }, root: "set".into() })
    }
}

#[test]
fn who_has_a_broken_partner_stays_alone_in_whatever_parts_a_batch_is_loaded() {
    for repeats in [1, 2] {
        let mut recipe = recipe(0.2, 1.0, repeats);
        recipe.train.mix_probability = 1.0;
        let whole = lockstep_data::open(&recipe.data, 0).unwrap();
        let order = SampleOrder::of(&recipe, 50);
        let (start, len) = (16, 16);
        let batch = SampleRange { start, len };
        // the first and the last, of which one is the partner of the other, and two in a row
        let samples: Vec<u64> = [start, 23, 24, batch.end() - 1].map(|at| order.sample(Epoch(2), at)).to_vec();
        let is_broken = |at: u64| samples.contains(&order.sample(Epoch(2), at));
        let want = by_definition(&recipe, &whole, batch);
        recipe.data.image.bad = BadImage::Skip;
        let loader = Loader::new(Arc::new(Holey(Arc::clone(&whole), samples.clone())), &recipe);
        let mixing = Mixing::new(&recipe).unwrap();
        let mut num_alone = 0;
        for chunk in [1, 3, 8, 16] {
            let mut at = start;
            while at < batch.end() {
                let positions = SampleRange { start: at, len: chunk.min(batch.end() - at) };
                let part = load(&loader, batch, positions);
                let all = positions.start..positions.end();
                let left: Vec<u64> = all.clone().filter(|at| !is_broken(*at)).collect();
                assert_eq!(part.positions, left);
                let skipped: Vec<u64> = part.skipped.iter().map(|skipped| skipped.position).collect();
                assert_eq!(skipped, all.filter(|at| is_broken(*at)).collect::<Vec<_>>());
                for (row, position) in part.positions.iter().enumerate() {
                    let (i, image) = ((position - start) as usize, &part.images[row * VALUES..(row + 1) * VALUES]);
                    assert_eq!(part.labels[row], want.labels[i]);
                    if !is_broken(mixing.partner(*position, batch)) {
                        assert!(image == &want.images[i * VALUES..(i + 1) * VALUES], "position {position}");
                        assert_eq!(part.partners[row], want.partners[i], "position {position}");
                        continue;
                    }
                    num_alone += 1;
                    let (mut own, mut label) = (vec![0.0; VALUES], [0]);
                    let alone = SampleRange { start: *position, len: 1 };
                    loader.load_train(Epoch(2), alone, &mut own, &mut label).unwrap();
                    assert!(image == own, "position {position} keeps its image");
                    assert_eq!(part.partners[row], Partner { label: label[0], keep: 1.0 }, "position {position}");
                }
                at += chunk;
            }
        }
        assert!(num_alone >= 8, "{num_alone}");
        // whoever does not skip is told, of a partner too
        recipe.data.image.bad = BadImage::Error;
        let strict = Loader::new(Arc::new(Holey(whole, samples.clone())), &recipe);
        let own = SampleRange { start: 25, len: 1 };
        let part = Part { epoch: Epoch(2), batch, positions: own };
        let found = strict.load_part(part, &mut Delivered::default());
        assert_eq!(found.is_err(), is_broken(25) || is_broken(mixing.partner(25, batch)));
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
    let Delivered { images, labels, .. } = load(&loader, whole, whole);
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
