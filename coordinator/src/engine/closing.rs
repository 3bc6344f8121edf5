//! A generation closes at the first trouble: everyone is told at once, says what it holds, and the next one opens.
//!
//! ```text
//! Close ─► survivors abort their communicators ─► Halted ─► Gathering        no answer in time: lost
//! ```

use std::time::Duration;

use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::Rank;
use lockstep_proto::message::{Close, Complaint, Halted, ToWorker};
use serde_json::json;

use super::config::MAX_FRUITLESS;
use super::event::StreamId;
use super::members::Standing;
use super::{Engine, Phase};

/// A generation that is over.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Closed {
    pub(super) reason: String,
    pub(super) at: Duration,
    pub(super) is_failure: bool,
}

impl Engine {
    pub(super) fn on_complained(&mut self, stream: StreamId, complaint: Complaint) {
        let (Phase::Opening | Phase::Training, Some(world)) = (self.phase, &self.world) else { return };
        if complaint.generation != world.generation || !world.has(stream) {
            return; // fenced
        }
        let worker_of = |rank: Rank| world.members.get(rank.0 as usize).map(|member| member.worker.clone());
        let complainer = self.roster.get(stream).map(|peer| peer.worker().clone());
        let culprit = complaint.culprit.and_then(worker_of);
        let blamed = culprit.as_ref().map_or(String::new(), |culprit| format!(", blaming worker {culprit}"));
        if let (Some(complainer), Some(culprit)) = (&complainer, &culprit) {
            self.blame.complaint(complainer, culprit, self.now);
        }
        let reason = format!("rank {} at step {}{blamed}: {}", complaint.rank, complaint.step, complaint.what);
        let detail = json!({
            "rank": complaint.rank, "at_step": complaint.step, "culprit": complaint.culprit,
            "culprit_worker": culprit, "what": complaint.what,
        });
        self.note("complaint", complainer, detail);
        self.close(&reason, true);
    }

    /// Ends the open generation. Its workers are told at once; what they reported is kept until the next one opens.
    pub(super) fn close(&mut self, reason: &str, is_failure: bool) {
        let Some(world) = self.world.take() else { return };
        if is_failure {
            self.last_trouble = Some(reason.to_owned());
            self.num_fruitless += u32::from(!world.has_committed);
        }
        for stream in world.streams() {
            let Some(peer) = self.roster.get_mut(stream) else { continue };
            if peer.standing == Standing::Busy {
                peer.standing = Standing::Halting;
                let close = Close { generation: world.generation, reason: reason.to_owned() };
                self.outbox.send(stream, ToWorker::Close(close));
            }
        }
        // The first trouble is the cause, what follows until the next generation trains are its consequences.
        if !self.closed.as_ref().is_some_and(|closed| closed.is_failure) {
            self.closed = Some(Closed { reason: reason.to_owned(), at: self.now, is_failure });
        }
        self.phase = Phase::Closing { until: self.now.saturating_add(self.halt_timeout()) };
        if self.num_fruitless >= MAX_FRUITLESS {
            let reason = format!(
                "{MAX_FRUITLESS} generations in a row failed without finishing a step; the last: {reason}; \
                                  continue with --resume once that is mended"
            );
            self.end(ExitCode::TempFail, reason);
        }
    }

    pub(super) fn on_halted(&mut self, stream: StreamId, halted: Halted) {
        let newest = self.ledger.generation();
        let Some(peer) = self.roster.get_mut(stream) else { return };
        if peer.standing == Standing::Halting && halted.generation == newest {
            peer.standing = Standing::Idle;
            peer.state = halted.state;
        }
    }

    pub(super) fn halted_if_all_did(&mut self) {
        if matches!(self.phase, Phase::Closing { .. }) && self.roster.standing(Standing::Halting).is_empty() {
            self.leave_out_who_fails_all();
            self.gather();
        }
    }
}
