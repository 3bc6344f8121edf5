//! Which samples a rank loads for a batch, in which pieces, and what they are to be told as.

use lockstep_data::{Delivered, Part, Partner, Wanted};
use lockstep_proto::ids::{Epoch, SampleRange};

/// What samples are of.
#[derive(Clone, Copy)]
pub enum Of {
    /// Which epoch, and which global batch of it.
    Train(Epoch, SampleRange),
    /// The test set.
    Test,
}

impl Of {
    /// These positions of it.
    pub fn wanted(self, positions: SampleRange) -> Wanted {
        match self {
            Self::Train(epoch, batch) => Wanted::Train(Part { epoch, batch, positions }),
            Self::Test => Wanted::Test(positions),
        }
    }
}

/// A batch in as many pieces as there are threads to load it.
pub fn pieces(range: SampleRange, num: usize) -> impl Iterator<Item = SampleRange> {
    let piece = range.len.div_ceil(num.max(1) as u64).max(1);
    let starts = (range.start..range.end()).step_by(piece as usize);
    starts.map(move |start| SampleRange { start, len: piece.min(range.end() - start) })
}

/// Positions of each batch of a rank that has these chunks.
pub fn batches(chunks: Vec<SampleRange>, is_apart: bool) -> Vec<SampleRange> {
    if is_apart {
        return chunks;
    }
    let start = chunks.first().map_or(0, |range| range.start);
    vec![SampleRange { start, len: chunks.iter().map(|range| range.len).sum() }]
}

/// Class, the class of the rest, and the first one's share, sample by sample.
pub fn targets(rows: &Delivered) -> Vec<f64> {
    let own = rows.labels.iter().map(|label| Partner { label: *label, keep: 1.0 });
    let partners: Vec<Partner> = if rows.partners.is_empty() { own.collect() } else { rows.partners.clone() };
    let target = |(label, partner): (&i64, &Partner)| [*label as f64, partner.label as f64, partner.keep];
    rows.labels.iter().zip(&partners).flat_map(target).collect()
}
