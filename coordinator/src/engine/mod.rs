//! The engine: events in, effects out. No clock, no socket, no file, no libtorch.
//!
//! ```text
//!            Connected/Ready                 all Synced              report of every rank
//! Gathering ─────────────────► Opening ─────────────────► Training ─────────────────────► commit
//!     ▲                          │                           │  │
//!     │        all Halted        │ lost, complaint, deadline │  └─ last step, evaluated, saved ─► Finishing ─► Ended
//!     └───────────────────── Closing ◄───────────────────────┘
//! ```
//! | file | decides |
//! |---|---|
//! | `admission`, `checks` | who may join, what a leaving worker means |
//! | `generation`, `base` | when a generation opens, from which state |
//! | `closing` | when it closes |
//! | `planner` | what the open generation does next |
//! | `commit` | when a step counts |
//! | `checkpoints` | when a checkpoint counts, which are kept |
//! | `liveness` | who is alive: by its work, not by its messages |
//! | `blame` | who is left out, because its peers cannot reach it |
//! | `balance` | who is slow, and what share of a batch that leaves it |
//! | `deadline` | who has been waited for too long |
//! | `finish` | how the run ends |
//!
//! An event changes what is known; `advance` then does everything that has become possible, in a fixed order, and is
//! idempotent. Records leave in the order of the plan, so a store that lost its tail holds a prefix of the run.
mod admission;
mod balance;
mod base;
mod blame;
mod checkpoints;
mod checks;
mod closing;
mod commit;
mod config;
mod deadline;
mod effect;
mod event;
mod finish;
mod generation;
mod ledger;
mod liveness;
mod members;
mod outbox;
mod planner;
mod reports;
#[cfg(test)]
mod tests;
mod view;

use std::collections::BTreeMap;
use std::time::Duration;

use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Generation, Step, WorkerId};
use lockstep_proto::message::{DataIdentity, FromWorker};
use lockstep_proto::plan::Course;

pub use config::{EngineConfig, EngineError};
pub use effect::*;
pub use event::*;

use balance::Splits;
use blame::Blame;
use checkpoints::Shelf;
use closing::Closed;
use generation::World;
use ledger::Ledger;
use members::Roster;
use outbox::Outbox;
use reports::Reports;
use view::Pace;

/// What the first worker settled for the whole run.
#[derive(Clone, Debug, PartialEq)]
struct Settled {
    data: DataIdentity,
    isa: String,
    canary: Option<String>,
}

/// Where the engine is in the diagram above.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// Waiting for enough workers.
    Gathering {
        /// When to give up.
        until: Duration,
        /// Enough are here, but one of them is about to hand in what it knows: wait for it no longer than this.
        hold: Option<Duration>,
    },
    /// A generation is recorded, then opened; its ranks take over the base.
    Opening,
    /// Its ranks work.
    Training,
    /// Its workers were told to halt.
    Closing {
        /// Who has not answered by then is lost.
        until: Duration,
    },
    /// `Finished` is on its way to the store.
    Finishing(Seq),
    /// Nothing more happens.
    Ended(ExitCode),
}

/// A clean end was asked for.
#[derive(Clone, Debug, PartialEq)]
struct Stop {
    code: ExitCode,
    reason: String,
    /// By whoever runs the coordinator, and not only by workers that have to go.
    is_asked: bool,
}

/// Decides everything about one run. Owned by one task; see [`Engine::handle`].
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    now: Duration,
    phase: Phase,
    settled: Option<Settled>,
    /// The run's instruction set; until settled, that of the first worker that is still there.
    isa: Option<String>,
    /// Known once the number of samples is.
    course: Option<Course>,
    roster: Roster,
    ledger: Ledger,
    shelf: Shelf,
    /// What the ranks of the newest generation said, open or closed.
    reports: Reports,
    /// `Some` in Opening, Training and Finishing.
    world: Option<World>,
    /// Why the last generation was closed, until the next one trains.
    closed: Option<Closed>,
    /// Worker of rank 0 of each generation of this life: only it saves checkpoints.
    savers: BTreeMap<Generation, WorkerId>,
    stop: Option<Stop>,
    /// Generations that failed since the last committed step.
    num_fruitless: u32,
    blame: Blame,
    /// What went wrong last, for the reason of an end.
    last_trouble: Option<String>,
    /// What is waited for since something went wrong, as it was last said.
    waiting_for: Option<String>,
    /// The last worker that was refused, and why.
    last_refusal: Option<String>,
    pace: Pace,
    outbox: Outbox,
}

