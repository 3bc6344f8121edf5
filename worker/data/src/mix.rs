//! Mixup and CutMix of what a loader delivers.
//!
//! A position's partner is a position of the same global batch, augmented as it is there. Mostly it is delivered in the
//! same range of positions; where it is not — at the beginning of a range — it is loaded once more, by whoever loads the
//! range: with `data.repeats` = r that is r more decodes a range, and at most twice as many as without mixing.

use lockstep_proto::ids::{Epoch, SampleRange};
use lockstep_proto::mixing::{Area, Mix};

use crate::error::DataError;
use crate::loader::Loader;

/// The other class of a mixed position's target.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Partner {
    /// Its class.
    pub label: i64,
    /// What is left for the position's own class, in `[0, 1]`.
    pub keep: f64,
}

/// Some positions of a global batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Of which epoch.
    pub epoch: Epoch,
    /// The global batch.
    pub batch: SampleRange,
    /// Those to load.
    pub positions: SampleRange,
}

/// Where to put what was loaded.
#[derive(Debug)]
pub struct Destination<'a> {
    /// Positions × height × width × channels.
    pub images: &'a mut [f32],
    /// The class of each position.
    pub labels: &'a mut [i64],
    /// The other class of each position; empty where the recipe mixes nothing.
    pub partners: &'a mut Vec<Partner>,
}

impl Loader {
    /// Loads a part of a global batch, and mixes it if the recipe says so. Returns the digest of the positions' own
    /// samples; partners count at their own positions.
    ///
    /// # Errors
    /// As [`load_train`](Self::load_train); the sample may be one that a position was to be mixed with.
    ///
    /// # Panics
    /// As [`load_train`](Self::load_train).
    pub fn load_part(&self, part: Part, into: Destination<'_>) -> Result<u64, DataError> {
        let Part { epoch, batch, positions } = part;
        let Destination { images, labels, partners } = into;
        let digest = self.load_train(epoch, positions, images, labels)?;
        partners.clear();
        let Some(mixing) = self.mixing() else { return Ok(digest) };
        partners.resize(labels.len(), Partner::default());
        let [height, width, channels] = self.dataset().train_shape(epoch);
        let num_values = height * width * channels;
        let mut elsewhere = vec![0.0; num_values];
        // Downwards: what lies before a position is still as it was loaded.
        for i in (0..labels.len()).rev() {
            let position = positions.start + i as u64;
            let mix = mixing.at(epoch, position, [height as u32, width as u32]);
            let partner = mixing.partner(position, batch);
            let mut other = labels[i];
            if mix != Mix::Alone && partner != position {
                let (before, rest) = images.split_at_mut(i * num_values);
                let theirs = if (positions.start..position).contains(&partner) {
                    let j = (partner - positions.start) as usize;
                    other = labels[j];
                    &before[j * num_values..(j + 1) * num_values]
                } else {
                    let alone = SampleRange { start: partner, len: 1 };
                    self.load_train(epoch, alone, &mut elsewhere, std::slice::from_mut(&mut other))?;
                    &elsewhere
                };
                apply(mix, &mut rest[..num_values], theirs, [width, channels]);
            }
            partners[i] = match mix {
                Mix::Alone => Partner { label: labels[i], keep: 1.0 },
                Mix::Blend { keep } | Mix::Paste { keep, .. } => Partner { label: other, keep },
            };
        }
        Ok(digest)
    }
}

/// Mixes one image into another, both rows × width × channels.
fn apply(mix: Mix, own: &mut [f32], theirs: &[f32], [width, channels]: [usize; 2]) {
    match mix {
        Mix::Alone => {}
        Mix::Blend { keep } => {
            let (keep, rest) = (keep as f32, (1.0 - keep) as f32);
            own.iter_mut().zip(theirs).for_each(|(own, theirs)| *own = keep * *own + rest * theirs);
        }
        Mix::Paste { area: Area { top, left, bottom, right }, .. } => {
            for row in top as usize..bottom as usize {
                let at = |column: u32| (row * width + column as usize) * channels;
                own[at(left)..at(right)].copy_from_slice(&theirs[at(left)..at(right)]);
            }
        }
    }
}
