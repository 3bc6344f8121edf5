//! Steps and ledger against the recipe's course, and digests against the data set.

use std::collections::BTreeMap;

use lockstep_coordinator::store::{LedgerRow, RunReader, StepRow};
use lockstep_data::{Dataset, expected_digest};
use lockstep_proto::ids::{Epoch, SampleRange, Step};
use lockstep_proto::plan::{Course, CourseStep};
use lockstep_proto::recipe::{Recipe, Reduction};

use super::Report;
use super::cover::{Cover, Fault};
use super::skipped::LeftOut;
use crate::failure::Failure;

/// Checks every committed step; returns the rows of `steps` for the comparison with the files.
pub fn check(
    reader: &RunReader,
    recipe: &Recipe,
    dataset: &dyn Dataset,
    report: &mut Report,
) -> Result<Vec<StepRow>, Failure> {
    let mut course = Course::new(recipe, dataset.identity().num_train);
    let mut steps = Vec::new();
    reader.each_step(|row| steps.push(row))?;
    report.steps = steps.len() as u64;
    report.samples = steps.iter().map(|row| row.samples).sum();
    report.skipped = steps.iter().map(|row| row.skipped).sum();
    let left_out = LeftOut::read(&reader.events(0)?, report);
    let chunk = (recipe.train.reduction == Reduction::Canonical).then_some(u64::from(recipe.train.chunk));

    sequence(&steps, &course, report);
    for row in &steps {
        if !(1..=course.total_steps()).contains(&row.step.0) {
            report.findings.push(format!("steps: step {}: the recipe ends at step {}", row.step, course.total_steps()));
            continue;
        }
        let planned = course.at(row.step);
        check_step(row, &planned, report);
        course.observe(row.step, row.wrong, row.samples);
        left_out.check(row, &planned, (recipe, dataset), report);
        let delivered = left_out.others(row.step, planned.batch);
        let digest =
            delivered.map(|range| expected_digest(dataset, recipe, planned.epoch, range)).fold(0, u64::wrapping_add);
        if digest != row.digest {
            report.findings.push(format!(
                "steps: step {}: digest {:016x}, and recipe and data give {digest:016x}: in positions {} of epoch {} a \
                 loader delivered another sample or label",
                row.step, row.digest, planned.batch, planned.epoch
            ));
        }
    }

    let mut ledger =
        Ledger { steps: &steps, course: &course, chunk, covers: BTreeMap::new(), next: 0, shards: Vec::new() };
    reader.each_ledger_row(|row| ledger.add(row, report))?;
    ledger.finish(report);
    Ok(steps)
}

/// Steps count from 1 without a gap.
fn sequence(steps: &[StepRow], course: &Course, report: &mut Report) {
    let mut expected = Step(1);
    for row in steps {
        if row.step > expected {
            let first = course.at(expected);
            let until = if row.step.0 == expected.0 + 1 { String::new() } else { format!(" to {}", row.step.0 - 1) };
            report.findings.push(format!(
                "steps: no step {expected}{until}: positions from {} of epoch {} are not accounted for",
                first.batch.start, first.epoch
            ));
        }
        expected = row.step.next();
    }
}

fn check_step(row: &StepRow, planned: &CourseStep, report: &mut Report) {
    let mut expect = |column: &str, found: String, wanted: String| {
        if found != wanted {
            report
                .findings
                .push(format!("steps: step {}: {column} is {found}, and the recipe says {wanted}", row.step));
        }
    };
    expect("epoch", row.epoch.to_string(), planned.epoch.to_string());
    expect("batch_start", row.batch_start.to_string(), planned.batch.start.to_string());
    expect("samples + skipped", (row.samples + row.skipped).to_string(), planned.batch.len.to_string());
    // Shortest text that reads back as the same bits.
    expect("lr", format!("{:?}", row.lr), format!("{:?}", planned.lr));
    if !row.loss.is_finite() {
        report.findings.push(format!("steps: step {}: loss is not a number", row.step));
    }
    if row.samples > 0 && row.error != row.wrong as f64 / row.samples as f64 {
        report.findings.push(format!(
            "steps: step {}: error is {}, and {} of {} were wrong",
            row.step, row.error, row.wrong, row.samples
        ));
    }
}

