//! A seeded schedule of everything that can happen: messages in any order between streams, deaths, joins, broken
//! streams, a coordinator that dies and comes back with what its store had made durable.

use std::collections::BTreeMap;
use std::time::Duration;

use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::Step;
use lockstep_proto::message::{FromWorker, Leaving, Left, ToWorker};
use lockstep_proto::plan::Course;
use lockstep_proto::recipe::Recipe;

use super::script;
use super::store::Tables;
use super::worker::{Fabric, Worker};
use crate::engine::{Effect, Engine, Event, History, Record, Seq, StreamId};

/// xorshift64*
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }
}

/// What a schedule did, to know that it did something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) num_killed: u32,
    pub(super) num_restarts: u32,
    pub(super) num_leaving: u32,
    pub(super) num_reconnects: u32,
    pub(super) num_generations: u64,
    pub(super) num_rollbacks: u32,
}

pub(super) struct Cluster {
    pub(super) random: Random,
    recipe: Recipe,
    pub(super) course: Course,
    engine: Engine,
    now: Duration,
    /// Durable.
    pub(super) tables: Tables,
    /// Handed over, not durable: with this life's numbers.
    tail: Vec<(Seq, Record)>,
    fabric: Fabric,
    workers: BTreeMap<StreamId, Worker>,
    num_streams: u64,
    num_workers: u64,
    faults_left: u32,
    cut_off: Vec<StreamId>,
    pub(super) ended: Option<ExitCode>,
    pub(super) tally: Tally,
}

impl Cluster {
    pub(super) fn new(seed: u64, recipe: Recipe, num_faults: u32) -> Self {
        let course = Course::new(&recipe, script::data().num_train);
        let (engine, _) = Engine::new(script::config(recipe.clone()), History::default()).expect("a new run");
        let mut cluster = Self {
            random: Random::new(seed),
            recipe,
            course,
            engine,
            now: Duration::ZERO,
            tables: Tables::default(),
            tail: Vec::new(),
            fabric: Fabric::default(),
            workers: BTreeMap::new(),
            num_streams: 0,
            num_workers: 0,
            faults_left: num_faults,
            cut_off: Vec::new(),
            ended: None,
            tally: Tally::default(),
        };
        for _ in 0..1 + cluster.random.below(3) {
            cluster.start_worker();
        }
        cluster
    }

    /// Until the run is done, through all its ends and resumptions.
    pub(super) fn run(&mut self) {
        for _ in 0..200_000 {
            match self.ended {
                Some(ExitCode::Done) => return,
                Some(ExitCode::TempFail | ExitCode::Unavailable) => self.restart(true),
                Some(code) => panic!("ended with {code:?}"),
                None => self.step(),
            }
        }
        panic!("does not end: {:?}", self.engine.status(self.now));
    }

    /// Only time passes from here; gives the number of deadlines until the end.
    pub(super) fn everyone_falls_silent(&mut self) -> u32 {
        let mut num_deadlines = 0;
        while self.ended.is_none() {
            let at = self.engine.next_deadline().expect("every wait has a deadline");
            assert!(at > self.now || num_deadlines < 100, "time goes on");
            self.now = self.now.max(at);
            self.handle(Event::Tick);
            num_deadlines += 1;
            assert!(num_deadlines < 1000);
        }
        num_deadlines
    }

