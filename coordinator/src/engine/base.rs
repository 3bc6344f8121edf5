//! From which state a generation starts, and what that does to the history.
//!
//! ```text
//! newest state held by a worker, in the history or with a report of every step up to it ─► Held      (c)
//! newest checkpoint in the history                                                      ─► Checkpoint (f)
//! neither, and nothing committed                                                        ─► Init
//! ```
//! A base below the last committed step rolls the run back; one above it commits the steps in between.

use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Generation, Lineage, StateId, Step};
use lockstep_proto::message::Source;

use super::Engine;
use super::effect::Record;
use super::event::StreamId;
use super::members::Standing;

/// Where a generation starts.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Base {
    pub(super) state: StateId,
    /// Who holds it.
    pub(super) holder: Option<StreamId>,
    pub(super) source: Source,
}

impl Engine {
    /// Whether a worker that holds newer steps is about to say what they were.
    pub(super) fn expects_news(&self) -> bool {
        let run_id = Some(&self.config.run_id);
        self.roster.iter().any(|(_, peer)| match peer.standing {
            Standing::Loading => peer.hello.run_id.as_ref() == run_id,
            Standing::Idle => peer.state.is_some_and(|state| self.is_ahead(state) && !self.is_known(state)),
            Standing::Busy | Standing::Halting => false,
        })
    }

    fn is_ahead(&self, state: StateId) -> bool {
        state.generation == self.reports.generation() && state.step > self.ledger.committed()
    }

    /// Whether a state is in the history, or would be once all steps up to it have their rows.
    fn is_known(&self, state: StateId) -> bool {
        let committed = self.ledger.committed().0;
        self.ledger.holds(state)
            || self.is_ahead(state)
                && (committed + 1..=state.step.0).all(|step| self.reports.has_step(Step(step), false))
    }

    /// The newest state that can be had; `None` if there is none.
    pub(super) fn choose_base(&self) -> Option<Base> {
        let mut held: Option<(StateId, StreamId)> = None;
        for stream in self.available() {
            let state = self.roster.get(stream).and_then(|peer| peer.state).filter(|state| self.is_known(*state));
            if let Some(state) = state
                && held.is_none_or(|(best, _)| state.step > best.step)
            {
                held = Some((state, stream));
            }
        }
        let saved = self.shelf.newest();
        match (held, saved) {
            (Some((state, stream)), _) if saved.is_none_or(|saved| saved.state.step <= state.step) => {
                Some(Base { state, holder: Some(stream), source: Source::Held })
            }
            (_, Some(saved)) => {
                let source = Source::Checkpoint { dir: saved.dir.clone() };
                Some(Base { state: saved.state, holder: None, source })
            }
            _ if self.ledger.committed() == Step(0) => {
                let lineage = Lineage(self.ledger.lineage().0.max(1));
                let state = StateId { lineage, generation: Generation(0), step: Step(0) };
                Some(Base { state, holder: None, source: Source::Init })
            }
            _ => None,
        }
    }

    /// Makes the base the end of the history. Whether the run goes on.
    pub(super) fn take_over(&mut self, base: Option<&Base>) -> bool {
        let committed = self.ledger.committed();
        let Some(base) = base else {
            let reason =
                format!("the run has {committed} committed steps, but no worker and no checkpoint holds a state of it");
            self.end(ExitCode::Data, reason);
            return false;
        };
        if base.state.step < committed {
            self.roll_back(base.state.step);
            return true;
        }
        self.commit_up_to(base.state.step)
    }

    fn roll_back(&mut self, to: Step) {
        let from = self.ledger.committed();
        let lineage = self.ledger.roll_back(to);
        self.shelf.roll_back(to);
        if let Some(course) = &mut self.course {
            course.roll_back(to);
        }
        self.persist(Record::RolledBack { from, to, lineage });
    }
}
