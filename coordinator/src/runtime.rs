//! The one task that owns the engine: events in, effects out, in order.
//!
//! ```text
//! shutdown ─┐                                         ┌─► streams of workers
//! store  ───┼─► Event ─► Engine::handle ─► [Effect] ──┼─► store's writer
//! streams ──┤                                         ├─► checkpoints/ (deletion)
//! clock  ───┘                                         └─► Outcome
//! ```
//! Nothing here decides; nothing here waits for a worker.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use lockstep_proto::exit::ExitCode;
use lockstep_proto::manifest::is_plain_name;
use lockstep_proto::status::{Control, Status};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use crate::clock;
use crate::coordinator::{Outcome, Shutdown};
use crate::engine::{Effect, Engine, Event, Record, StreamId};
use crate::progress::Progress;
use crate::service::{Input, Peer, pump};
use crate::store::{Answer, Writer};

/// Status is shown at most so often.
const STATUS_EVERY: Duration = Duration::from_millis(200);
/// Inputs taken in a row before anything else is looked at.
const BATCH: usize = 256;

type Server = JoinSet<Result<(), tonic::transport::Error>>;

/// The task's state.
pub(crate) struct Runtime {
    engine: Engine,
    writer: Writer,
    sender: mpsc::Sender<Input>,
    inputs: mpsc::Receiver<Input>,
    status: watch::Sender<Status>,
    observer: mpsc::Sender<Progress>,
    checkpoints: PathBuf,
    peers: BTreeMap<StreamId, Peer>,
    next_stream: u64,
    /// Pumps and deletions.
    tasks: JoinSet<()>,
    started: Instant,
    started_unix_s: f64,
    published: Option<Instant>,
    final_state_sha256: Option<String>,
    /// The store said that it failed, and the engine was told.
    store_failed: bool,
    last_event: Option<String>,
    end: Option<(ExitCode, String)>,
}

impl Runtime {
    /// `known` is the hash of the final state of a run that was complete before.
    pub(crate) fn new(
        (engine, known): (Engine, Option<String>),
        writer: Writer,
        (sender, inputs): (mpsc::Sender<Input>, mpsc::Receiver<Input>),
        (status, observer): (watch::Sender<Status>, mpsc::Sender<Progress>),
        run_dir: &Path,
    ) -> Self {
        Self {
            engine,
            writer,
            sender,
            inputs,
            status,
            observer,
            checkpoints: run_dir.join("checkpoints"),
            peers: BTreeMap::new(),
            next_stream: 1,
            tasks: JoinSet::new(),
            started: Instant::now(),
            started_unix_s: clock::unix_s(),
            published: None,
            final_state_sha256: known,
            store_failed: false,
            last_event: None,
            end: None,
        }
    }

    /// Runs to the end of the run. Afterwards all is durable and every stream has been ended.
    pub(crate) async fn run(
        mut self,
        effects: Vec<Effect>,
        shutdown: impl Future<Output: Into<Shutdown>>,
        server: &mut Server,
    ) -> Outcome {
        let mut shutdown = pin!(shutdown);
        let mut asked = false;
        self.execute(effects);
        self.publish(true);
        while self.end.is_none() {
            let deadline = self.deadline();
            tokio::select! {
                biased;
                request = &mut shutdown, if !asked => {
                    asked = true;
                    self.handle(match request.into() {
                        Shutdown::Stop(reason) => Event::StopRequested { code: ExitCode::TempFail, reason },
                        Shutdown::HandOver(reason) => Event::HandedOver { reason },
                    });
                }
                answer = self.writer.answered() => self.answered(answer),
                Some(input) = self.inputs.recv() => {
                    self.take(input);
                    for _ in 1..BATCH {
                        match self.inputs.try_recv() {
                            Ok(input) => self.take(input),
                            Err(_) => break,
                        }
                    }
                }
                Some(finished) = self.tasks.join_next() => {
                    if let Err(error) = finished
                        && error.is_panic()
                    {
                        std::panic::resume_unwind(error.into_panic());
                    }
                }
                Some(ended) = server.join_next() => {
                    let reason = match ended {
                        Ok(Ok(())) => "the server ended".to_owned(),
                        Ok(Err(error)) => format!("the server failed: {error}"),
                        Err(error) => format!("the server failed: {error}"),
                    };
                    self.end = Some((ExitCode::Software, reason));
                }
                () = tokio::time::sleep_until(deadline) => self.handle(Event::Tick),
            }
            self.publish(false);
        }
        self.finish().await
    }

