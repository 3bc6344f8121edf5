//! A replica: one OS thread that owns one state, one rank of each generation, and its end of the collective.
//!
//! ```text
//! session ── Open, Item…, Halt ──►  replica thread  ── Synced, reports, Complained, Halted ──► session
//!    └────── AbortSlot::close ────► the collective that the thread may be blocked in
//! ```
//! After a failed collective the replica drops its end at once, so that its peers notice, complains, and ignores the
//! rest of the plan until it is told to halt.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use lockstep_collective::{Collective, Solo};
use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Epoch, Generation, Rank, StateId, Step, WorkerId};
use lockstep_proto::message::{
    CheckpointBad, Complaint, EvalReport, FromWorker, Open, PlanItem, Sha256, StepPlan, StepReport,
};
use lockstep_proto::plan::Course;
use lockstep_proto::recipe::{Recipe, Reduction};
use tokio::sync::mpsc::UnboundedSender;

use crate::abort::AbortSlot;
use crate::checkpoint::{Place, Saver, Snapshot};
use crate::compute::{Compute, ComputeError, StepOutcome};
use crate::door::Door;
use crate::exit::Exit;
use crate::gate::Gate;
use crate::pulse::{Pulse, Watched};
use crate::sync::{rank_of, sync};

/// A generation, as all replicas of a process see it.
#[derive(Debug)]
pub struct Opening {
    /// Its members, base and leader.
    pub open: Open,
    /// Where replicas of this process stop together.
    pub gate: Gate,
}

/// What a replica is told.
#[derive(Debug)]
pub enum Command {
    /// Connect, synchronise.
    Open(Arc<Opening>),
    /// The next of the plan.
    Item {
        /// Counts the items of a generation, from 1.
        number: u64,
        /// What to do.
        item: PlanItem,
    },
    /// Drop the collective and say what is held.
    Halt {
        /// Comes back in [`Event::Halted`].
        ticket: u64,
    },
}

/// What a replica, or the checkpoint writer, says.
#[derive(Debug)]
pub enum Event {
    /// Model built, canary computed.
    Built {
        /// Index within the process.
        replica: u32,
        /// With the canonical order, and from replica 0.
        canary: Option<Sha256>,
    },
    /// Holds the base.
    Synced {
        /// Index within the process.
        replica: u32,
        /// Of which generation.
        generation: Generation,
        /// Hash of the base.
        state_sha256: Sha256,
    },
    /// For the coordinator as it is.
    Message(FromWorker),
    /// Halted, as told.
    Halted {
        /// Index within the process.
        replica: u32,
        /// Of the command.
        ticket: u64,
        /// What it holds.
        state: Option<StateId>,
    },
    /// The process cannot go on.
    Failed(Exit),
}

/// What all replicas of a process share.
pub struct Shared {
    /// Name of the process.
    pub worker: WorkerId,
    /// The run's.
    pub recipe: Recipe,
    /// Its steps.
    pub course: Course,
    /// Where checkpoints come from.
    pub place: Place,
    /// Saves them.
    pub saver: Box<dyn Saver>,
    /// See [`Config`](crate::session::Config).
    pub fault_canary: bool,
    /// To the session.
    pub events: UnboundedSender<Event>,
}

/// The session's end of a replica.
pub trait Handle: Send {
    /// Queues a command. A replica that has failed takes none; its failure is on its way as an event.
    fn tell(&self, command: Command);

    /// Aborts what the replica is blocked in, if it belongs to `generation` or one before.
    fn abort(&self, generation: Generation);

    /// What it got done so far, and whether it waits for others.
    fn pulse(&self) -> (u64, bool);

