//! Which samples a device is to take from its own copy of a set, and what is to happen to each: what the loader would have
//! done, told instead of done.

use lockstep_proto::draws::Draws;
use lockstep_proto::ids::SampleRange;

use crate::augment::Augmentation;
use crate::{Loader, Split, Wanted};

/// A batch, not read yet; an entry a position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// Numbers of samples.
    pub samples: Vec<i64>,
    /// Their classes.
    pub labels: Vec<i64>,
    /// What happens to each.
    pub augmentations: Vec<Augmentation>,
    /// As [`Delivered::digest`](crate::Delivered::digest).
    pub digest: u64,
}

impl Loader {
    /// The samples of `wanted`, if the set lies in memory and nothing is mixed.
    pub fn choose(&self, wanted: Wanted) -> Option<Chosen> {
        let set = self.dataset().resident().filter(|_| self.mixing().is_none())?;
        let mut chosen = Chosen::default();
        let (range, split): (SampleRange, Split) = match wanted {
            Wanted::Train(part) => (part.positions, Split::Train),
            Wanted::Test(samples) => (samples, Split::Test),
        };
        for at in range.start..range.end() {
            let (sample, augmentation, digest) = match wanted {
                Wanted::Train(part) => {
                    let (sample, draws) = self.told(part.epoch, at);
                    let augmentation = draws.map(|mut draws: Draws| set.draw(&mut draws)).unwrap_or_default();
                    let class = self.dataset().label(split, sample);
                    (sample, augmentation, self.digest_of(part.epoch, at, (sample, class)))
                }
                Wanted::Test(_) => (at, Augmentation::default(), 0),
            };
            chosen.samples.push(sample as i64);
            chosen.labels.push(i64::from(self.dataset().label(split, sample)));
            chosen.augmentations.push(augmentation);
            chosen.digest = chosen.digest.wrapping_add(digest);
        }
        Some(chosen)
    }
}

#[cfg(test)]
mod tests {
    use lockstep_proto::ids::Epoch;
    use lockstep_proto::recipe::{DataKind, Recipe};

    use super::*;
    use crate::{Delivered, Part};

    #[test]
    fn what_is_told_is_what_would_be_done() {
        let mut recipe = Recipe::default();
        recipe.data.kind = DataKind::Shapes;
        let data = crate::open(&recipe.data, 0).unwrap();
        let (loader, shape) = (Loader::new(data, &recipe), [32, 32, 3]);
        let positions = SampleRange { start: 5, len: 40 };
        let batch = SampleRange { start: 0, len: 64 };
        for wanted in [Wanted::Train(Part { epoch: Epoch(2), batch, positions }), Wanted::Test(positions)] {
            let mut rows = Delivered::default();
            loader.deliver(wanted, &mut rows).unwrap();
            let chosen = loader.choose(wanted).unwrap();
            assert_eq!((chosen.digest, &chosen.labels), (rows.digest, &rows.labels));
            let split = if matches!(wanted, Wanted::Test(_)) { Split::Test } else { Split::Train };
            let set = loader.dataset().resident().unwrap();
            let size: usize = shape.iter().product();
            for (i, augmentation) in chosen.augmentations.iter().enumerate() {
                let mut image = vec![f32::NAN; size];
                let bytes = set.samples(split).image(chosen.samples[i] as u64);
                augmentation.apply(shape, bytes, set.normalizer(), &mut image);
                assert_eq!(image, rows.images[i * size..(i + 1) * size], "{wanted:?} {i}");
            }
        }
    }

    #[test]
    fn what_is_mixed_is_not_told() {
        let mut recipe = Recipe::default();
        recipe.data.kind = DataKind::Shapes;
        recipe.train.mixup_alpha = 0.2;
        let loader = Loader::new(crate::open(&recipe.data, 0).unwrap(), &recipe);
        assert_eq!(loader.choose(Wanted::Test(SampleRange { start: 0, len: 1 })), None);
    }
}