impl Engine {
    /// An engine on a run, new or with a history. The effects come before those of the first event.
    ///
    /// # Errors
    /// The history cannot be continued.
    pub fn new(config: EngineConfig, history: History) -> Result<(Self, Vec<Effect>), EngineError> {
        let settled = history.settled.clone().map(|(data, isa, canary)| Settled { data, isa, canary });
        let mut course = settled.as_ref().map(|settled| Course::new(&config.recipe, settled.data.num_train));
        if let Some(course) = &mut course {
            (1..)
                .zip(&history.errors)
                .for_each(|(step, (wrong, samples))| course.observe(Step(step), *wrong, *samples));
        }
        let ledger = Ledger::new(&history, course.as_ref());
        let shelf = Shelf::new(&history, &ledger);
        if ledger.committed().0 > 0 && shelf.newest().is_none() {
            return Err(EngineError::NoCheckpoint { committed: ledger.committed() });
        }
        let until = config.join_timeout();
        let mut engine = Self {
            now: Duration::ZERO,
            phase: Phase::Gathering { until, hold: None },
            isa: settled.as_ref().map(|settled| settled.isa.clone()),
            settled,
            course,
            roster: Roster::default(),
            reports: Reports::new(history.generation, Splits::of(&history, config.most_chunks())),
            ledger,
            shelf,
            world: None,
            closed: None,
            savers: BTreeMap::new(),
            stop: None,
            num_fruitless: 0,
            blame: Blame::default(),
            last_trouble: None,
            waiting_for: None,
            last_refusal: None,
            pace: Pace::new(history.best),
            outbox: Outbox::default(),
            config,
        };
        if history.finished && engine.total_steps().is_some_and(|total| engine.ledger.committed().0 >= total) {
            engine.end(ExitCode::Done, "the run is complete already".into());
        }
        engine.end_epoch_again();
        let effects = engine.outbox.take();
        Ok((engine, effects))
    }

    /// Takes in an event at `now`, the time since the engine started; gives what is to be done, in order.
    pub fn handle(&mut self, now: Duration, event: Event) -> Vec<Effect> {
        self.now = self.now.max(now);
        if matches!(self.phase, Phase::Ended(_)) {
            return Vec::new();
        }
        match event {
            Event::Connected { stream, hello } => self.on_hello(stream, hello),
            Event::Received { stream, message } => self.on_message(stream, message),
            Event::Disconnected { stream, reason } => self.on_disconnected(stream, &reason),
            Event::Persisted { seq } => self.outbox.persisted(seq),
            Event::StoreFailed { reason } => self.end(ExitCode::CantCreate, reason),
            Event::StopRequested { code, reason } => self.on_stop(code, reason),
            Event::HandedOver { reason } => self.hand_over(reason),
            Event::Tick => {}
        }
        self.advance();
        self.check_deadlines();
        self.outbox.take()
    }

    /// When to call [`Engine::handle`] with [`Event::Tick`] at the latest; `None` once the run has ended.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.deadlines().into_iter().map(|(at, _)| at).min()
    }

    fn on_message(&mut self, stream: StreamId, message: FromWorker) {
        let Some(peer) = self.roster.get_mut(stream) else { return };
        peer.heard = self.now;
        match message {
            FromWorker::Hello(_) => self.expel(stream, ExitCode::Protocol, "said hello twice"),
            FromWorker::Ready(ready) => self.on_ready(stream, ready),
            FromWorker::Synced(synced) => self.on_synced(stream, synced),
            FromWorker::Reported(report) => self.on_reported(stream, report),
            FromWorker::Evaluated(report) => self.on_evaluated(stream, report),
            FromWorker::CheckpointSaved(saved) => self.on_saved(stream, saved),
            FromWorker::Complained(complaint) => self.on_complained(stream, complaint),
            FromWorker::Halted(halted) => self.on_halted(stream, halted),
            FromWorker::Progress(progress) => self.on_progress(stream, &progress),
            FromWorker::Leaving(leaving) => self.on_leaving(stream, &leaving),
            FromWorker::CheckpointBad(bad) => self.on_checkpoint_bad(stream, bad),
            FromWorker::Left(left) => self.on_left(stream, left),
        }
    }

    /// Everything that has become possible.
    fn advance(&mut self) {
        self.halted_if_all_did();
        self.open_if_ready();
        self.send_open_if_recorded();
        self.train_if_synced();
        self.commit_what_all_reported();
        self.balance();
        self.file_checkpoints();
        self.acknowledge();
        self.retire_checkpoints();
        self.admit_newcomers();
        self.plan();
        self.finish_if_done();
    }

    fn total_steps(&self) -> Option<u64> {
        self.course.as_ref().map(Course::total_steps)
    }

    fn note(&mut self, kind: &str, worker: Option<WorkerId>, detail: serde_json::Value) {
        let generation = self.world.as_ref().map_or(Generation(0), |world| world.generation);
        let record = Record::Note { kind: kind.to_owned(), generation, step: self.ledger.committed(), worker, detail };
        self.persist(record);
    }

    fn persist(&mut self, record: Record) -> Seq {
        self.outbox.persist(self.now, record)
    }
}
