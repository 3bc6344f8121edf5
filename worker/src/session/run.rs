//! The session itself: messages, events and signals in; messages and commands out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::Generation;
use lockstep_proto::message::{
    Close, DataIdentity, FromWorker, Halted, Hello, Left, Open, PROTOCOL_VERSION, Plan, Ready, Sha256, Synced, ToWorker,
};
use tokio::sync::mpsc::{Receiver, UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Config;
use super::outbox::Outbox;
use super::setup::{Run, Workshop};
use super::signs::expired;
use crate::connect::Link;
use crate::exit::Exit;
use crate::gate::Gate;
use crate::health::Health;
use crate::replica::{Command, Event, Opening};

/// How long a farewell may take: the checkpoint in hand, then the stream.
const FAREWELL: Duration = Duration::from_secs(60);
/// How often this worker says that it lives.
const SIGN_EVERY: Duration = Duration::from_secs(1);
/// How long the coordinator may take to hang up after `Left`.
const HANGUP: Duration = Duration::from_secs(3);

/// A signal that asks to leave, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal(pub &'static str);

type Loaded<W> = Result<(<W as Workshop>::Data, DataIdentity), Exit>;

/// One worker process in one run.
pub struct Session<W: Workshop> {
    pub(super) config: Config,
    workshop: Arc<W>,
    hello: Hello,
    events: UnboundedSender<Event>,
    /// `None` before the first `Welcome`.
    pub(super) run: Option<Run>,
    /// `None` while the coordinator is away.
    pub(super) link: Option<Link>,
    /// Whether `Ready` was said on this link.
    pub(super) is_ready: bool,
    dialing: JoinSet<Result<Link, Exit>>,
    loading: JoinSet<Loaded<W>>,
    outbox: Outbox,
    pub(super) current: Option<Current>,
    pub(super) halting: Option<Halting>,
    /// A signal asked this worker to go, and the coordinator was asked.
    pub(super) leaving: Option<(Exit, Instant)>,
    tickets: u64,
    /// GPUs.
    pub(super) health: Health,
}

/// The open generation.
pub(super) struct Current {
    pub(super) opening: Arc<Opening>,
    /// Replicas that hold the base, and its hash.
    synced: BTreeSet<u32>,
    /// Items handed out so far.
    num_items: u64,
}

/// Replicas were told to halt.
pub(super) struct Halting {
    ticket: u64,
    pub(super) waiting: BTreeSet<u32>,
    pub(super) then: Then,
    pub(super) until: Instant,
    /// What is yet to be aborted at that time.
    pub(super) unaborted: Option<Generation>,
}

/// What follows once all have halted.
pub(super) enum Then {
    /// Answer `Close`.
    Answer(Generation),
    /// Nothing but what every halt is followed by: `Ready`, where that is due.
    Rejoin,
    /// Leave.
    Leave(Exit),
}

impl<W: Workshop> Session<W> {
    /// Lives until the run is over, or this worker's part in it. Gives the end that the process is to make; returns it
    /// rather than exiting, so that everything is testable.
    pub async fn live(config: Config, workshop: W, mut signals: Receiver<Signal>) -> Exit {
        let (sender, mut events) = unbounded_channel();
        let mut session = Self::new(config, workshop, sender);
        session.dial(session.config.patience);
        let mut signs = interval(SIGN_EVERY);
        signs.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let exit = loop {
            let deadline = session.deadline();
            let exit = tokio::select! {
                biased;
                Some(signal) = signals.recv() => session.on_signal(signal),
                Some(event) = events.recv() => session.on_event(event),
                message = next(&mut session.link) => session.on_message(message),
                Some(dialed) = session.dialing.join_next() => session.on_dialed(flatten(dialed)),
                Some(loaded) = session.loading.join_next() => session.on_loaded(flatten(loaded)),
                () = expired(deadline) => session.on_deadline(),
                _ = signs.tick() => session.give_sign(),
            };
            if let Some(exit) = exit {
                break exit;
            }
        };
        session.leave(&exit, &mut events, &mut signals).await;
        exit
    }

    fn new(config: Config, workshop: W, events: UnboundedSender<Event>) -> Self {
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            build: format!("{} ({})", env!("CARGO_PKG_VERSION"), env!("LOCKSTEP_COMMIT")),
            worker: config.worker.clone(),
            host: gethostname::gethostname().to_string_lossy().into_owned(),
            pid: std::process::id(),
            devices: config.devices.clone(),
            isa: config.isa.clone(),
            run_id: None,
        };
        Self {
            health: Health::of(&config.devices),
            config,
            workshop: Arc::new(workshop),
            hello,
            events,
            run: None,
            link: None,
            is_ready: false,
            dialing: JoinSet::new(),
            loading: JoinSet::new(),
            outbox: Outbox::default(),
            current: None,
            halting: None,
            leaving: None,
            tickets: 0,
        }
    }

    fn dial(&mut self, patience: Duration) {
        let (coordinator, hello) = (self.config.coordinator.clone(), self.hello.clone());
        self.dialing.spawn(async move { coordinator.dial(&hello, patience).await });
    }

    fn on_dialed(&mut self, dialed: Result<Link, Exit>) -> Option<Exit> {
        let link = match dialed {
            Ok(link) => link,
            Err(exit) => return Some(exit),
        };
        let welcome = link.welcome.clone();
        self.link = Some(link);
        self.is_ready = false;
        match &self.run {
            Some(run) if run.welcome.run_id != welcome.run_id || run.welcome.isa != welcome.isa => {
                let reason = format!(
                    "coordinator {} now serves run {} instead of {}; start a new worker for it",
                    self.config.coordinator.url(),
                    welcome.run_id,
                    run.welcome.run_id
                );
                return Some(Exit::new(ExitCode::TempFail, reason));
            }
            Some(_) => {
                tracing::info!("reconnected to {}", self.config.coordinator.url());
                if self.current.is_some() && self.halting.is_none() {
                    self.halt(Then::Rejoin);
                }
                self.ready_if_due();
            }
            None => {
                let run = match Run::new(&self.config, welcome) {
                    Ok(run) => run,
                    Err(exit) => return Some(exit),
                };
                tracing::info!(
                    run = run.welcome.run_id,
                    isa = run.welcome.isa,
                    "joined {}",
                    self.config.coordinator.url()
                );
                if let Err(exit) = self.workshop.limit_isa(&run.welcome.isa) {
                    return Some(exit);
                }
                self.hello.run_id = Some(run.welcome.run_id.clone());
                self.loading.spawn(Arc::clone(&self.workshop).load_aside(run.recipe.clone()));
                self.run = Some(run);
            }
        }
        None
    }

    fn on_loaded(&mut self, loaded: Loaded<W>) -> Option<Exit> {
        let run = self.run.as_mut()?;
        let started = loaded.and_then(|loaded| run.start(&self.config, &self.workshop, loaded, &self.events));
        started.err()
    }

    fn on_event(&mut self, event: Event) -> Option<Exit> {
        match event {
            Event::Built { replica, canary } => {
                let run = self.run.as_mut()?;
                run.replicas.get_mut(replica as usize)?.is_built = true;
                run.canary = run.canary.take().or(canary);
                self.ready_if_due();
            }
            Event::Synced { replica, generation, state_sha256 } => self.synced(replica, generation, state_sha256),
            Event::Message(message) => self.say(message),
            Event::Halted { replica, ticket, state } => {
                self.run.as_mut()?.replicas.get_mut(replica as usize)?.state = state;
                return self.halted(replica, ticket);
            }
            Event::Failed(exit) => return Some(exit),
        }
        None
    }

    fn on_message(&mut self, message: Result<ToWorker, String>) -> Option<Exit> {
        match message {
            Ok(ToWorker::Open(open)) => self.open(open),
            Ok(ToWorker::Plan(plan)) => self.plan(plan),
            Ok(ToWorker::Close(close)) => self.close(&close),
            Ok(ToWorker::Committed { generation, step }) => self.outbox.committed(generation, step),
            Ok(ToWorker::Drain(drain)) => {
                let asked = self.leaving.take().map(|(exit, _)| exit);
                let drained = || Exit::new(ExitCode::TempFail, format!("drained: {}", drain.reason));
                return self.drain(asked.unwrap_or_else(drained));
            }
            Ok(ToWorker::Finish(finish)) => return Some(Exit::new(finish.code, finish.reason)),
            Ok(ToWorker::Refused(refused)) => return Some(Exit::new(refused.code, refused.reason)),
            Ok(ToWorker::Welcome(_)) => {
                let reason = "the coordinator said welcome twice; use the same version on both sides";
                return Some(Exit::new(ExitCode::Protocol, reason));
            }
            Err(reason) => return self.lost(&reason),
        }
        None
    }

    /// The stream is gone. Replicas go on; whoever is leaving leaves without it.
    fn lost(&mut self, reason: &str) -> Option<Exit> {
        self.link = None;
        self.is_ready = false;
        let patience = match &self.run {
            Some(run) => Duration::from_secs_f64(run.recipe.elastic.reconnect_timeout_s),
            None => self.config.patience,
        };
        tracing::warn!("lost {}: {reason}; reconnecting", self.config.coordinator.url());
        self.dial(patience);
        let (exit, _) = self.leaving.take()?;
        self.drain(exit)
    }

    /// Says what this worker is, once it could compute, holds still, and has someone to say it to.
    fn ready_if_due(&mut self) {
        let (Some(run), Some(link)) = (&self.run, &self.link) else { return };
        if self.is_ready || self.current.is_some() || self.halting.is_some() || !run.is_built() {
            return;
        }
        let Some(data) = run.data.clone() else { return };
        let ready = Ready {
            data,
            canary: run.canary.clone(),
            state: run.state(),
            addresses: run.replicas.iter().map(|replica| replica.address.clone()).collect(),
            sees_run_dir: run.sees_run_dir(),
        };
        // A link that broke shows in its incoming half.
        let _ = link.sender.send(FromWorker::Ready(ready).into());
        for message in self.outbox.unacknowledged() {
            let _ = link.sender.send(message.clone().into());
        }
        self.is_ready = true;
    }

    pub(super) fn say(&mut self, message: FromWorker) {
        self.outbox.keep(&message);
        if let (Some(link), true) = (&self.link, self.is_ready) {
            let _ = link.sender.send(message.into());
        }
    }

    fn open(&mut self, open: Open) {
        if self.is_going() {
            return;
        }
        if let Some(old) = self.current.take() {
            self.abort(old.opening.open.generation);
        }
        tracing::info!(generation = %open.generation, ranks = open.members.len(), "opening, base {}", open.base);
        self.outbox.opened(open.generation);
        let opening = Arc::new(Opening { open, gate: Gate::default() });
        self.tell(|| Command::Open(Arc::clone(&opening)));
        self.current = Some(Current { opening, synced: BTreeSet::new(), num_items: 0 });
    }

    fn synced(&mut self, replica: u32, generation: Generation, state_sha256: Sha256) {
        let num_replicas = self.run.as_ref().map_or(0, |run| run.replicas.len());
        let Some(current) = &mut self.current else { return };
        if current.opening.open.generation != generation {
            return;
        }
        current.synced.insert(replica);
        if current.synced.len() == num_replicas {
            self.say(FromWorker::Synced(Synced { generation, state_sha256 }));
        }
    }

    fn plan(&mut self, plan: Plan) {
        let Some(current) = &mut self.current else { return };
        if current.opening.open.generation != plan.generation {
            return; // fenced: of another generation
        }
        let first = current.num_items + 1;
        current.num_items += plan.items.len() as u64;
        for (number, item) in (first..).zip(plan.items) {
            self.tell(|| Command::Item { number, item: item.clone() });
        }
    }

    /// Interrupts whatever the generation is doing; answers once every replica stands still.
    fn close(&mut self, close: &Close) {
        tracing::info!(generation = %close.generation, "closing: {}", close.reason);
        self.abort(close.generation);
        if !self.is_going() {
            self.halt(Then::Answer(close.generation));
        }
    }

    /// Leaves after the item in hand; at once where there is none.
    pub(super) fn drain(&mut self, exit: Exit) -> Option<Exit> {
        let has_replicas = self.run.as_ref().is_some_and(|run| !run.replicas.is_empty());
        if !has_replicas {
            return Some(exit);
        }
        self.halt(Then::Leave(exit));
        None
    }

    /// Lets every replica finish what any of them has begun, and no more.
    fn halt(&mut self, then: Then) {
        let closed = self.current.take().map(|current| {
            current.opening.gate.stop();
            current.opening.open.generation
        });
        self.tickets += 1;
        let ticket = self.tickets;
        self.tell(|| Command::Halt { ticket });
        let num_replicas = self.run.as_ref().map_or(0, |run| run.replicas.len()) as u32;
        let (waiting, until) = ((0..num_replicas).collect(), Instant::now() + self.config.halt / 6);
        self.halting = Some(Halting { ticket, waiting, then, until, unaborted: Some(closed.unwrap_or_default()) });
    }

    fn halted(&mut self, replica: u32, ticket: u64) -> Option<Exit> {
        let halting = self.halting.as_mut().filter(|halting| halting.ticket == ticket)?;
        halting.waiting.remove(&replica);
        if !halting.waiting.is_empty() {
            return None;
        }
        match self.halting.take()?.then {
            Then::Answer(generation) => {
                let state = self.run.as_ref().and_then(Run::state);
                self.say(FromWorker::Halted(Halted { generation, state }));
                self.ready_if_due();
            }
            Then::Rejoin => self.ready_if_due(),
            Then::Leave(exit) => return Some(exit),
        }
        None
    }

    pub(super) fn abort(&self, generation: Generation) {
        for replica in self.run.iter().flat_map(|run| &run.replicas) {
            replica.handle.abort(generation);
        }
    }

    fn tell(&self, command: impl Fn() -> Command) {
        for replica in self.run.iter().flat_map(|run| &run.replicas) {
            replica.handle.tell(command());
        }
    }

    /// Stops everything, lets the checkpoint in hand end, says farewell. A signal cuts it short.
    async fn leave(mut self, exit: &Exit, events: &mut UnboundedReceiver<Event>, signals: &mut Receiver<Signal>) {
        let farewell = async {
            self.abort(Generation(u64::MAX));
            if let Some(run) = self.run.take() {
                let stopped = async {
                    for replica in run.replicas {
                        replica.handle.join().await;
                    }
                    if let Some(shared) = run.shared {
                        shared.saver.finish().await;
                    }
                };
                // One that hangs ends with the process.
                let _ = tokio::time::timeout(self.config.halt, stopped).await;
            }
            while let Ok(event) = events.try_recv() {
                if let Event::Message(message @ (FromWorker::CheckpointSaved(_) | FromWorker::Reported(_))) = event {
                    self.say(message);
                }
            }
            if let Some(mut link) = self.link.take() {
                let left = Left { code: exit.code, reason: exit.reason.clone() };
                let _ = link.sender.send(FromWorker::Left(left).into());
                drop(link.sender);
                // The coordinator hangs up when it has read it.
                let drained = async { while let Ok(Some(_)) = link.incoming.next().await {} };
                let _ = tokio::time::timeout(HANGUP, drained).await;
            }
        };
        tokio::select! {
            biased;
            Some(_) = signals.recv() => {}
            () = farewell => {}
            () = tokio::time::sleep(FAREWELL) => {}
        }
    }
}

/// The next message, or why there will be none. Pending while there is no link.
async fn next(link: &mut Option<Link>) -> Result<ToWorker, String> {
    match link {
        None => std::future::pending().await,
        Some(link) => match link.incoming.next().await {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err("it hung up".into()),
            Err(status) => Err(status.message().to_owned()),
        },
    }
}

/// A task of ours that panicked has ended the process already.
fn flatten<T>(joined: Result<Result<T, Exit>, tokio::task::JoinError>) -> Result<T, Exit> {
    joined.unwrap_or_else(|error| Err(Exit::new(ExitCode::Software, error.to_string())))
}
