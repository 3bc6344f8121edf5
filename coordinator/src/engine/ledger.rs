//! The history of the run, as far as the engine needs it: which generation applied which step.

use std::collections::BTreeSet;

use lockstep_proto::ids::{Epoch, Generation, Lineage, StateId, Step};
use lockstep_proto::plan::{Boundary, Course};

use super::effect::History;

/// What is committed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ledger {
    committed: Step,
    lineage: Lineage,
    generation: Generation,
    /// (first step, generation), ascending.
    spans: Vec<(Step, Generation)>,
    /// Steps whose evaluation is recorded, or given up.
    evaluated: BTreeSet<Step>,
}

/// What is to be recorded next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// An evaluation of the last committed step's state.
    Evaluation { epoch: Epoch, step: Step },
    /// A step.
    Step(Step),
    /// The run is through.
    Nothing,
}

impl Ledger {
    pub(super) fn new(history: &History, course: Option<&Course>) -> Self {
        let evaluated = match course {
            None => BTreeSet::new(),
            // An epoch that the run has not been through yet was evaluated inside, where an earlier, shorter run ended.
            Some(course) => {
                history.evaluated.iter().map(|epoch| last_step(course, *epoch).min(history.committed)).collect()
            }
        };
        Self {
            committed: history.committed,
            lineage: history.lineage,
            generation: history.generation,
            spans: history.spans.clone(),
            evaluated,
        }
    }

    /// Last committed step.
    pub(super) fn committed(&self) -> Step {
        self.committed
    }

    /// Current lineage; 0 before the first generation.
    pub(super) fn lineage(&self) -> Lineage {
        self.lineage
    }

    /// Highest generation ever opened.
    pub(super) fn generation(&self) -> Generation {
        self.generation
    }

    /// The next generation. Numbers never repeat.
    pub(super) fn open(&mut self) -> Generation {
        self.generation = self.generation.next();
        self.lineage = Lineage(self.lineage.0.max(1));
        self.generation
    }

    /// Which generation applied a committed step; 0 for step 0.
    pub(super) fn generation_of(&self, step: Step) -> Generation {
        let known = self.spans.iter().rev().find(|(first, _)| *first <= step);
        known.map_or(Generation(0), |(_, generation)| *generation)
    }

    /// Whether a state is one that the run went through. Generations never repeat, so (generation, step) says it all.
    pub(super) fn holds(&self, state: StateId) -> bool {
        state.step <= self.committed && self.generation_of(state.step) == state.generation
    }

    /// What comes after the last record. `course` is that of the run.
    pub(super) fn due(&self, course: &Course) -> Due {
        if let Some(epoch) = self.evaluation_due(course, self.committed) {
            return Due::Evaluation { epoch, step: self.committed };
        }
        if self.committed.0 < course.total_steps() { Due::Step(self.committed.next()) } else { Due::Nothing }
    }

    /// The epoch as which the state after `step` is yet to be evaluated.
    pub(super) fn evaluation_due(&self, course: &Course, step: Step) -> Option<Epoch> {
        if self.evaluated.contains(&step) {
            return None;
        }
        evaluation_after(course, step)
    }

    /// Step `committed + 1` is committed.
    pub(super) fn commit(&mut self, step: Step, generation: Generation) {
        debug_assert_eq!(step, self.committed.next());
        self.committed = step;
        if self.spans.last().map(|(_, last)| *last) != Some(generation) {
            self.spans.push((step, generation));
        }
    }

    /// The evaluation after `step` is recorded, or given up.
    pub(super) fn evaluated(&mut self, step: Step) {
        self.evaluated.insert(step);
    }

    /// Steps after `to` never happened.
    pub(super) fn roll_back(&mut self, to: Step) -> Lineage {
        self.committed = to;
        self.spans.retain(|(first, _)| *first <= to);
        self.evaluated.retain(|step| *step <= to);
        self.lineage = self.lineage.next();
        self.lineage
    }
}

/// The epoch as which the state after `step` is evaluated, if it is.
pub(super) fn evaluation_after(course: &Course, step: Step) -> Option<Epoch> {
    course.after(step).into_iter().find_map(|boundary| match boundary {
        Boundary::Evaluate { epoch } => Some(epoch),
        Boundary::Checkpoint { .. } => None,
    })
}

/// Whether the run saves the state after `step`.
pub(super) fn saves_after(course: &Course, step: Step) -> bool {
    course.after(step).iter().any(|boundary| matches!(boundary, Boundary::Checkpoint { .. }))
}

fn last_step(course: &Course, epoch: Epoch) -> Step {
    Step(epoch.0.saturating_mul(course.steps_per_epoch()).min(course.total_steps()))
}
