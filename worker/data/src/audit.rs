//! What a loader should have delivered, worked out without one.

use lockstep_proto::digest::SampleDigest;
use lockstep_proto::ids::{Epoch, SampleRange};
use lockstep_proto::order::SampleOrder;
use lockstep_proto::recipe::Recipe;

use crate::{Dataset, Split};

/// The digest of a range of positions according to recipe and labels. Shares nothing with [`crate::Loader`] but the
/// order and the hash themselves, so that it checks the loader's work. Sums of disjoint ranges add with `wrapping_add`.
pub fn expected_digest(dataset: &dyn Dataset, recipe: &Recipe, epoch: Epoch, range: SampleRange) -> u64 {
    let order = SampleOrder::of(recipe, dataset.identity().num_train);
    let digest = SampleDigest::new(recipe.train.seed);
    (range.start..range.end())
        .map(|position| {
            let sample = order.sample(epoch, position);
            digest.of(epoch, position, sample, dataset.label(Split::Train, sample))
        })
        .fold(0, u64::wrapping_add)
}
