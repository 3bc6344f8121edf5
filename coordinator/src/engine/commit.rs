//! When a step counts. Step k is committed, after k − 1, when all ranks of the open generation have reported it; of a
//! closed generation, when the leader of the next one holds it.

use std::fmt::Display;

use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Epoch, Rank, Step};
use lockstep_proto::message::{EvalReport, StepReport, ToWorker};
use lockstep_proto::recipe::Reduction;
use lockstep_proto::split::{ranges, shard_positions};

use super::effect::{CommittedStep, Record};
use super::event::StreamId;
use super::ledger::{Due, evaluation_after};
use super::planner::step_plan;
use super::reports::{dissenters, least_ready, slowest};
use super::view::Last;
use super::{Engine, Phase};

impl Engine {
    pub(super) fn on_reported(&mut self, stream: StreamId, report: StepReport) {
        let (rank, step) = (report.rank, report.step);
        if report.generation != self.reports.generation() {
            return; // fenced: of an older generation, or of none of ours
        }
        let committed = self.ledger.committed();
        let Some(world) = &mut self.world else {
            if step > committed {
                self.reports.add_step(report);
            }
            return;
        };
        let is_planned = step > committed && step <= world.planned;
        if world.owner(rank) != Some(stream) || !is_planned || self.phase != Phase::Training {
            let planned = world.planned;
            let reason = format!(
                "reported step {step} of rank {rank}, outside its plan of steps {} to {planned}",
                committed.next()
            );
            return self.expel(stream, ExitCode::Protocol, &reason);
        }
        if let Some(progress) = world.progress.get_mut(rank.0 as usize) {
            progress.step = progress.step.max(step);
            progress.since = self.now;
        }
        let slowest = world
            .owners
            .iter()
            .zip(&world.progress)
            .filter(|(owner, _)| **owner == stream)
            .map(|(_, at)| at.step)
            .min();
        if let (Some(peer), Some(step)) = (self.roster.get_mut(stream), slowest) {
            peer.step = step;
        }
        self.reports.add_step(report);
    }

    pub(super) fn on_evaluated(&mut self, stream: StreamId, report: EvalReport) {
        let (rank, step) = (report.rank, report.step);
        let Some(course) = &self.course else { return };
        if report.generation != self.reports.generation() {
            return; // fenced
        }
        let committed = self.ledger.committed();
        let is_due = step >= committed && evaluation_after(course, step) == Some(report.epoch);
        let Some(world) = &mut self.world else {
            if is_due {
                self.reports.add_evaluation(report);
            }
            return;
        };
        let is_planned = is_due && step <= world.planned && world.is_started;
        if world.owner(rank) != Some(stream) || !is_planned || self.phase != Phase::Training {
            let reason = format!("reported an evaluation of step {step} for rank {rank}, which is not in its plan");
            return self.expel(stream, ExitCode::Protocol, &reason);
        }
        if let Some(progress) = world.progress.get_mut(rank.0 as usize) {
            progress.since = self.now;
        }
        self.reports.add_evaluation(report);
    }

    /// Rule (b).
    pub(super) fn commit_what_all_reported(&mut self) {
        while self.phase == Phase::Training && self.commit_next(true) {}
    }

    /// Rule (c): rows up to the leader's state, from whoever reported them. Whether the run goes on.
    pub(super) fn commit_up_to(&mut self, base: Step) -> bool {
        loop {
            let (committed, Some(course)) = (self.ledger.committed(), &self.course) else { return true };
            let due = self.ledger.due(course);
            let goes_on = match due {
                Due::Step(_) if committed < base => self.commit_next(false),
                Due::Evaluation { step, .. } if self.reports.has_evaluation(step, false) => self.commit_next(false),
                Due::Evaluation { epoch, step } if committed < base => {
                    // It happened, or no later step had; but its figures are lost.
                    self.ledger.evaluated(step);
                    self.end_epoch(epoch, step);
                    true
                }
                _ => return !matches!(self.phase, Phase::Ended(_)),
            };
            if !goes_on {
                return false;
            }
        }
    }

    /// Records what is due, if all ranks (or any) reported it. `false` if they have not, or the run ended over it.
    fn commit_next(&mut self, all: bool) -> bool {
        let Some(course) = &self.course else { return false };
        match self.ledger.due(course) {
            Due::Step(step) if self.reports.has_step(step, all) => self.commit_step(step),
            Due::Evaluation { epoch, step } if self.reports.has_evaluation(step, all) => {
                self.commit_evaluation(epoch, step)
            }
            _ => false,
        }
    }

