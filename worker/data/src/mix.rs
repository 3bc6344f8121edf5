//! Mixup and CutMix of what a loader delivers.
//!
//! A position's partner is a position of the same global batch, augmented as it is there; with `data.image.bad = "skip"` one
//! whose partner is broken is mixed with nobody. Mostly it is delivered in the same range of positions; where it is not — at
//! the beginning of a range — it is loaded once more, by whoever loads the range: with `data.repeats` = r that is r more
//! decodes a range, and at most twice as many as without mixing.

use lockstep_proto::ids::Epoch;
use lockstep_proto::mixing::{Area, Mix};

use crate::delivered::{Delivered, Part, Partner, Wanted};
use crate::error::DataError;
use crate::loader::Loader;

impl Loader {
    /// Loads a part of a global batch, and mixes it if the recipe says so. A position whose partner is skipped keeps its
    /// own image and class: whether it is does not depend on who loads them.
    ///
    /// # Errors
    /// As [`deliver`](Self::deliver); the sample may be one that a position was to be mixed with.
    ///
    /// # Panics
    /// If a position is past the end of the epoch.
    pub fn load_part(&self, part: Part, into: &mut Delivered) -> Result<(), DataError> {
        let Part { epoch, batch, positions } = part;
        self.load_rows(Wanted::Train(part), positions, into)?;
        let Some(mixing) = self.mixing() else { return Ok(()) };
        let Delivered { images, labels, partners, positions: rows, .. } = into;
        partners.resize(labels.len(), Partner::default());
        let [height, width, channels] = self.dataset().train_shape(epoch);
        let num_values = height * width * channels;
        let mut elsewhere = vec![0.0; num_values];
        // Downwards: what lies before a position is still as it was loaded.
        for i in (0..labels.len()).rev() {
            let (position, label) = (rows[i], labels[i]);
            partners[i] = Partner { label, keep: 1.0 };
            let mix = mixing.at(epoch, position, [height as u32, width as u32]);
            let (Mix::Blend { keep } | Mix::Paste { keep, .. }) = mix else { continue };
            let partner = mixing.partner(position, batch);
            if partner == position {
                partners[i].keep = keep;
                continue;
            }
            let (before, rest) = images.split_at_mut(i * num_values);
            let theirs = if (positions.start..position).contains(&partner) {
                let row = rows[..i].binary_search(&partner).ok();
                row.map(|j| (&before[j * num_values..(j + 1) * num_values], labels[j]))
            } else {
                self.unless_skipped(epoch, partner, &mut elsewhere)?.map(|label| (&elsewhere[..], label))
            };
            // A partner that is left out: there is nobody to mix with.
            let Some((theirs, label)) = theirs else { continue };
            apply(mix, &mut rest[..num_values], theirs, [width, channels]);
            partners[i] = Partner { label, keep };
        }
        Ok(())
    }

    /// A position's image and class; `None` if it is left out.
    fn unless_skipped(&self, epoch: Epoch, position: u64, image: &mut [f32]) -> Result<Option<i64>, DataError> {
        match self.train(epoch, position, image) {
            Ok((class, _)) => Ok(Some(i64::from(class))),
            Err(error) if self.is_skipped(&error) => Ok(None),
            Err(error) => Err(error),
        }
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