    /// Ends the replica after what it has in hand, and waits for it.
    fn join(self: Box<Self>) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// A replica in a thread of its own.
pub struct Thread {
    /// In order.
    commands: Sender<Command>,
    abort: Arc<AbortSlot>,
    thread: std::thread::JoinHandle<()>,
}

impl Thread {
    /// Starts the thread; `build` makes the state in it.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn spawn(
        index: u32,
        door: Arc<dyn Door>,
        shared: Arc<Shared>,
        build: impl FnOnce() -> Result<Box<dyn Compute>, ComputeError> + Send + 'static,
    ) -> std::io::Result<Self> {
        let (commands, queue) = unbounded(); // bounded in fact by the plan window
        let abort = Arc::new(AbortSlot::new(Arc::clone(&door)));
        let slot = Arc::clone(&abort);
        let thread = std::thread::Builder::new().name(format!("replica-{index}")).spawn(move || {
            let events = shared.events.clone();
            let result = build().and_then(|compute| Replica::new(index, door, slot, shared, compute).run(&queue));
            if let Err(error) = result {
                let _ = events.send(Event::Failed(error.into()));
            }
        })?;
        Ok(Self { commands, abort, thread })
    }
}

impl Handle for Thread {
    fn tell(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    fn abort(&self, generation: Generation) {
        self.abort.close(generation);
    }

    fn pulse(&self) -> (u64, bool) {
        self.abort.pulse().read()
    }

    fn join(self: Box<Self>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let Self { commands, thread, .. } = *self;
        drop(commands);
        Box::pin(async {
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        })
    }
}

/// One state, one rank of each generation. Everything here blocks; see [`Thread`].
pub struct Replica {
    index: u32,
    door: Arc<dyn Door>,
    shared: Arc<Shared>,
    abort: Arc<AbortSlot>,
    pulse: Arc<Pulse>,
    compute: Box<dyn Compute>,
    /// `None` between generations, and after a failure within one.
    world: Option<World>,
}

/// Its place in the open generation.
struct World {
    opening: Arc<Opening>,
    rank: Rank,
    /// The rate that the last step was taken with.
    lr: Option<f64>,
}

impl Replica {
    /// A replica that nobody was told of.
    pub fn new(
        index: u32,
        door: Arc<dyn Door>,
        abort: Arc<AbortSlot>,
        shared: Arc<Shared>,
        mut compute: Box<dyn Compute>,
    ) -> Self {
        let pulse = Arc::clone(abort.pulse());
        compute.watch(Arc::clone(&pulse));
        Self { index, door, shared, abort, pulse, compute, world: None }
    }

    fn run(mut self, commands: &Receiver<Command>) -> Result<(), ComputeError> {
        self.begin()?;
        let mut queue = VecDeque::new();
        while let Some(command) = self.next(&mut queue, commands) {
            self.obey(command)?;
        }
        self.leave();
        Ok(())
    }

    /// The next command; steps that wait behind it are announced. `None` once nobody is left to give any.
    fn next(&mut self, queue: &mut VecDeque<Command>, commands: &Receiver<Command>) -> Option<Command> {
        let first = if queue.is_empty() { Some(commands.recv().ok()?) } else { None };
        for command in first.into_iter().chain(commands.try_iter()) {
            if let Command::Item { item: PlanItem::Step(plan), .. } = &command {
                self.compute.announce(plan);
            }
            queue.push_back(command);
        }
        queue.pop_front()
    }

    /// Computes the canary, where it is wanted, and says that the replica is built.
    ///
    /// # Errors
    /// The process cannot go on.
    pub fn begin(&mut self) -> Result<(), ComputeError> {
        let wants_canary = self.index == 0 && self.shared.recipe.train.reduction == Reduction::Canonical;
        let canary = if wants_canary { Some(self.canary()?) } else { None };
        self.say(Event::Built { replica: self.index, canary });
        Ok(())
    }

    /// Does what it is told; what comes of it is an event.
    ///
    /// # Errors
    /// The process cannot go on. A failed collective is none: it has been complained about.
    pub fn obey(&mut self, command: Command) -> Result<(), ComputeError> {
        match command {
            Command::Open(opening) => self.open(opening),
            Command::Item { number, item } => self.item(number, item),
            Command::Halt { ticket } => {
                self.finish()?;
                self.leave();
                self.say(Event::Halted { replica: self.index, ticket, state: self.compute.id() });
                Ok(())
            }
        }
    }

    /// The canary, or another one where a test asks for a worker that cannot keep the bits.
    fn canary(&mut self) -> Result<Sha256, ComputeError> {
        let canary = self.compute.canary()?;
        if !self.shared.fault_canary {
            return Ok(canary);
        }
        tracing::warn!("LOCKSTEP_FAULT_CANARY is set: sending a wrong canary");
        let flipped = if canary.starts_with('0') { "1" } else { "0" };
        Ok(format!("{flipped}{}", canary.get(1..).unwrap_or_default()))
    }

