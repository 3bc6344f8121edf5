//! How the run ends: complete, asked to, or not to be continued.

use lockstep_proto::exit::ExitCode;
use lockstep_proto::message::{Finish, ToWorker};

use super::effect::{Effect, Record};
use super::ledger::Due;
use super::{Engine, Phase, Stop};
use serde_json::json;

impl Engine {
    /// The first request: the generation is closed at once, and another opens only to save what it reached. The second:
    /// now. Workers that have to go do not count: a scheduler tells everybody at once, in whatever order it is heard.
    pub(super) fn on_stop(&mut self, code: ExitCode, reason: String) {
        let is_second = self.stop.as_ref().is_some_and(|stop| stop.is_asked);
        if is_second || matches!(self.phase, Phase::Finishing(_)) {
            return self.end(code, reason);
        }
        match &mut self.stop {
            Some(stop) => stop.is_asked = true,
            None => self.begin_stop(Stop { code, reason, is_asked: true }),
        }
    }

    /// Closes the generation, for the sake of what it reached.
    pub(super) fn begin_stop(&mut self, stop: Stop) {
        if self.phase == Phase::Training && !self.debtors().is_empty() {
            self.close(&format!("the run is to stop: {}", stop.reason), false);
        }
        self.stop = Some(stop);
    }

    /// Whether some worker holds a state that no checkpoint does.
    pub(super) fn would_lose_steps(&self) -> bool {
        self.choose_base().is_some_and(|base| base.holder.is_some() && !self.shelf.has(base.state.step))
    }

    pub(super) fn finish_if_done(&mut self) {
        match self.phase {
            Phase::Training => self.finish_if_trained(),
            Phase::Finishing(seq) if self.outbox.is_persisted(seq) => {
                let step = self.ledger.committed();
                self.end(ExitCode::Done, format!("all {step} steps are done"));
            }
            _ => {}
        }
    }

    fn finish_if_trained(&mut self) {
        let (Some(world), Some(course)) = (&self.world, &self.course) else { return };
        let is_saved = world.saves.is_empty() && self.shelf.is_settled() && self.outbox.is_all_persisted();
        if !is_saved || !world.is_started || self.ledger.committed() < world.planned {
            return;
        }
        match self.ledger.due(course) {
            Due::Nothing => {
                let step = self.ledger.committed();
                let state_sha256 = self.shelf.state_sha256(step).cloned().unwrap_or_default();
                let seq = self.persist(Record::Finished { step, state_sha256 });
                self.phase = Phase::Finishing(seq);
            }
            Due::Step(_) | Due::Evaluation { .. } => {
                if let Some(Stop { code, reason, .. }) = self.stop.clone() {
                    self.end(code, reason);
                }
            }
        }
    }

    /// Ends this coordinator and nothing else: workers lose their streams, keep their states, and wait for the next one.
    pub(super) fn hand_over(&mut self, reason: String) {
        if matches!(self.phase, Phase::Ended(_)) {
            return;
        }
        self.phase = Phase::Ended(ExitCode::TempFail);
        self.over(ExitCode::TempFail, reason);
    }

    /// The run is over: everyone is told, and nothing follows.
    pub(super) fn end(&mut self, code: ExitCode, reason: String) {
        if matches!(self.phase, Phase::Ended(_)) {
            return;
        }
        self.phase = Phase::Ended(code);
        let peers: Vec<_> = self.roster.iter().map(|(stream, peer)| (stream, peer.worker().clone())).collect();
        for (stream, worker) in peers {
            self.outbox.send(stream, ToWorker::Finish(Finish { code, reason: reason.clone() }));
            if code != ExitCode::CantCreate {
                self.persist(Record::Left { worker, reason: format!("the run ended: {reason}") });
            }
        }
        self.over(code, reason);
    }

    fn over(&mut self, code: ExitCode, reason: String) {
        if code != ExitCode::CantCreate {
            self.note("ended", None, json!({ "code": code.code(), "reason": reason }));
        }
        self.outbox.push(Effect::End { code, reason });
    }
}
