//! Nobody waits for ever: what every phase waits for, until when, and what follows then.

use std::time::Duration;

use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Rank, Step};

use super::config::STORE_TIMEOUT;
use super::event::StreamId;
use super::members::Standing;
use super::{Engine, Phase};

/// What is being waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// The store is to confirm a record.
    Store,
    /// Workers are to join.
    Workers,
    /// A worker is to hand in reports of newer steps.
    News,
    /// Members are to hold the base.
    Sync,
    /// A rank is to report.
    Rank(Rank),
    /// A worker is to show that it lives.
    Sign(StreamId),
    /// A checkpoint is to be written.
    Save(Step),
    /// Workers are to answer `Close`.
    Halt,
    /// A worker that was left out may come in again.
    Return,
}

impl Engine {
    /// All deadlines, in no order. Empty only when the run has ended.
    pub(super) fn deadlines(&self) -> Vec<(Duration, Wait)> {
        let mut waits = Vec::new();
        if matches!(self.phase, Phase::Ended(_)) {
            return waits;
        }
        if let Some(since) = self.outbox.waiting_since() {
            waits.push((since.saturating_add(STORE_TIMEOUT), Wait::Store));
        }
        // Before the ranks': who is silent is not called hung.
        waits.extend(self.silences());
        waits.extend(self.blame.next_return(self.now).map(|at| (at, Wait::Return)));
        let slow = self.config.slow_timeout();
        match (self.phase, &self.world) {
            (Phase::Gathering { hold: Some(hold), .. }, _) => waits.push((hold, Wait::News)),
            (Phase::Gathering { until, hold: None }, _) => waits.push((until, Wait::Workers)),
            (Phase::Closing { until }, _) => waits.push((until, Wait::Halt)),
            (Phase::Opening, Some(world)) => {
                waits.extend(world.sent.map(|sent| (sent.saturating_add(slow), Wait::Sync)))
            }
            (Phase::Training, Some(world)) => {
                waits.extend(self.debtors().into_iter().map(|rank| {
                    let at = &world.progress[rank];
                    (at.since.saturating_add(self.patience(at)), Wait::Rank(Rank(rank as u32)))
                }));
                let committed = self.ledger.committed();
                let due = world.saves.iter().filter(|(step, _)| **step <= committed);
                waits.extend(due.map(|(step, since)| (since.saturating_add(slow), Wait::Save(*step))));
            }
            _ => {}
        }
        waits
    }

    pub(super) fn check_deadlines(&mut self) {
        // Each round moves or removes the deadline that it acts on; the bound is for safety.
        for _ in 0..64 {
            let due = self.deadlines().into_iter().filter(|(at, _)| *at <= self.now).min_by_key(|(at, _)| *at);
            let Some((_, wait)) = due else { return };
            self.overdue(wait);
            self.advance();
        }
    }

    fn overdue(&mut self, wait: Wait) {
        match wait {
            Wait::Store => {
                let reason = format!(
                    "the store has not confirmed a record for {} s; check the disk of the run directory",
                    STORE_TIMEOUT.as_secs()
                );
                self.end(ExitCode::CantCreate, reason);
            }
            Wait::Workers => self.nobody_came(),
            Wait::News | Wait::Return => {} // opens, in `advance`
            Wait::Sync => {
                let seconds = self.config.slow_timeout().as_secs_f64();
                self.close(&format!("not every rank took over the base state within {seconds} s"), true);
            }
            Wait::Rank(rank) => self.stalled(rank),
            Wait::Sign(stream) => self.silent(stream),
            Wait::Save(step) => {
                let saver = self.world.as_ref().and_then(|world| world.owner(Rank(0)));
                let seconds = self.config.slow_timeout().as_secs_f64();
                if let Some(stream) = saver {
                    self.expel(
                        stream,
                        ExitCode::TempFail,
                        &format!("did not save checkpoint step-{step} within {seconds} s"),
                    );
                }
            }
            Wait::Halt => {
                let seconds = self.halt_timeout().as_secs_f64();
                for stream in self.roster.standing(Standing::Halting) {
                    self.evict(stream, &format!("did not halt within {seconds} s"));
                }
            }
        }
    }

    fn nobody_came(&mut self) {
        let lack = self.not_enough().unwrap_or_else(|| "the run is to stop".to_owned());
        let loading = self.roster.standing(Standing::Loading).len();
        let seconds = self.config.join_timeout().as_secs_f64();
        let still = if loading > 0 { format!(", {loading} still loading") } else { String::new() };
        let refused =
            self.last_refusal.as_ref().map_or(String::new(), |reason| format!("; the last one refused: {reason}"));
        match &self.last_trouble {
            Some(trouble) => {
                let reason = format!(
                    "{lack}{still}, and no other came within {seconds} s: {trouble}{refused}; continue with --resume"
                );
                self.end(ExitCode::TempFail, reason);
            }
            None => {
                let reason = format!("{lack} after elastic.join_timeout_s = {seconds}{still}{refused}");
                self.end(ExitCode::Unavailable, reason);
            }
        }
    }
}
