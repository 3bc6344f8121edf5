//! The loader: from a range of positions of an epoch to images, labels, and a digest of what was delivered.

use std::sync::Arc;

use lockstep_proto::digest::SampleDigest;
use lockstep_proto::draws::Draws;
use lockstep_proto::ids::{Epoch, SampleRange};
use lockstep_proto::message::Skipped;
use lockstep_proto::mixing::Mixing;
use lockstep_proto::order::SampleOrder;
use lockstep_proto::recipe::{BadImage, Recipe};

use crate::augment::Augmentation;
use crate::delivered::{Delivered, Wanted};
use crate::error::{DataError, Place};
use crate::fault::LoaderFault;
use crate::{Dataset, Split, sample_name};

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
    /// Whether broken images are left out.
    skips: bool,
    /// Called after each sample that was read or found broken.
    heard: Arc<dyn Fn() + Send + Sync>,
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
            skips: recipe.data.image.bad == BadImage::Skip,
            heard: Arc::new(|| ()),
        }
    }

    /// Has `heard` called after each sample that it comes to: a sign of life, from any thread.
    pub fn on_sample(&mut self, heard: Arc<dyn Fn() + Send + Sync>) {
        self.heard = heard;
    }

    /// The data set it loads from.
    pub fn dataset(&self) -> &Arc<dyn Dataset> {
        &self.dataset
    }

    /// Number of positions of an epoch.
    pub fn num_positions(&self) -> u64 {
        self.order.num_positions()
    }

    /// The sample of a position, and its draws, if the recipe augments.
    pub(crate) fn told(&self, epoch: Epoch, position: u64) -> (u64, Option<Draws>) {
        let (drawn_in, drawn_at) = self.order.place(epoch, position);
        (self.sample(epoch, position), self.augments.then(|| Draws::new(self.seed, drawn_in, drawn_at)))
    }

    /// The digest of one delivered sample.
    pub(crate) fn digest_of(&self, epoch: Epoch, position: u64, (sample, class): (u64, u32)) -> u64 {
        self.digest.of(epoch, position, sample, class)
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

    /// Delivers what is wanted into `into`, whose buffers are reused. With `data.image.bad = "skip"` a broken image has no
    /// row, and a position whose partner is broken is mixed with nobody.
    ///
    /// # Errors
    /// A sample that is broken, where the recipe does not skip it, or cannot be read: its position, its file, the remedy.
    ///
    /// # Panics
    /// If a position is past the end of the epoch, or a sample past that of the test set.
    pub fn deliver(&self, wanted: Wanted, into: &mut Delivered) -> Result<(), DataError> {
        match wanted {
            Wanted::Train(part) => self.load_part(part, into),
            Wanted::Test(samples) => self.load_rows(wanted, samples, into),
        }
    }

    /// The rows of a range, nothing mixed yet.
    pub(crate) fn load_rows(&self, wanted: Wanted, range: SampleRange, into: &mut Delivered) -> Result<(), DataError> {
        let (shape, all) = match wanted {
            Wanted::Train(part) => (self.dataset.train_shape(part.epoch), self.num_positions()),
            Wanted::Test(_) => (self.dataset.test_shape(), self.dataset.identity().num_test),
        };
        assert!(range.end() <= all, "range {range} of {all} samples");
        let num_values = shape.iter().product::<usize>();
        into.images.resize(range.len as usize * num_values, 0.0);
        into.labels.clear();
        into.partners.clear();
        into.positions.clear();
        into.skipped.clear();
        into.digest = 0;
        for at in range.start..range.end() {
            let image = &mut into.images[into.labels.len() * num_values..][..num_values];
            let found = match wanted {
                Wanted::Train(part) => self.train(part.epoch, at, image),
                Wanted::Test(_) => self.test(at, image).map(|class| (class, 0)),
            };
            match found {
                Ok((class, digest)) => {
                    into.labels.push(i64::from(class));
                    into.positions.push(at);
                    into.digest = into.digest.wrapping_add(digest);
                }
                Err(error) => into.skipped.push(self.skipped(wanted, at, error)?),
            }
        }
        into.images.truncate(into.labels.len() * num_values);
        Ok(())
    }

    /// Fills `images` (positions × height × width × channels floats) and `labels` with the augmented samples of a range
    /// of positions, which may be empty, leaving none out; nothing is mixed. Returns the digest of what was delivered: the
    /// wrapping sum of the hashes of (position, sample, label), computed from the sample that was really read.
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
        let mut sum = 0_u64;
        let slots = images.chunks_exact_mut(num_values).zip(labels);
        for (position, (image, label)) in (positions.start..).zip(slots) {
            let (class, digest) = self.train(epoch, position, image)?;
            *label = i64::from(class);
            sum = sum.wrapping_add(digest);
        }
        Ok(sum)
    }

    /// Fills `images` and `labels` with test samples as they are, in their own order, leaving none out.
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
            *label = i64::from(self.test(sample, image)?);
        }
        Ok(())
    }

    /// A position's image, its class, and the hash of what was delivered.
    pub(crate) fn train(&self, epoch: Epoch, position: u64, image: &mut [f32]) -> Result<(u32, u64), DataError> {
        let (sample, mut draws) = self.told(epoch, position);
        let at = Place::Train { epoch, position, sample };
        let class = self.fetch(Split::Train, sample, draws.as_mut(), image).map_err(|error| error.at(at))?;
        Ok((class, self.digest.of(epoch, position, sample, class)))
    }

    fn test(&self, sample: u64, image: &mut [f32]) -> Result<u32, DataError> {
        self.fetch(Split::Test, sample, None, image).map_err(|error| error.at(Place::Test { sample }))
    }

    /// Whether an error is of an image that is to be left out.
    pub(crate) fn is_skipped(&self, error: &DataError) -> bool {
        self.skips && error.bad_image().is_some()
    }

    /// Turns what is wrong with an image into a sample that is left out, where the recipe wants that.
    fn skipped(&self, wanted: Wanted, at: u64, error: DataError) -> Result<Skipped, DataError> {
        let Some(bad) = error.bad_image().filter(|_| self.skips) else { return Err(error) };
        let reason = bad.to_string();
        let (split, sample) = match wanted {
            Wanted::Train(part) => (Split::Train, self.sample(part.epoch, at)),
            Wanted::Test(_) => (Split::Test, at),
        };
        Ok(Skipped { position: at, file: sample_name(&*self.dataset, split, sample), reason })
    }

    fn sample(&self, epoch: Epoch, position: u64) -> u64 {
        self.order.sample(epoch, self.delivered_position(epoch, position))
    }

    /// Reads one sample: its image, and the label that lies beside it.
    fn fetch(&self, split: Split, sample: u64, draws: Option<&mut Draws>, image: &mut [f32]) -> Result<u32, DataError> {
        let result = self.dataset.image(split, sample, draws, image);
        (self.heard)();
        result?;
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
