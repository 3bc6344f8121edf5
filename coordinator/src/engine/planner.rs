//! What the open generation does next: a window of steps ahead of the last committed one, so that no rank ever waits
//! for a message.

use lockstep_proto::ids::Step;
use lockstep_proto::message::{Plan, PlanItem, StepPlan, ToWorker};
use lockstep_proto::plan::{Boundary, Course};
use lockstep_proto::split::num_chunks;

use super::balance::Splits;
use super::ledger::evaluation_after;
use super::{Engine, Phase};

impl Engine {
    pub(super) fn plan(&mut self) {
        let (Phase::Training, Some(world), Some(course)) = (self.phase, &mut self.world, &self.course) else { return };
        let before = world.planned;
        if let Some((seq, change)) = &world.resplit {
            if !self.outbox.is_persisted(*seq) {
                return; // how a step splits is durable before anyone hears of it
            }
            self.reports.resplit(change.clone());
            world.resplit = None;
        }
        let mut items = Vec::new();
        if !world.is_started {
            world.is_started = true;
            let step = before;
            if let (Some(epoch), None) = (self.ledger.evaluation_due(course, step), &self.stop) {
                items.push(PlanItem::Evaluate { epoch, step });
            }
            // Without any checkpoint the base is saved, whatever the recipe says: there is always one.
            let is_wanted = super::ledger::saves_after(course, step) || self.shelf.newest().is_none();
            if is_wanted && !self.shelf.has(step) {
                items.push(PlanItem::Checkpoint { step, epoch: course.epoch_of(step) });
            }
        }
        let window = self.config.recipe.train.window.max(1);
        let committed = self.ledger.committed().0;
        let horizon = committed.saturating_add(window).min(course.total_steps());
        let is_low = (before.0 - committed.min(before.0)) * 2 <= window;
        if is_low && self.stop.is_none() && self.shelf.has_durable(&self.outbox) {
            for step in before.0 + 1..=horizon {
                let step = Step(step);
                items.push(PlanItem::Step(step_plan(
                    course,
                    self.config.recipe.train.chunk,
                    step,
                    self.reports.splits(),
                )));
                items.extend(course.after(step).into_iter().map(|boundary| match boundary {
                    Boundary::Evaluate { epoch } => PlanItem::Evaluate { epoch, step },
                    Boundary::Checkpoint { epoch } => PlanItem::Checkpoint { step, epoch },
                }));
                world.planned = step;
            }
        }
        if self.stop.is_some() && !world.is_stopping {
            world.is_stopping = true;
            let step = world.planned;
            let is_asked_for = world.saves.contains_key(&step)
                || items.iter().any(|item| matches!(item, PlanItem::Checkpoint { step: of, .. } if *of == step));
            if !is_asked_for && !self.shelf.has(step) {
                items.push(PlanItem::Checkpoint { step, epoch: course.epoch_of(step) });
            }
        }
        if items.is_empty() {
            return;
        }
        for item in &items {
            if let PlanItem::Checkpoint { step, .. } = item {
                world.saves.insert(*step, self.now);
            }
        }
        for progress in &mut world.progress {
            if progress.step >= before {
                progress.since = self.now; // had no work, or has just begun the last of it
            }
        }
        let plan = Plan { generation: world.generation, items };
        for stream in world.streams() {
            self.outbox.send(stream, ToWorker::Plan(plan.clone()));
        }
    }

    /// Ranks of the open generation that owe a report, by index.
    pub(super) fn debtors(&self) -> Vec<usize> {
        let (Phase::Training, Some(world), Some(course)) = (self.phase, &self.world, &self.course) else {
            return Vec::new();
        };
        let last = world.planned;
        let evaluates = world.is_started
            && evaluation_after(course, last).is_some()
            && self.ledger.evaluation_due(course, last).is_some();
        let owes = |rank: &usize| {
            let index = lockstep_proto::ids::Rank(*rank as u32);
            world.progress[*rank].step < last || evaluates && !self.reports.has_evaluation_of(last, index)
        };
        (0..world.progress.len()).filter(owes).collect()
    }
}

/// Everything about a step that recipe and generation decide.
pub(super) fn step_plan(course: &Course, chunk: u32, step: Step, splits: &Splits) -> StepPlan {
    let at = course.at(step);
    let shards = splits.shards(num_chunks(at.batch.len, chunk), step);
    StepPlan { step, epoch: at.epoch, lr: at.lr, batch: at.batch, shards }
}