    pub(super) fn step(&mut self) {
        self.now += Duration::from_millis(1);
        if self.now.as_millis().is_multiple_of(1000) {
            self.signs_of_life();
        }
        self.rejoin();
        if self.faults_left > 0 && self.random.below(60) == 0 {
            self.faults_left -= 1;
            return self.fault();
        }
        let is_short = self.workers.len() < self.recipe.elastic.min_workers as usize && self.random.below(20) == 0;
        let is_welcome = self.workers.len() < 4 && self.faults_left > 0 && self.random.below(150) == 0;
        if self.workers.is_empty() || is_short || is_welcome {
            return self.start_worker();
        }
        let streams: Vec<StreamId> = self.workers.keys().copied().collect();
        let stream = streams[self.random.below(streams.len() as u64) as usize];
        match self.random.below(8) {
            0 => self.persist(),
            1 | 2 => self.worker(stream).hear(),
            3 => {
                if let Some(message) = self.worker(stream).outbox.pop_front() {
                    self.handle(Event::Received { stream, message });
                }
            }
            4 if self.random.below(20) == 0 => {
                if self.engine.next_deadline().is_some_and(|at| at <= self.now) {
                    self.handle(Event::Tick);
                } else if self.is_quiet() {
                    self.sleep();
                }
            }
            4 if self.random.below(4) == 0 => {
                let mut worker = self.workers.remove(&stream).expect("listed");
                worker.write(&mut self.fabric);
                self.workers.insert(stream, worker);
            }
            _ => self.work(stream),
        }
        if self.workers.get(&stream).is_some_and(|worker| worker.is_over) {
            self.workers.remove(&stream);
            self.handle(Event::Disconnected { stream, reason: "it was sent away".into() });
        }
    }

    /// Until the next deadline, or the next signs of life.
    fn sleep(&mut self) {
        let at = self.engine.next_deadline().expect("every wait has a deadline");
        self.now = self.now.max(at.min(self.now + Duration::from_secs(1)));
        self.signs_of_life();
        self.handle(Event::Tick);
    }

    /// Whoever is there says so.
    fn signs_of_life(&mut self) {
        let said: Vec<_> = self.workers.iter().filter_map(|(at, worker)| Some((*at, worker.progress()?))).collect();
        for (stream, progress) in said {
            self.handle(Event::Received { stream, message: FromWorker::Progress(progress) });
        }
    }

    /// Whoever was cut off, and not sent away, comes back.
    fn rejoin(&mut self) {
        for stream in std::mem::take(&mut self.cut_off) {
            let is_told = |worker: &Worker| {
                worker.is_over || worker.inbox.iter().any(|m| matches!(m, ToWorker::Refused(_) | ToWorker::Finish(_)))
            };
            if self.workers.get(&stream).is_some_and(|worker| !is_told(worker)) {
                let worker = self.workers.remove(&stream).expect("seen");
                self.connect(worker);
            }
        }
    }

    /// Nothing is under way: only a deadline can move things.
    fn is_quiet(&self) -> bool {
        self.tail.is_empty() && self.workers.values().all(|worker| worker.inbox.is_empty() && worker.outbox.is_empty())
    }

    fn worker(&mut self, stream: StreamId) -> &mut Worker {
        self.workers.get_mut(&stream).expect("listed")
    }

    fn work(&mut self, stream: StreamId) {
        let mut worker = self.workers.remove(&stream).expect("listed");
        let others = &self.workers;
        worker.work(&mut self.fabric, &|id, generation| {
            others.values().any(|other| other.hello.worker == *id && other.may_enter(generation))
        });
        self.workers.insert(stream, worker);
    }

    fn start_worker(&mut self) {
        self.num_workers += 1;
        // Names in no order, so that rank 0 changes hands.
        let name = format!("w{}-{}", self.random.below(10), self.num_workers);
        let worker = Worker::new(&name, 1 + self.random.below(2) as usize);
        self.connect(worker);
    }

    fn connect(&mut self, mut worker: Worker) {
        self.num_streams += 1;
        let stream = StreamId(self.num_streams);
        let hello = worker.hello_again();
        self.workers.insert(stream, worker);
        self.handle(Event::Connected { stream, hello });
    }