    /// The engine's deadline, or the next time that the status is due.
    fn deadline(&self) -> Instant {
        // What was held back is shown soon, and ages in the status grow without any event.
        let idle = Instant::now() + Duration::from_secs(1);
        self.engine.next_deadline().and_then(|at| self.started.checked_add(at)).map_or(idle, |at| at.min(idle))
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Opened { incoming, outbox } => {
                let stream = StreamId(self.next_stream);
                self.next_stream += 1;
                self.tasks.spawn(pump(stream, incoming, outbox, self.sender.clone()));
            }
            Input::Connected { stream, hello, peer } => {
                self.peers.insert(stream, peer);
                self.handle(Event::Connected { stream, hello });
            }
            Input::Received { stream, message } => self.handle(Event::Received { stream, message }),
            Input::Disconnected { stream, reason } => {
                self.peers.remove(&stream);
                self.handle(Event::Disconnected { stream, reason });
            }
            Input::Control(Control::Stop { reason }) => {
                self.handle(Event::StopRequested { code: ExitCode::TempFail, reason });
            }
        }
    }

    fn answered(&mut self, answer: Answer) {
        self.writer.flush();
        self.last_event = answer.last_event;
        self.handle(Event::Persisted { seq: answer.seq });
        if let Some(reason) = answer.failed
            && !self.store_failed
        {
            self.store_failed = true;
            tracing::error!(reason, "the store failed");
            self.handle(Event::StoreFailed { reason });
        }
    }

    fn handle(&mut self, event: Event) {
        if self.end.is_some() {
            return;
        }
        let effects = self.engine.handle(self.started.elapsed(), event);
        self.execute(effects);
    }

    fn execute(&mut self, effects: Vec<Effect>) {
        let mut cut = Vec::new();
        for effect in effects {
            match effect {
                Effect::Send { stream, message } => {
                    if let Some(peer) = self.peers.get(&stream)
                        && !peer.send(message)
                    {
                        // A message lost would be a gap in the plan: end the stream instead.
                        self.peers.remove(&stream);
                        cut.push(stream);
                    }
                }
                Effect::Hangup { stream } => drop(self.peers.remove(&stream)),
                Effect::Persist { seq, record } => {
                    if let Record::Finished { state_sha256, .. } = &record {
                        self.final_state_sha256 = Some(state_sha256.clone());
                    }
                    self.writer.push(seq, record);
                }
                Effect::DeleteCheckpoint { dir } => self.delete(&dir),
                Effect::End { code, reason } => {
                    self.end.get_or_insert((code, reason));
                }
            }
        }
        for stream in cut {
            let reason = "it does not read what it is sent".to_owned();
            self.handle(Event::Disconnected { stream, reason });
        }
    }

    fn delete(&mut self, dir: &str) {
        if !is_plain_name(dir) {
            return;
        }
        // Renamed first: a folder that is half gone must not look like a checkpoint.
        let doomed = self.checkpoints.join(format!(".deleted-{}", Uuid::new_v4().simple()));
        if let Err(error) = std::fs::rename(self.checkpoints.join(dir), &doomed) {
            tracing::warn!(checkpoint = dir, %error, "checkpoint cannot be deleted");
            return;
        }
        let remove = move || {
            if let Err(error) = std::fs::remove_dir_all(&doomed) {
                tracing::warn!(path = %doomed.display(), %error, "checkpoint cannot be deleted");
            }
        };
        if self.writer.is_task() {
            return remove();
        }
        self.tasks.spawn_blocking(remove);
    }

    fn publish(&mut self, now: bool) {
        if !now && self.published.is_some_and(|at| at.elapsed() < STATUS_EVERY) {
            return;
        }
        self.published = Some(Instant::now());
        let status = Status {
            started_unix_s: self.started_unix_s,
            updated_unix_s: clock::unix_s(),
            last_event: self.last_event.clone(),
            ..self.engine.status(self.started.elapsed())
        };
        let _ = self.observer.try_send(Progress::Status(Box::new(status.clone())));
        self.status.send_replace(status);
    }

    async fn finish(mut self) -> Outcome {
        self.publish(true);
        // Streams end once their last messages are flushed; watchers end with the status.
        self.peers.clear();
        drop(self.status);
        let (mut code, mut reason) = self.end.unwrap_or((ExitCode::Software, "ended without a reason".to_owned()));
        if let Err(error) = self.writer.finish().await {
            tracing::error!(%error, "the store failed at the end");
            if code == ExitCode::Done || !self.store_failed {
                (code, reason) = (error.exit_code(), error.to_string());
            }
        }
        drop(self.inputs);
        drop(self.sender);
        // Farewells of workers have deadlines of their own.
        while self.tasks.join_next().await.is_some() {}
        let final_state_sha256 = self.final_state_sha256.filter(|_| code == ExitCode::Done);
        Outcome { code, reason, final_state_sha256 }
    }
}
