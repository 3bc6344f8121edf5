//! Who is alive. A rank is while its own count of work grows, or while others keep it waiting; a worker is while it says
//! anything at all. So a hung trainer is found although its process goes on talking, a stopped process is found although
//! its connection stands, and whoever is merely slow is left alone.
//!
//! ```text
//! nothing heard                      stall_timeout_s, or 4.5 median steps ─► lost, named
//! count stands still, not waiting    the same; longer before the first step ─► lost, named
//! count stands still, waiting        step_timeout_s ─► the generation closes, those furthest behind are named
//! ```

use std::time::Duration;

use lockstep_proto::ids::Rank;
use lockstep_proto::message::Progress as Said;

use super::Engine;
use super::deadline::Wait;
use super::event::StreamId;
use super::generation::Progress;
use super::members::{Peer, Standing};

/// So many median steps, in halves, may pass without a sign of life.
const HALF_STEPS: u32 = 9;

impl Engine {
    pub(super) fn on_progress(&mut self, stream: StreamId, said: &Said) {
        if let Some(peer) = self.roster.get_mut(stream) {
            peer.gpus.clone_from(&said.gpus);
        }
        let Some(world) = &mut self.world else { return };
        if said.generation != world.generation {
            return; // fenced; that it was heard counts
        }
        for said in &said.ranks {
            if world.owner(said.rank) != Some(stream) {
                continue;
            }
            let Some(at) = world.progress.get_mut(said.rank.0 as usize) else { continue };
            if at.beats != said.beats {
                (at.beats, at.since) = (said.beats, self.now);
            }
            at.is_waiting = said.is_waiting;
        }
    }

    /// How long without a sign of life.
    fn stall_timeout(&self) -> Duration {
        let steps = self.pace.median_step().map_or(Duration::ZERO, |step| step.saturating_mul(HALF_STEPS) / 2);
        self.config.stall_timeout().max(steps)
    }

    /// How long a worker may take to answer `Close`: its collectives are aborted, so less than a step.
    pub(super) fn halt_timeout(&self) -> Duration {
        self.stall_timeout()
    }

    /// How long a rank that owes a report may get on with nothing.
    pub(super) fn patience(&self, at: &Progress) -> Duration {
        let has_committed = self.world.as_ref().is_some_and(|world| world.has_committed);
        match (at.is_waiting, has_committed) {
            (true, true) => self.config.step_timeout(),
            (false, true) => self.stall_timeout(),
            (_, false) => self.config.slow_timeout().max(self.stall_timeout()),
        }
    }

    /// Workers that have a part in what is going on, and until when each is to say something.
    pub(super) fn silences(&self) -> Vec<(Duration, Wait)> {
        let timeout = self.stall_timeout();
        let has_part = |peer: &Peer| matches!(peer.standing, Standing::Busy | Standing::Halting);
        let peers = self.roster.iter().filter(|(_, peer)| has_part(peer));
        peers.map(|(stream, peer)| (peer.heard.saturating_add(timeout), Wait::Sign(stream))).collect()
    }

    pub(super) fn silent(&mut self, stream: StreamId) {
        let seconds = self.stall_timeout().as_secs_f64();
        self.evict(stream, &format!("was not heard of for {seconds} s: its process is stopped, or its network is cut"));
    }

    /// A rank got on with nothing: it is hung, or waits for someone who is.
    pub(super) fn stalled(&mut self, rank: Rank) {
        let Some(world) = &self.world else { return };
        let Some(at) = world.progress.get(rank.0 as usize).copied() else { return };
        let (patience, owner) = (self.patience(&at), world.owner(rank));
        match owner {
            Some(stream) if !at.is_waiting && world.has_committed => {
                let seconds = patience.as_secs_f64();
                let reason = format!(
                    "got on with nothing for {seconds} s as rank {rank} after step {}, though nobody kept it waiting: it hangs",
                    at.step
                );
                self.evict(stream, &reason);
            }
            _ => self.close_over_stragglers(patience),
        }
    }

    /// Those who are furthest behind are named; who is dead will not answer `Close`.
    fn close_over_stragglers(&mut self, patience: Duration) {
        let debtors = self.debtors();
        let Some(world) = &self.world else { return };
        let last = debtors.iter().map(|rank| world.progress[*rank].step).min();
        let named: Vec<String> = debtors
            .iter()
            .filter(|rank| Some(world.progress[**rank].step) == last)
            .map(|rank| format!("rank {rank} (worker {})", world.members[*rank].worker))
            .collect();
        let step = last.unwrap_or_default();
        let reason =
            format!("{} reported nothing after step {step} for {} s", named.join(", "), patience.as_secs_f64());
        self.close(&reason, true);
    }
}