    /// Connects to the other ranks and comes to hold the base.
    fn open(&mut self, opening: Arc<Opening>) -> Result<(), ComputeError> {
        self.leave();
        let open = &opening.open;
        let Some(rank) = rank_of(open, &self.shared.worker, self.index) else {
            let reason = format!(
                "generation {} has no rank for replica {} of {}",
                open.generation, self.index, self.shared.worker
            );
            return Err(ComputeError::fatal(ExitCode::Software, reason));
        };
        let result = self.connect(open, rank).and_then(|collective| {
            let collective: Arc<dyn Collective> = Arc::new(Watched::new(collective, Arc::clone(&self.pulse)));
            self.abort.install(open.generation, Arc::clone(&collective));
            let hash = sync(&mut *self.compute, &*collective, open, &self.shared.place)?;
            self.compute.join(collective);
            Ok(hash)
        });
        let (generation, base) = (open.generation, open.base.step);
        self.world = Some(World { opening, rank, lr: None });
        if let Some(state_sha256) = self.settle(result, base)? {
            self.say(Event::Synced { replica: self.index, generation, state_sha256 });
        }
        Ok(())
    }

    fn connect(&self, open: &Open, rank: Rank) -> Result<Arc<dyn Collective>, ComputeError> {
        if open.members.len() == 1 {
            return Ok(Arc::new(Solo::new()));
        }
        let deadline = Duration::from_secs_f64(self.shared.recipe.elastic.collective_timeout_s);
        Ok(self.door.meet(open, rank, deadline)?)
    }

    /// Does one thing of the plan, unless the replica stands still.
    fn item(&mut self, number: u64, item: PlanItem) -> Result<(), ComputeError> {
        let Some(world) = &self.world else { return Ok(()) };
        let opening = Arc::clone(&world.opening);
        let rank = world.rank;
        if self.abort.is_closed(opening.open.generation) || !opening.gate.enter(number) {
            self.leave();
            return Ok(());
        }
        if !matches!(item, PlanItem::Step(_)) {
            self.finish()?;
            if self.world.is_none() {
                return Ok(());
            }
        }
        match item {
            PlanItem::Step(plan) => self.step(&opening.open, rank, &plan),
            PlanItem::Evaluate { epoch, step } => self.evaluate(&opening.open, rank, epoch, step),
            PlanItem::Checkpoint { step, epoch } if rank == Rank(0) => self.save(&opening.open, epoch, step),
            PlanItem::Checkpoint { .. } => Ok(()),
        }
    }

    fn step(&mut self, open: &Open, rank: Rank, plan: &StepPlan) -> Result<(), ComputeError> {
        self.expect(Step(plan.step.0.saturating_sub(1)), "a step after")?;
        let result = self.compute.advance(open.generation, plan);
        let Some(known) = self.settle(result, plan.step)? else { return Ok(()) };
        if let Some(world) = &mut self.world {
            world.lr = Some(plan.lr);
        }
        self.report(open, rank, known);
        Ok(())
    }

    /// Says what steps gave. What is not known to have happened is not said.
    fn report(&mut self, open: &Open, rank: Rank, known: Vec<(Step, StepOutcome)>) {
        for (step, outcome) in known {
            // After a rollback the base is of an older history; what is computed from it belongs to this one.
            self.compute.set_id(Some(StateId { lineage: open.lineage, generation: open.generation, step }));
            self.say(Event::Message(FromWorker::Reported(StepReport {
                generation: open.generation,
                rank,
                step,
                loss: outcome.loss,
                wrong: outcome.wrong,
                samples: outcome.samples,
                skipped: outcome.skipped,
                digest: outcome.digest,
                ready: outcome.ready,
                times: outcome.times,
            })));
        }
    }

