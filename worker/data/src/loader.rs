//! The loader: from a range of positions of an epoch to images, labels, and a digest of what was delivered.

use std::sync::Arc;

use lockstep_proto::digest::SampleDigest;
use lockstep_proto::draws::Draws;
use lockstep_proto::ids::{Epoch, SampleRange};
use lockstep_proto::mixing::Mixing;
use lockstep_proto::order::SampleOrder;
use lockstep_proto::recipe::Recipe;

use crate::augment::Augmentation;
use crate::error::{DataError, Place};
use crate::fault::LoaderFault;
use crate::{Dataset, Split};

/// Delivers batches. Keeps no state between calls, so any number of threads may use one at a time, in any order.
#[derive(Clone)]
pub struct Loader {
    dataset: Arc<dyn Dataset>,
    order: SampleOrder,
    digest: SampleDigest,
    seed: u64,
    augments: bool,
    mixing: Option<Mixing>,
    fault: Option<LoaderFault>,
}

impl Loader {
    /// For a run of `recipe`. Reads [`crate::FAULT_VARIABLE`] once.
    pub fn new(dataset: Arc<dyn Dataset>, recipe: &Recipe) -> Self {
        Self::with_fault(dataset, recipe, LoaderFault::from_environment())
    }

    /// The same, with a fault given here and the environment unread.
    pub fn with_fault(dataset: Arc<dyn Dataset>, recipe: &Recipe, fault: Option<LoaderFault>) -> Self {
        let seed = recipe.train.seed;
        Self {
            order: SampleOrder::of(recipe, dataset.identity().num_train),
            digest: SampleDigest::new(seed),
            seed,
            augments: Augmentation::is_wanted(&recipe.data),
            mixing: Mixing::new(recipe),
            dataset,
            fault,
        }
    }

    /// The data set it loads from.
    pub fn dataset(&self) -> &Arc<dyn Dataset> {
        &self.dataset
    }

    /// Number of positions of an epoch.
    pub fn num_positions(&self) -> u64 {
        self.order.num_positions()
    }

    /// How the recipe mixes positions, if it does.
    pub(crate) fn mixing(&self) -> Option<&Mixing> {
        self.mixing.as_ref()
    }

    /// The sample of a position, and what people know it by.
    ///
    /// # Panics
    /// If the position is past the end of the epoch.
    pub fn named(&self, epoch: Epoch, position: u64) -> (u64, Option<String>) {
        let sample = self.order.sample(epoch, position);
        (sample, self.dataset.name(Split::Train, sample))
    }

    /// Fills `images` (positions × height × width × channels floats) and `labels` with the augmented samples of a range
    /// of positions, which may be empty; nothing is mixed yet. Returns the digest of what was delivered: the wrapping sum of the hashes of
    /// (position, sample, label), computed from the sample that was really read.
    ///
    /// # Errors
    /// A sample that is broken or cannot be read: its position, its file, the remedy.
    ///
    /// # Panics
    /// If a buffer has another length, or a position is past the end of the epoch.
    pub fn load_train(
        &self,
        epoch: Epoch,
        positions: SampleRange,
        images: &mut [f32],
        labels: &mut [i64],
    ) -> Result<u64, DataError> {
        let num_values = self.dataset.train_shape(epoch).iter().product();
        check((positions, self.num_positions()), (images.len(), num_values), labels);
        let mut digest = 0_u64;
        let slots = images.chunks_exact_mut(num_values).zip(labels);
        for (position, (image, label)) in (positions.start..).zip(slots) {
            let sample = self.order.sample(epoch, self.delivered_position(epoch, position));
            let (drawn_in, drawn_at) = self.order.place(epoch, position);
            let mut draws = self.augments.then(|| Draws::new(self.seed, drawn_in, drawn_at));
            let at = Place::Train { epoch, position, sample };
            let class = self.fetch(Split::Train, sample, draws.as_mut(), image).map_err(|error| error.at(at))?;
            *label = i64::from(class);
            digest = digest.wrapping_add(self.digest.of(epoch, position, sample, class));
        }
        Ok(digest)
    }

    /// Fills `images` and `labels` with test samples as they are, in their own order.
    ///
    /// # Errors
    /// A sample that is broken or cannot be read: its number, its file, the remedy.
    ///
    /// # Panics
    /// If a buffer has another length, or a sample is past the end of the test set.
    pub fn load_test(&self, samples: SampleRange, images: &mut [f32], labels: &mut [i64]) -> Result<(), DataError> {
        let num_values = self.dataset.test_shape().iter().product();
        check((samples, self.dataset.identity().num_test), (images.len(), num_values), labels);
        let slots = images.chunks_exact_mut(num_values).zip(labels);
        for (sample, (image, label)) in (samples.start..).zip(slots) {
            let class = self.fetch(Split::Test, sample, None, image);
            *label = i64::from(class.map_err(|error| error.at(Place::Test { sample }))?);
        }
        Ok(())
    }

    /// Reads one sample: its image, and the label that lies beside it.
    fn fetch(&self, split: Split, sample: u64, draws: Option<&mut Draws>, image: &mut [f32]) -> Result<u32, DataError> {
        self.dataset.image(split, sample, draws, image)?;
        Ok(self.dataset.label(split, sample))
    }

    /// Every position delivers its own sample, except under an injected fault.
    fn delivered_position(&self, epoch: Epoch, position: u64) -> u64 {
        match self.fault {
            Some(fault) if fault == (LoaderFault { epoch, position }) => (position + 1) % self.num_positions(),
            _ => position,
        }
    }
}

fn check((range, all): (SampleRange, u64), (len, num_values): (usize, usize), labels: &[i64]) {
    assert!(range.end() <= all, "range {range} of {all} samples");
    assert_eq!(labels.len() as u64, range.len, "labels for range {range}");
    assert_eq!(len, labels.len() * num_values, "values for range {range}");
}