    fn commit_step(&mut self, step: Step) -> bool {
        let generation = self.reports.generation();
        let reports = self.reports.take_step(step);
        let (Some(course), Some(first)) = (&self.course, reports.first()) else { return false };
        let chunk = self.config.recipe.train.chunk;
        let plan = step_plan(course, chunk, step, self.reports.splits());
        let ends_epoch = course.at(step).ends_epoch || step.0 == course.total_steps();
        let is_evaluated = evaluation_after(course, step).is_some();
        let at = format!("step {step} (epoch {}, positions {})", plan.epoch, plan.batch);

        if self.must_agree() {
            let figures = |r: &StepReport| (r.rank, [r.loss.to_bits(), r.wrong, r.samples, r.digest]);
            let others = dissenters(&reports, figures);
            if !others.is_empty() {
                return self.differ(&at, &others, first.rank);
            }
        }
        let num_skipped = first.skipped.len() as u64;
        if first.samples.checked_add(num_skipped) != Some(plan.batch.len) {
            let reason = format!(
                "{at} has {} samples, but its ranks counted {} and left out {num_skipped}",
                plan.batch.len, first.samples
            );
            self.end(ExitCode::Software, reason);
            return false;
        }
        if !first.loss.is_finite() {
            let reason =
                format!("the loss of {at} is {}; lower schedule.lr or warm up, or look at those samples", first.loss);
            self.end(ExitCode::Software, reason);
            return false;
        }
        let shards =
            ranges(&plan.shards).into_iter().map(|chunks| shard_positions(plan.batch, chunk, chunks)).collect();
        let committed = CommittedStep {
            step,
            epoch: plan.epoch,
            generation,
            lr: plan.lr,
            loss: first.loss,
            wrong: first.wrong,
            samples: first.samples,
            skipped: first.skipped.clone(),
            digest: first.digest,
            ready: least_ready(&reports),
            shards,
            times: slowest(&reports),
        };
        self.pace.step(Last::of(&committed));
        self.ledger.commit(step, generation);
        if let Some(course) = &mut self.course {
            course.observe(step, committed.wrong, committed.samples);
        }
        self.num_fruitless = 0;
        if let Some(world) = &mut self.world {
            self.blame.absolve(world.members.iter().map(|member| &member.worker));
            world.has_committed = true;
            world.speeds.add(&plan.shards, &reports);
            if let Some(since) = world.saves.get_mut(&step) {
                *since = self.now;
            }
        }
        let epoch = plan.epoch;
        self.persist(Record::Committed(Box::new(committed)));
        if ends_epoch && !is_evaluated {
            self.end_epoch(epoch, step);
        }
        true
    }

    fn commit_evaluation(&mut self, epoch: Epoch, step: Step) -> bool {
        let generation = self.reports.generation();
        let reports = self.reports.take_evaluation(step);
        let Some(first) = reports.first() else { return false };
        let at = format!("the evaluation after step {step} (epoch {epoch})");
        if self.must_agree() {
            let figures =
                |r: &EvalReport| (r.rank, [r.loss.to_bits(), r.error.to_bits(), r.error_top5.to_bits(), r.samples]);
            let others = dissenters(&reports, figures);
            if !others.is_empty() {
                return self.differ(&at, &others, first.rank);
            }
        }
        let (loss, error, error_top5) = (first.loss, first.error, first.error_top5);
        let skipped = first.skipped.clone();
        if !loss.is_finite() {
            self.end(ExitCode::Software, format!("the loss of {at} is {loss}; lower schedule.lr or warm up"));
            return false;
        }
        let world_size = self.reports.world_size();
        self.ledger.evaluated(step);
        self.shelf.evaluated(step, error);
        self.pace.evaluated(error);
        self.persist(Record::Evaluated { epoch, step, generation, world_size, loss, error, error_top5, skipped });
        self.end_epoch(epoch, step);
        true
    }

    /// A former life may have died between an epoch's last record and the one that closes it. Saying it twice is
    /// harmless: the row is computed from what is stored.
    pub(super) fn end_epoch_again(&mut self) {
        let (Some(course), step) = (&self.course, self.ledger.committed()) else { return };
        let is_end = step.0 == course.total_steps() || step.0 > 0 && course.at(step).ends_epoch;
        let is_evaluated = step.0 == 0 && self.ledger.evaluation_due(course, step) != evaluation_after(course, step);
        if is_evaluated || is_end && self.ledger.evaluation_due(course, step).is_none() {
            self.end_epoch(course.epoch_of(step), step);
        }
    }

    fn end_epoch(&mut self, epoch: Epoch, step: Step) {
        self.persist(Record::EpochEnded { epoch, step });
    }

    /// With the canonical order every rank computes the same bits; otherwise rank 0's figures are taken.
    fn must_agree(&self) -> bool {
        self.config.recipe.train.reduction == Reduction::Canonical
    }

    fn differ(&mut self, what: &dyn Display, others: &[Rank], first: Rank) -> bool {
        let others: Vec<String> = others.iter().map(Rank::to_string).collect();
        let reason = format!(
            "ranks disagree about {what}: rank {} differs from rank {first}; check the memory of those machines, then --resume",
            others.join(", ")
        );
        self.end(ExitCode::Software, reason);
        false
    }

    /// One acknowledgement for all steps that became durable.
    pub(super) fn acknowledge(&mut self) {
        let Some(world) = &self.world else { return };
        if let Some(step) = self.outbox.newly_durable(world.generation) {
            for stream in world.streams() {
                self.outbox.send(stream, ToWorker::Committed { generation: world.generation, step });
            }
        }
    }
}