    /// Waits for all steps under way, and reports them.
    fn finish(&mut self) -> Result<(), ComputeError> {
        let Some(World { opening, rank, .. }) = &self.world else { return Ok(()) };
        let (opening, rank) = (Arc::clone(opening), *rank);
        if self.abort.is_closed(opening.open.generation) {
            return Ok(());
        }
        let reached = self.compute.reached().unwrap_or(opening.open.base.step);
        let result = self.compute.settle();
        if let Some(known) = self.settle(result, reached)? {
            self.report(&opening.open, rank, known);
        }
        Ok(())
    }

    fn evaluate(&mut self, open: &Open, rank: Rank, epoch: Epoch, step: Step) -> Result<(), ComputeError> {
        self.expect(step, "an evaluation of")?;
        let result = self.compute.evaluate(step);
        let Some(outcome) = self.settle(result, step)? else { return Ok(()) };
        self.say(Event::Message(FromWorker::Evaluated(EvalReport {
            generation: open.generation,
            rank,
            epoch,
            step,
            loss: outcome.loss,
            error: outcome.error,
            error_top5: outcome.error_top5,
            samples: outcome.samples,
            skipped: outcome.skipped,
            seconds: outcome.seconds,
        })));
        Ok(())
    }

    /// Hands a copy of the state to the writer; waits for the checkpoint before, if that is still being written.
    fn save(&mut self, open: &Open, epoch: Epoch, step: Step) -> Result<(), ComputeError> {
        let id = self.expect(step, "a checkpoint of")?;
        let (model, optimizer) = self.compute.tensors();
        let course = &self.shared.course;
        let next_position = if step.0 < course.total_steps() { course.at(step.next()).batch.start } else { 0 };
        let lr = self.world.as_ref().and_then(|world| world.lr).map(|lr| ("lr".to_owned(), lr));
        let snapshot = Snapshot {
            id,
            generation: open.generation,
            epoch,
            next_position,
            scheduled: lr.into_iter().collect(),
            world_size: open.members.len() as u32,
            recipe_sha256: self.shared.recipe.sha256(),
            state_sha256: self.compute.sha256(),
            model,
            optimizer,
        };
        self.pulse.wait(|| self.shared.saver.save(snapshot));
        Ok(())
    }

    /// Sorts a result: `None` after a failed collective, which has been complained about.
    fn settle<T>(&mut self, result: Result<T, ComputeError>, step: Step) -> Result<Option<T>, ComputeError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(ComputeError::Fatal(exit)) => Err(exit.into()),
            Err(ComputeError::BadCheckpoint { dir, reason }) => {
                let world = self.world.take();
                self.leave();
                tracing::warn!("checkpoint {dir} does not load: {reason}");
                if let Some(World { opening, .. }) = world {
                    let generation = opening.open.generation;
                    self.say(Event::Message(FromWorker::CheckpointBad(CheckpointBad { generation, dir, reason })));
                }
                Ok(None)
            }
            Err(ComputeError::Collective(error)) => {
                let world = self.world.take();
                self.leave();
                let Some(World { opening, rank, .. }) = world else { return Ok(None) };
                let generation = opening.open.generation;
                // What was aborted from here failed because of that, and is nobody's fault.
                if !self.abort.is_closed(generation) {
                    let (culprit, what) = (error.culprit(), error.to_string());
                    tracing::warn!(%generation, %rank, %step, "collective failed: {what}");
                    let complaint = Complaint { generation, rank, step, culprit, what };
                    self.say(Event::Message(FromWorker::Complained(complaint)));
                }
                Ok(None)
            }
        }
    }

    /// The state in hand, if it is that after `step`.
    fn expect(&self, step: Step, what: &str) -> Result<StateId, ComputeError> {
        match self.compute.id() {
            Some(id) if self.compute.reached() == Some(step) => Ok(id),
            id => {
                let holds = id.map_or_else(|| "nothing".to_owned(), |id| id.to_string());
                let reason = format!("the plan asks for {what} step {step}, but this replica holds {holds}");
                Err(ComputeError::fatal(ExitCode::Software, reason))
            }
        }
    }

    /// Drops the collective: peers that wait for this rank notice at once.
    pub fn leave(&mut self) {
        self.abort.clear();
        self.compute.leave();
        self.world = None;
    }

    fn say(&self, event: Event) {
        // The session is gone only when the process is about to be.
        let _ = self.shared.events.send(event);
    }
}