/// The ledger's ranges of a step tile its batch, in whole chunks, each rank once.
fn check_shards(row: &StepRow, batch: SampleRange, shards: &[LedgerRow], chunk: Option<u64>, report: &mut Report) {
    let step = row.step;
    let mut cover = Cover::default();
    let mut ranks = Vec::new();
    for shard in shards {
        if (shard.epoch, shard.generation) != (row.epoch, row.generation) {
            report.findings.push(format!(
                "ledger: step {step}: {} is of epoch {}, generation {}, and the step of epoch {}, generation {}",
                named(shard),
                shard.epoch,
                shard.generation,
                row.epoch,
                row.generation
            ));
        }
        if ranks.contains(&shard.rank) || shard.rank.0 >= row.world_size {
            report.findings.push(format!(
                "ledger: step {step}: {} is a second one, or past the world of {}",
                named(shard),
                row.world_size
            ));
        }
        ranks.push(shard.rank);
        if shard.worker.is_none() {
            report.findings.push(format!(
                "ledger: step {step}: {} is of a rank that generation {} did not have",
                named(shard),
                shard.generation
            ));
        }
        if shard.range.is_empty() {
            continue;
        }
        if shard.range.start < batch.start || shard.range.end() > batch.end() {
            report.findings.push(format!("ledger: step {step}: {} is outside the batch {batch}", named(shard)));
            continue;
        }
        let shifted = SampleRange { start: shard.range.start - batch.start, len: shard.range.len };
        let whole = |at: u64| chunk.is_none_or(|chunk| at.is_multiple_of(chunk) || at == batch.len);
        if !whole(shifted.start) || !whole(shifted.end()) {
            report.findings.push(format!(
                "ledger: step {step}: {} is not made of whole chunks of {}",
                named(shard),
                chunk.unwrap_or_default()
            ));
        }
        cover.add(shifted);
    }
    for fault in cover.faults(batch.len) {
        let back = |range: SampleRange| SampleRange { start: range.start + batch.start, len: range.len };
        let fault = match fault {
            Fault::Missing(range) => format!("positions {} are in no row", back(range)),
            Fault::Repeated(range) => format!("positions {} are in two rows", back(range)),
            Fault::Outside(range) => format!("positions {} are outside the batch", back(range)),
        };
        report.findings.push(format!("ledger: step {step}: {fault}"));
    }
}

/// Over all committed steps: a complete epoch has each position once, the last may be a beginning.
fn check_epochs(covers: BTreeMap<Epoch, (Cover, u64)>, course: &Course, report: &mut Report) {
    report.epochs = covers.len() as u64;
    let last = covers.keys().next_back().copied();
    for (epoch, (cover, num_samples)) in covers {
        let complete = Some(epoch) != last;
        let num_positions = if complete { course.num_positions() } else { num_samples };
        if num_positions > course.num_positions() {
            report.findings.push(format!(
                "steps: epoch {epoch}: {num_positions} samples, and an epoch has {}",
                course.num_positions()
            ));
        }
        for fault in cover.faults(num_positions) {
            report.findings.push(format!("ledger: epoch {epoch}: {fault}"));
        }
    }
}

fn named(row: &LedgerRow) -> String {
    format!("rank {}, positions {}", row.rank, row.range)
}

/// The ledger as it is read: rows of one step are together.
struct Ledger<'a> {
    steps: &'a [StepRow],
    course: &'a Course,
    chunk: Option<u64>,
    /// What each epoch's rows cover, and how many samples its steps have.
    covers: BTreeMap<Epoch, (Cover, u64)>,
    /// Index of the step whose rows are being collected.
    next: usize,
    shards: Vec<LedgerRow>,
}

impl Ledger<'_> {
    fn add(&mut self, row: LedgerRow, report: &mut Report) {
        while self.steps.get(self.next).is_some_and(|step| step.step < row.step) {
            self.end_step(report);
        }
        if self.steps.get(self.next).is_some_and(|step| step.step == row.step) {
            self.shards.push(row);
        } else {
            report.findings.push(format!("ledger: {} of step {}: `steps` has no such step", named(&row), row.step));
        }
    }

    fn end_step(&mut self, report: &mut Report) {
        let Some(step) = self.steps.get(self.next) else { return };
        self.next += 1;
        let mut shards = std::mem::take(&mut self.shards);
        shards.sort_by_key(|shard| (shard.range, shard.rank));
        let (cover, num_samples) = self.covers.entry(step.epoch).or_default();
        shards.iter().for_each(|shard| cover.add(shard.range));
        *num_samples += step.samples + step.skipped;
        if step.step.0 <= self.course.total_steps() {
            check_shards(step, self.course.at(step.step).batch, &shards, self.chunk, report);
        }
    }

    fn finish(mut self, report: &mut Report) {
        while self.next < self.steps.len() {
            self.end_step(report);
        }
        check_epochs(self.covers, self.course, report);
    }
}
