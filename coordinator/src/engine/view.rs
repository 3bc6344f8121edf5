//! What can be seen from outside.

use std::collections::VecDeque;
use std::time::Duration;

use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Rank, Step};
use lockstep_proto::status::{MemberStatus, Phase as Seen, Status};

use super::effect::CommittedStep;
use super::{Engine, Phase};

/// Steps over which the speed is averaged.
const RECENT: usize = 50;

/// A committed step's figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Last {
    loss: f64,
    error: f64,
    lr: f64,
    samples: u64,
    seconds: f64,
}

impl Last {
    pub(super) fn of(step: &CommittedStep) -> Self {
        Self {
            loss: step.loss,
            error: step.wrong as f64 / step.samples.max(1) as f64,
            lr: step.lr,
            samples: step.samples,
            seconds: step.times.wall,
        }
    }
}

/// How the run is getting on.
#[derive(Debug)]
pub(super) struct Pace {
    recent: VecDeque<Last>,
    /// The median step of them, by its slowest rank; asked for at every event.
    median: Option<Duration>,
    test_error: Option<f64>,
}

impl Pace {
    pub(super) fn new(best: Option<(Step, f64)>) -> Self {
        Self { recent: VecDeque::new(), median: None, test_error: best.map(|(_, error)| error) }
    }

    pub(super) fn step(&mut self, last: Last) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(last);
        let mut seconds: Vec<f64> = self.recent.iter().map(|last| last.seconds).collect();
        seconds.sort_by(f64::total_cmp);
        self.median = Duration::try_from_secs_f64(seconds[seconds.len() / 2]).ok();
    }

    pub(super) fn evaluated(&mut self, error: f64) {
        self.test_error = Some(error);
    }

    /// The median step, by its slowest rank.
    pub(super) fn median_step(&self) -> Option<Duration> {
        self.median
    }

    /// Sums of samples and of the slowest ranks' seconds.
    fn totals(&self) -> (f64, f64) {
        self.recent
            .iter()
            .fold((0.0, 0.0), |(samples, seconds), last| (samples + last.samples as f64, seconds + last.seconds))
    }
}

impl Engine {
    /// The run as it is now. Times of day and the last event are the caller's to fill in.
    pub fn status(&self, now: Duration) -> Status {
        let committed = self.ledger.committed();
        let last = self.pace.recent.back();
        let (samples, seconds) = self.pace.totals();
        let total_steps = self.total_steps().unwrap_or(0);
        let seconds_per_step = (seconds > 0.0).then(|| seconds / self.pace.recent.len() as f64);
        Status {
            run_id: self.config.run_id.clone(),
            name: self.config.recipe.name.clone(),
            run_dir: self.config.run_dir.clone(),
            phase: self.seen_phase(),
            generation: self.ledger.generation(),
            lineage: self.ledger.lineage(),
            world_size: self.world.as_ref().map_or(0, |world| world.world_size()),
            step: committed,
            total_steps,
            epoch: self.course.as_ref().map(|course| course.epoch_of(committed)).unwrap_or_default(),
            total_epochs: self.course.as_ref().map_or(0, |course| course.total_epochs()),
            loss: last.map(|last| last.loss),
            error: last.map(|last| last.error),
            lr: last.map(|last| last.lr),
            test_error: self.pace.test_error,
            images_per_s: (seconds > 0.0).then(|| samples / seconds),
            eta_s: seconds_per_step.map(|each| each * total_steps.saturating_sub(committed.0) as f64),
            members: self.seen_members(now),
            last_event: None,
            started_unix_s: 0.0,
            updated_unix_s: 0.0,
        }
    }

    /// How the run ended; `None` while it goes on.
    pub fn ended(&self) -> Option<ExitCode> {
        match self.phase {
            Phase::Ended(code) => Some(code),
            _ => None,
        }
    }

    fn seen_phase(&self) -> Seen {
        match self.phase {
            Phase::Ended(ExitCode::Done) => Seen::Done,
            Phase::Ended(_) => Seen::Failed,
            _ if self.stop.is_some() => Seen::Draining,
            Phase::Gathering { .. } => Seen::Waiting,
            Phase::Opening => Seen::Syncing,
            Phase::Training | Phase::Finishing(_) => Seen::Training,
            Phase::Closing { .. } => Seen::Halting,
        }
    }

    fn seen_members(&self, now: Duration) -> Vec<MemberStatus> {
        let mut members: Vec<MemberStatus> = self
            .roster
            .iter()
            .map(|(stream, peer)| {
                let owners = self.world.iter().flat_map(|world| &world.owners);
                let ranks =
                    (0..).zip(owners).filter(|(_, owner)| **owner == stream).map(|(rank, _)| Rank(rank)).collect();
                MemberStatus {
                    worker: peer.worker().clone(),
                    host: peer.hello.host.clone(),
                    pid: peer.hello.pid,
                    devices: peer.hello.devices.clone(),
                    ranks,
                    last_step: peer.step,
                    last_report_age_s: now.saturating_sub(peer.heard).as_secs_f64(),
                    gpus: peer.gpus.clone(),
                }
            })
            .collect();
        members.sort_by(|a, b| a.worker.cmp(&b.worker));
        members
    }
}
