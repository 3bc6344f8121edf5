//! Samples that were left out because they could not be read: events name them, `steps` counts them, digests lack them.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_coordinator::store::{EventRow, StepRow};
use lockstep_data::{Dataset, Split, sample_name};
use lockstep_proto::ids::{SampleRange, Step};
use lockstep_proto::order::SampleOrder;
use lockstep_proto::plan::CourseStep;
use lockstep_proto::recipe::{BadImage, Recipe};

use super::Report;

/// Positions that each step left out, with the file that its event names.
#[derive(Debug, Default)]
pub struct LeftOut(BTreeMap<Step, BTreeMap<u64, String>>);

impl LeftOut {
    /// From the events `sample_skipped` of training steps. Steps that were rolled back are forgotten: they were taken
    /// again.
    pub fn read(events: &[EventRow], report: &mut Report) -> Self {
        let mut steps: BTreeMap<Step, BTreeMap<u64, String>> = BTreeMap::new();
        for event in events {
            if event.kind == "rolled_back" {
                let to = event.detail["to"].as_u64().unwrap_or(0);
                steps.retain(|step, _| step.0 <= to);
            }
            if event.kind != "sample_skipped" || event.detail["split"] != "train" {
                continue;
            }
            let Some(position) = event.detail["position"].as_u64() else {
                report.findings.push(format!("events: {}: a sample that was skipped, and no position", event.id));
                continue;
            };
            let file = event.detail["file"].as_str().unwrap_or_default().to_owned();
            if steps.entry(event.step).or_default().insert(position, file).is_some() {
                let step = event.step;
                report.findings.push(format!("events: {}: position {position} of step {step} again", event.id));
            }
        }
        Self(steps)
    }

    /// A step's count, its positions and their files, and whether the recipe lets it leave anything out.
    pub fn check(
        &self,
        row: &StepRow,
        planned: &CourseStep,
        (recipe, dataset): (&Recipe, &dyn Dataset),
        report: &mut Report,
    ) {
        let none = BTreeMap::new();
        let named = self.0.get(&row.step).unwrap_or(&none);
        let at = format!("steps: step {}", row.step);
        if named.len() as u64 != row.skipped {
            report.findings.push(format!("{at}: skipped is {}, and events name {}", row.skipped, named.len()));
        }
        if row.skipped > 0 && recipe.data.image.bad == BadImage::Error {
            report.findings.push(format!("{at}: skipped is {}, and data.image.bad is \"error\"", row.skipped));
        }
        let order = SampleOrder::of(recipe, dataset.identity().num_train);
        for (&position, file) in named {
            if !(planned.batch.start..planned.batch.end()).contains(&position) {
                report.findings.push(format!("{at}: position {position} was skipped, outside its batch"));
                continue;
            }
            let wanted = sample_name(dataset, Split::Train, order.sample(planned.epoch, position));
            if *file != wanted {
                report.findings.push(format!("{at}: position {position} is {wanted}, and its event names {file}"));
            }
        }
    }

    /// The ranges of `batch` between the positions that `step` left out.
    pub fn others(&self, step: Step, batch: SampleRange) -> impl Iterator<Item = SampleRange> {
        let mut starts = vec![batch.start];
        let mut ends = Vec::new();
        let positions: BTreeSet<u64> = self.0.get(&step).into_iter().flat_map(|named| named.keys().copied()).collect();
        for position in positions.into_iter().filter(|at| (batch.start..batch.end()).contains(at)) {
            ends.push(position);
            starts.push(position + 1);
        }
        ends.push(batch.end());
        starts.into_iter().zip(ends).map(|(start, end)| SampleRange { start, len: end - start })
    }
}
