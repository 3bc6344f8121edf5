//! What a session says without being asked, and what it does when nothing comes back.

use std::time::Duration;

use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::Generation;
use lockstep_proto::message::{FromWorker, Leaving, Progress, RankProgress};
use tokio::time::{Instant, sleep_until};

use super::run::{Halting, Session, Signal, Then};
use super::setup::{Replica, Workshop};
use crate::exit::Exit;
use crate::sync::rank_of;

/// How long the coordinator may take to let a worker go that was asked to: it may save first.
const LEAVE: Duration = Duration::from_secs(60);

impl<W: Workshop> Session<W> {
    /// The first signal: ask to go, which the coordinator allows after the step in hand, or once all is saved. The
    /// second: now.
    pub(super) fn on_signal(&mut self, Signal(name): Signal) -> Option<Exit> {
        if self.leaving.is_some() || self.is_going() {
            return Some(Exit::new(ExitCode::TempFail, format!("{name} again: left at once")));
        }
        let exit = Exit::new(ExitCode::TempFail, format!("{name}: left after the step in hand"));
        if self.link.is_none() || !self.is_ready {
            tracing::info!("{name}: finishing the step in hand; again to leave at once");
            return self.drain(exit);
        }
        tracing::info!("{name}: asking the coordinator to let this worker go; again to leave at once");
        self.leaving = Some((exit, Instant::now() + LEAVE));
        self.say(FromWorker::Leaving(Leaving { reason: name.to_owned() }));
        None
    }

    pub(super) fn is_going(&self) -> bool {
        matches!(&self.halting, Some(Halting { then: Then::Leave(_), .. }))
    }

    /// Says that this process lives, and how far its ranks are.
    pub(super) fn give_sign(&mut self) -> Option<Exit> {
        let open = self.current.as_ref().map(|current| &current.opening.open);
        let of = |(replica, handle): (u32, &Replica)| {
            let (beats, is_waiting) = handle.handle.pulse();
            Some(RankProgress { rank: rank_of(open?, &self.config.worker, replica)?, beats, is_waiting })
        };
        let replicas = self.run.iter().flat_map(|run| &run.replicas);
        let ranks = (0..).zip(replicas).filter_map(of).collect();
        let generation = open.map_or(Generation(0), |open| open.generation);
        self.say(FromWorker::Progress(Progress { generation, ranks, gpus: self.health.look() }));
        None
    }

    /// When something takes too long.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let leaving = self.leaving.as_ref().map(|(_, until)| *until);
        leaving.into_iter().chain(self.halting.as_ref().map(|halting| halting.until)).min()
    }

    pub(super) fn on_deadline(&mut self) -> Option<Exit> {
        let now = Instant::now();
        if let Some((exit, _)) = self.leaving.take_if(|(_, until)| *until <= now) {
            tracing::warn!("the coordinator did not let this worker go within {} s", LEAVE.as_secs());
            return self.drain(exit);
        }
        let halting = self.halting.as_mut().filter(|halting| halting.until <= now)?;
        if let Some(generation) = halting.unaborted.take() {
            halting.until = now + self.config.halt;
            self.abort(generation);
            return None;
        }
        if let Then::Leave(exit) = &halting.then {
            return Some(exit.clone());
        }
        let hung: Vec<String> = halting.waiting.iter().map(u32::to_string).collect();
        let reason = format!(
            "replica {} did not stop within {} s of being told to: it hangs in its computation; start a new worker",
            hung.join(", "),
            self.config.halt.as_secs_f64()
        );
        Some(Exit::new(ExitCode::Software, reason))
    }
}

/// Pending where there is none.
pub(super) async fn expired(deadline: Option<Instant>) {
    match deadline {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
