//! Images of noise in memory: what a step costs when nothing has to be read or decoded.

use std::sync::Arc;

use lockstep_data::{Dataset, InMemory, Samples};
use lockstep_proto::ids::Epoch;
use lockstep_proto::recipe::{DataKind, Recipe};

/// Batches of different images, before they come again.
const NUM_BATCHES: u64 = 4;

/// A set with images of the recipe's size and as many classes as are usual for its kind.
pub fn open(recipe: &Recipe) -> Arc<dyn Dataset> {
    let data = &recipe.data;
    let (side, num_classes) = match data.kind {
        DataKind::Cifar10 | DataKind::Shapes => (32, 10),
        DataKind::Cifar100 => (32, 100),
        DataKind::ImageFolder | DataKind::Webdataset => (data.image.train_side(Epoch(1)), 1000),
    };
    let side = side as usize;
    let images = |count: u64, seed: u64| {
        let mut samples = Samples::with_capacity([side, side, 3], count as usize);
        for index in 0..count {
            // A label is a byte: of a thousand classes the first 256 occur.
            samples.push(&noise(side * side * 3, seed ^ index), (index % u64::from(num_classes).min(256)) as u8);
        }
        samples
    };
    Arc::new(InMemory::new(
        "synthetic",
        num_classes,
        images(NUM_BATCHES * recipe.train.batch, 1 << 32),
        images(1, 1 << 33),
        data,
    ))
}

/// Bytes that no decoder, cache or zero detector makes anything of: SplitMix64 (Steele et al. 2014).
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0xd134_2543_de82_ef95);
    let mut word = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = state;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)).to_le_bytes()
    };
    (0..len.div_ceil(8)).flat_map(|_| word()).take(len).collect()
}

#[cfg(test)]
mod tests {
    use lockstep_data::Split;

    use super::*;

    #[test]
    fn the_set_has_the_recipes_size_and_no_two_images_alike() {
        let sets = ["data.image.crop=64".to_owned(), "train.batch=8".to_owned(), "train.chunk=4".to_owned()];
        let set = open(&Recipe::load("imagenet/resnet50-90", &sets).unwrap());
        assert_eq!((set.shape(), set.identity().num_classes, set.identity().num_train), ([64, 64, 3], 1000, 32));
        let image = |index| {
            let mut out = vec![0.0; 64 * 64 * 3];
            set.image(Split::Train, index, None, &mut out).unwrap();
            out
        };
        assert_ne!(image(0), image(1));
        let mean = image(0).iter().sum::<f32>() / (64.0 * 64.0 * 3.0);
        assert!(mean.abs() < 0.1, "normalised noise has a mean near 0, not {mean}");
        assert_eq!(open(&Recipe::load("cifar10/resnet20", &[]).unwrap()).shape(), [32, 32, 3]);
    }
}
