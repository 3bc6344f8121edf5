//! What a step adds up besides gradients, chunk by chunk, and what is said when it is not a number.

use lockstep_data::Loader;
use lockstep_proto::message::StepPlan;

use crate::exec::{Chunk, Counts, Meeting};
use crate::number::Number;
use crate::step::{NotFinite, StepError};

/// So many samples of each rank are named.
const NAMED: usize = 4;

/// Messages of a rank's chunks, ascending; with `train.accumulate` they come in several parts.
#[derive(Debug, Default)]
pub struct Tally {
    totals: Vec<Vec<f64>>,
    /// For the running statistics: see [`Stepper`](crate::step::Stepper).
    pub running: Vec<Vec<f64>>,
    /// Positions whose loss is not finite.
    strange: Vec<u64>,
}

/// Over the global batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Σ cross-entropy.
    pub loss: f64,
    /// Wrong predictions.
    pub wrong: u64,
    /// Of what loaders delivered.
    pub digest: u64,
}

impl Tally {
    /// Takes in what chunks counted. Counts are exact in f64; a digest travels as four 16-bit parts.
    pub fn count<A: Number>(&mut self, chunks: &[Chunk<A>], counts: &[Counts]) {
        for (chunk, counts) in chunks.iter().zip(counts) {
            let parts = (0..4).map(|i| ((chunk.digest >> (16 * i)) & 0xffff) as f64);
            self.totals.push([counts.loss, counts.wrong as f64].into_iter().chain(parts).collect());
            self.strange.extend(&chunk.strange);
        }
    }

    /// Loss, errors and digest over the global batch, of which `batch` samples count, when all chunks of the rank have
    /// been counted.
    ///
    /// # Errors
    /// A collective that failed; a loss that is not finite, on all ranks alike and with the same samples named.
    pub fn totals(
        &mut self,
        meeting: &Meeting,
        loader: &Loader,
        (plan, batch): (&StepPlan, u64),
    ) -> Result<Totals, StepError> {
        let messages = std::mem::take(&mut self.totals);
        let sums = meeting.over_ranks(meeting.op("loss and digest", 0), messages, 6)?;
        let digest = (0..4).fold(0u64, |sum, i| sum.wrapping_add((sums[2 + i] as u64) << (16 * i)));
        if sums[0].is_finite() {
            return Ok(Totals { loss: sums[0], wrong: sums[1] as u64, digest });
        }
        let samples = self.name(meeting, loader, (plan, batch))?;
        let what = format!("loss is {}", sums[0]);
        Err(NotFinite { step: plan.step, epoch: plan.epoch, positions: plan.batch, what, samples }.into())
    }

    /// Which samples of all ranks have a loss that is not finite: the first few of each, and how many there are.
    fn name(&self, meeting: &Meeting, loader: &Loader, (plan, batch): (&StepPlan, u64)) -> Result<String, StepError> {
        let name = |position: &u64| {
            let (sample, name) = loader.named(plan.epoch, *position);
            let name = name.map(|name| format!(", {name}")).unwrap_or_default();
            format!("position {position} (sample {sample}{name})")
        };
        let own: Vec<String> = self.strange.iter().take(NAMED).map(name).collect();
        let mut bytes = (self.strange.len() as u64).to_le_bytes().to_vec();
        bytes.extend(own.join("; ").into_bytes());
        let all = meeting.collective.all_gather(&meeting.op("samples without a finite loss", 0), &bytes)?;
        let (mut count, mut names) = (0, Vec::new());
        for (number, text) in all.iter().filter_map(|bytes| bytes.split_first_chunk::<8>()) {
            count += u64::from_le_bytes(*number);
            names.extend(Some(String::from_utf8_lossy(text).into_owned()).filter(|text| !text.is_empty()));
        }
        let whole = if count == batch { ": all of them, so look at the rate and the weights first" } else { "" };
        Ok(format!("not finite at {count} of {batch}{whole}: {}", names.join("; ")))
    }
}
