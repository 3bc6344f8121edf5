//! Effects on their way out, and the numbers of records.

use std::collections::VecDeque;
use std::time::Duration;

use lockstep_proto::ids::{Generation, Step};
use lockstep_proto::message::ToWorker;

use super::effect::{Effect, Record};
use super::event::{Seq, StreamId};

/// What leaves with the next answer, and what the store has yet to confirm.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    effects: Vec<Effect>,
    last: Seq,
    persisted: Seq,
    /// Records not confirmed, with the time they were handed over.
    waiting: VecDeque<(Seq, Duration)>,
    /// Committed steps whose workers have not been told.
    unacknowledged: VecDeque<(Seq, Generation, Step)>,
    /// `End` is the last effect.
    is_closed: bool,
}

impl Outbox {
    pub(super) fn push(&mut self, effect: Effect) {
        if !self.is_closed {
            self.is_closed = matches!(effect, Effect::End { .. });
            self.effects.push(effect);
        }
    }

    pub(super) fn send(&mut self, stream: StreamId, message: ToWorker) {
        self.push(Effect::Send { stream, message });
    }

    pub(super) fn persist(&mut self, now: Duration, record: Record) -> Seq {
        if self.is_closed {
            return self.last;
        }
        self.last = Seq(self.last.0 + 1);
        if let Record::Committed(step) = &record {
            self.unacknowledged.push_back((self.last, step.generation, step.step));
        }
        self.waiting.push_back((self.last, now));
        self.effects.push(Effect::Persist { seq: self.last, record });
        self.last
    }

    /// A number never handed out is ignored.
    pub(super) fn persisted(&mut self, seq: Seq) {
        self.persisted = self.persisted.max(seq.min(self.last));
        while self.waiting.front().is_some_and(|(seq, _)| *seq <= self.persisted) {
            self.waiting.pop_front();
        }
    }

    pub(super) fn is_persisted(&self, seq: Seq) -> bool {
        seq <= self.persisted
    }

    pub(super) fn is_all_persisted(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Since when the store owes an answer.
    pub(super) fn waiting_since(&self) -> Option<Duration> {
        self.waiting.front().map(|(_, since)| *since)
    }

    /// The newest durable step of `generation` that nobody was told of yet; older ones are implied.
    pub(super) fn newly_durable(&mut self, generation: Generation) -> Option<Step> {
        let mut newest = None;
        while let Some(&(seq, of, step)) = self.unacknowledged.front() {
            if seq > self.persisted {
                break;
            }
            self.unacknowledged.pop_front();
            if of == generation {
                newest = Some(step);
            }
        }
        newest
    }

    pub(super) fn take(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }
}
