//! A data set that lies in memory as bytes, and is normalised and augmented as it is read.

use lockstep_proto::draws::Draws;
use lockstep_proto::message::DataIdentity;
use lockstep_proto::recipe;

use crate::augment::Augmentation;
use crate::error::DataError;
use crate::normalize::Normalizer;
use crate::samples::{Samples, fingerprint};
use crate::{Dataset, Split};

/// Both splits of a set, raw, with the statistics of its training split.
#[derive(Clone, Debug)]
pub struct InMemory {
    identity: DataIdentity,
    train: Samples,
    test: Samples,
    normalizer: Normalizer,
    augment: recipe::Augment,
}

impl InMemory {
    /// Computes statistics and fingerprint. Both splits have images of one shape, and labels below `num_classes`.
    pub fn new(name: &str, num_classes: u32, train: Samples, test: Samples, data: &recipe::Data) -> Self {
        assert_eq!(train.shape(), test.shape(), "splits of one set have images of one shape");
        let identity = DataIdentity {
            name: name.to_owned(),
            num_train: train.len(),
            num_test: test.len(),
            num_classes,
            fingerprint: fingerprint(&train, &test),
        };
        let normalizer = Normalizer::new(data.normalize, &train);
        Self { identity, train, test, normalizer, augment: data.augment.clone() }
    }

    /// What bytes become numbers by.
    pub fn normalizer(&self) -> &Normalizer {
        &self.normalizer
    }

    /// What happens to an image in training.
    pub(crate) fn draw(&self, draws: &mut Draws) -> Augmentation {
        Augmentation::draw(&self.augment, draws)
    }

    /// The raw images of a split.
    pub fn samples(&self, split: Split) -> &Samples {
        match split {
            Split::Train => &self.train,
            Split::Test => &self.test,
        }
    }
}

impl Dataset for InMemory {
    fn identity(&self) -> &DataIdentity {
        &self.identity
    }

    fn shape(&self) -> [usize; 3] {
        self.train.shape()
    }

    fn label(&self, split: Split, sample: u64) -> u32 {
        self.samples(split).label(sample)
    }

    fn is_in_memory(&self) -> bool {
        true
    }

    fn resident(&self) -> Option<&InMemory> {
        Some(self)
    }

    fn image(&self, split: Split, sample: u64, draws: Option<&mut Draws>, out: &mut [f32]) -> Result<(), DataError> {
        let augmentation = draws.map(|draws| self.draw(draws)).unwrap_or_default();
        augmentation.apply(self.shape(), self.samples(split).image(sample), &self.normalizer, out);
        Ok(())
    }
}