    fn fault(&mut self) {
        let streams: Vec<StreamId> = self.workers.keys().copied().collect();
        let stream = streams.get(self.random.below(streams.len().max(1) as u64) as usize).copied();
        match (self.random.below(7), stream) {
            (0 | 1, Some(stream)) => {
                self.tally.num_killed += 1;
                self.workers.remove(&stream);
                self.handle(Event::Disconnected { stream, reason: "connection reset".into() });
            }
            (2, Some(stream)) => {
                // What it had to say still arrives; then it goes politely.
                let mut worker = self.workers.remove(&stream).expect("listed");
                while let Some(message) = worker.outbox.pop_front() {
                    self.handle(Event::Received { stream, message });
                }
                let left = Left { code: ExitCode::TempFail, reason: "SIGTERM".into() };
                self.handle(Event::Received { stream, message: FromWorker::Left(left) });
            }
            (3, Some(stream)) => {
                self.tally.num_reconnects += 1;
                let worker = self.workers.remove(&stream).expect("listed");
                if self.random.below(2) == 0 {
                    self.handle(Event::Disconnected { stream, reason: "connection reset".into() });
                }
                self.connect(worker);
            }
            (6, Some(stream)) => {
                self.tally.num_leaving += 1;
                let leaving = Leaving { reason: "SIGTERM".into() };
                self.handle(Event::Received { stream, message: FromWorker::Leaving(leaving) });
            }
            (4, _) => self.restart(false),
            _ => self.restart(true),
        }
    }

    /// The coordinator dies, with all workers or without them.
    fn restart(&mut self, with_workers: bool) {
        self.tally.num_restarts += 1;
        if self.random.below(2) == 0 {
            self.persist();
        }
        self.tail.clear();
        let disk = &self.fabric.disk;
        let history = self
            .tables
            .history(|checkpoint| disk.get(&checkpoint.dir).is_some_and(|(state, _)| *state == checkpoint.state));
        let is_lost = self.tables.committed().0 > 0 && history.checkpoints.is_empty();
        assert!(!is_lost, "there is always a loadable checkpoint");
        let (engine, effects) = Engine::new(script::config(self.recipe.clone()), history).expect("it can go on");
        self.engine = engine;
        self.now = Duration::ZERO;
        self.ended = None;
        self.carry_out(effects);
        let survivors = std::mem::take(&mut self.workers);
        if with_workers {
            self.start_worker();
        } else {
            for worker in survivors.into_values().filter(|worker| !worker.is_over) {
                self.connect(worker);
            }
        }
    }

    /// Some of what was handed over becomes durable.
    fn persist(&mut self) {
        if self.tail.is_empty() {
            return;
        }
        let num_durable = 1 + self.random.below(self.tail.len() as u64) as usize;
        let mut seq = Seq(0);
        for (of, record) in self.tail.drain(..num_durable) {
            seq = of;
            self.tables.apply(&record, &self.course);
        }
        self.tally.num_rollbacks = self.tables.num_rollbacks;
        self.tally.num_generations = self.tables.generation.0;
        self.handle(Event::Persisted { seq });
    }

    fn handle(&mut self, event: Event) {
        let effects = self.engine.handle(self.now, event);
        self.carry_out(effects);
        let waits = self.engine.next_deadline().is_some();
        assert_eq!(waits, self.engine.ended().is_none(), "every phase but the last has a deadline");
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send { stream, message } => {
                    match &message {
                        ToWorker::Open(open) => {
                            assert_eq!(
                                open.generation, self.tables.generation,
                                "a generation is durable before it is spoken of"
                            );
                        }
                        ToWorker::Committed { step, .. } => {
                            assert!(*step <= self.tables.committed(), "only what is durable is acknowledged");
                        }
                        _ => {}
                    }
                    if let Some(worker) = self.workers.get_mut(&stream) {
                        worker.inbox.push_back(message);
                    }
                }
                Effect::Hangup { stream } => self.cut_off.push(stream),
                Effect::Persist { seq, record } => self.tail.push((seq, record)),
                Effect::DeleteCheckpoint { dir } => {
                    let step: u64 = dir.trim_start_matches("step-").parse().expect("step-N");
                    let others = self.tables.checkpoints.keys().filter(|other| **other > Step(step)).count();
                    assert!(others > 0, "a newer one is durable before an older one goes");
                    self.fabric.disk.remove(&dir);
                }
                Effect::End { code, .. } => {
                    // Flushed before the process ends.
                    for (_, record) in std::mem::take(&mut self.tail) {
                        self.tables.apply(&record, &self.course);
                    }
                    self.ended = Some(code);
                }
            }
        }
    }
}
