//! A replica's thread as a coroutine: the product's replica blocks, simulated time does not pass while anything
//! blocks. So the thread hands over whenever it would wait, and sleeps until a task of its host has done the waiting.
//! Never are both awake, so the same seed gives the same order of everything.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use lockstep_collective::{Collective, CollectiveError, Layout, Op};
use lockstep_proto::ids::{Generation, Rank};
use lockstep_proto::message::Open;
use lockstep_worker::compute::ComputeError;
use lockstep_worker::door::Door;
use lockstep_worker::replica::{Command, Replica};

use crate::mesh::Endpoint;

/// What a thread waits for.
pub enum Request {
    /// The next command.
    Command,
    /// Time, for computing.
    Time(Duration),
    Meet(Box<Open>, Rank, Duration),
    Exchange(Generation, String, Vec<u8>),
    /// Nothing: it has ended.
    Nothing(Result<(), ComputeError>),
}

/// What it gets.
pub enum Answer {
    Command(Command),
    Passed,
    Met(Result<(), CollectiveError>),
    Exchanged(Result<Vec<Vec<u8>>, CollectiveError>),
}

/// The thread's end.
pub struct Line {
    requests: Sender<Request>,
    answers: Mutex<Receiver<Answer>>,
}

impl Line {
    /// `None` when the host is dead.
    fn ask(&self, request: Request) -> Option<Answer> {
        self.requests.send(request).ok()?;
        self.answers.lock().unwrap().recv().ok()
    }

    /// Lets time pass.
    pub fn compute(&self, time: Duration) {
        self.ask(Request::Time(time));
    }
}

/// The host's end. Dropping it lets the thread fall through to its end.
pub struct Coroutine {
    answers: Option<Sender<Answer>>,
    requests: Receiver<Request>,
    thread: Option<JoinHandle<()>>,
}

impl Coroutine {
    /// Starts the thread; gives its first request too.
    pub fn start(make: impl FnOnce(Arc<Line>) -> Replica + Send + 'static) -> (Self, Request) {
        let (request, requests) = channel();
        let (answers, answer) = channel();
        let line = Arc::new(Line { requests: request, answers: Mutex::new(answer) });
        let thread = std::thread::spawn(move || {
            let result = live(&line, make);
            let _ = line.requests.send(Request::Nothing(result));
        });
        let coroutine = Self { answers: Some(answers), requests, thread: Some(thread) };
        let first = coroutine.next();
        (coroutine, first)
    }

    /// Lets the thread go on until it waits again.
    pub fn resume(&self, answer: Answer) -> Request {
        if let Some(answers) = &self.answers {
            let _ = answers.send(answer);
        }
        self.next()
    }

    fn next(&self) -> Request {
        self.requests.recv().expect("a replica's thread panicked")
    }
}

impl Drop for Coroutine {
    fn drop(&mut self) {
        self.answers.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn live(line: &Arc<Line>, make: impl FnOnce(Arc<Line>) -> Replica) -> Result<(), ComputeError> {
    let mut replica = make(Arc::clone(line));
    replica.begin()?;
    while let Some(Answer::Command(command)) = line.ask(Request::Command) {
        replica.obey(command)?;
    }
    replica.leave();
    Ok(())
}

/// The door of a simulated replica.
pub struct SimulatedDoor {
    /// Known once the thread runs.
    pub line: OnceLock<Arc<Line>>,
    pub endpoint: Arc<Endpoint>,
}

impl Door for SimulatedDoor {
    fn meet(&self, open: &Open, rank: Rank, deadline: Duration) -> Result<Arc<dyn Collective>, CollectiveError> {
        let line = self.line.get().expect("only the thread meets");
        // Made first, so that peers are told in any case.
        let mesh = Mesh {
            line: Arc::clone(line),
            endpoint: Arc::clone(&self.endpoint),
            generation: open.generation,
            rank,
            world: open.members.len() as u32,
        };
        match line.ask(Request::Meet(Box::new(open.clone()), rank, deadline)) {
            Some(Answer::Met(result)) => result.map(|()| Arc::new(mesh) as Arc<dyn Collective>),
            _ => Err(CollectiveError::Aborted),
        }
    }

    fn cancel(&self, generation: Generation) {
        self.endpoint.abort(generation);
    }
}

/// The members of one generation.
struct Mesh {
    line: Arc<Line>,
    endpoint: Arc<Endpoint>,
    generation: Generation,
    rank: Rank,
    world: u32,
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.endpoint.leave(self.generation);
    }
}

impl Collective for Mesh {
    fn rank(&self) -> Rank {
        self.rank
    }

    fn world(&self) -> u32 {
        self.world
    }

    fn reduce_f32(&self, op: &Op, _: &Layout, _: &[&[f32]], _: &mut [f32]) -> Result<(), CollectiveError> {
        Err(CollectiveError::Misuse { operation: op.to_string(), what: "integers are gathered".into() })
    }

    fn reduce_f64(&self, op: &Op, _: &Layout, _: &[&[f64]], _: &mut [f64]) -> Result<(), CollectiveError> {
        Err(CollectiveError::Misuse { operation: op.to_string(), what: "integers are gathered".into() })
    }

    fn broadcast(&self, op: &Op, root: Rank, bytes: &mut [u8]) -> Result<(), CollectiveError> {
        let mine = if self.rank == root { bytes.to_vec() } else { Vec::new() };
        let all = self.all_gather(op, &mine)?;
        bytes.copy_from_slice(&all[root.0 as usize]);
        Ok(())
    }

    fn all_gather(&self, op: &Op, mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        match self.line.ask(Request::Exchange(self.generation, op.to_string(), mine.to_vec())) {
            Some(Answer::Exchanged(result)) => result,
            _ => Err(CollectiveError::Aborted),
        }
    }

    fn abort(&self) {
        self.endpoint.abort(self.generation);
    }
}
