//! A coordinator, workers, the network between them, and whoever starts what died: one seed, one course of events.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockstep_coordinator::store::RunReader;
use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::Step;
use lockstep_proto::recipe::Recipe;
use lockstep_worker::exit::Exit;
use lockstep_worker::session::Signal;
use tokio::sync::mpsc;
use turmoil::Sim;

use crate::coordinator::{self, Cut, Desk};
use crate::faults::{Heal, Tally};
use crate::random::Random;
use crate::witness::Witness;
use crate::worker::{self, COORDINATOR, Process};

/// What turmoil does at once.
pub const TICK: Duration = Duration::from_millis(5);
/// Hosts for workers; a host that is free is used again.
pub const NUM_HOSTS: usize = 10;
/// Replicas that may be about at once: no batch has fewer samples.
const MAX_REPLICAS: u32 = 8;

/// A process to run, with the signals that it will get.
type Next = Arc<Mutex<Option<(Process, mpsc::Receiver<Signal>)>>>;

/// A host for worker processes.
#[derive(Debug, Default)]
pub struct Slot {
    /// What the host runs, or is to run next.
    process: Next,
    ended: Arc<Mutex<Option<Exit>>>,
    pub life: Option<Life>,
    is_known: bool,
}

/// A process that lives.
#[derive(Debug)]
pub struct Life {
    pub process: Process,
    pub signals: mpsc::Sender<Signal>,
    /// It does not count as one of the run's workers any more: it is cut off.
    pub is_zombie: bool,
}

/// One simulation.
pub struct Cluster {
    pub sim: Sim<'static>,
    pub witness: Arc<Witness>,
    pub desk: Arc<Desk>,
    pub random: Random,
    pub slots: Vec<Slot>,
    pub tally: Tally,
    pub now: Duration,
    pub heals: BTreeMap<(Duration, u64), Heal>,
    seed: u64,
    num_processes: u64,
    /// Workers that someone wants there to be.
    pub target: usize,
    /// The longest that a message takes where nothing is wrong.
    latency: Duration,
    replace_at: Duration,
    restart_at: Option<Duration>,
    is_coordinator_known: bool,
    pub is_done: bool,
    _run_dir: tempfile::TempDir,
}

impl Cluster {
    pub fn new(seed: u64, recipe: Recipe) -> Self {
        // What a power cut leaves is not the matter here, so the quickest place will do.
        let shm = std::path::Path::new("/dev/shm");
        let root = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
        let folder = tempfile::Builder::new().prefix("lockstep-").tempdir_in(root).expect("a folder");
        let run_dir = folder.path().join("run");
        let mut random = Random::new(seed);
        let latency = random.between(5, 120);
        // Not drawn by the network: tonic wakes connections in an order that differs from run to run, and with it would
        // the draws.
        let sim = turmoil::Builder::new()
            .rng_seed(seed)
            .tick_duration(TICK)
            .min_message_latency(latency)
            .max_message_latency(latency)
            .tcp_capacity(4096)
            .udp_capacity(4096)
            .simulation_duration(Duration::from_secs(1 << 30))
            .build();
        let target = (recipe.elastic.min_workers as usize).max(1 + random.below(4) as usize);
        let mut cluster = Self {
            sim,
            witness: Arc::new(Witness::new(recipe, &run_dir)),
            desk: Arc::new(Desk::default()),
            random,
            slots: (0..NUM_HOSTS).map(|_| Slot::default()).collect(),
            tally: Tally::default(),
            now: Duration::ZERO,
            heals: BTreeMap::new(),
            seed,
            num_processes: 0,
            target,
            latency,
            replace_at: Duration::ZERO,
            restart_at: None,
            is_coordinator_known: false,
            is_done: false,
            _run_dir: folder,
        };
        cluster.start_coordinator();
        for _ in 0..cluster.target {
            cluster.start_worker();
        }
        cluster
    }

    pub fn host(index: usize) -> String {
        format!("host-{index}")
    }

    /// One tick; panics where a rule was broken in it.
    pub fn step(&mut self) {
        self.sim.step().expect("no host fails");
        self.now += TICK;
        self.witness.set_now(self.now);
        self.heal();
        self.change_weather();
        self.look_after_workers();
        self.look_after_coordinator();
        if let Some(what) = self.witness.violation() {
            panic!("{what}");
        }
    }

    /// Now and then a link gets slower or quicker; later messages may overtake earlier ones.
    fn change_weather(&mut self) {
        if self.random.below(3) > 0 {
            return;
        }
        let hosts: Vec<String> = self.living().into_iter().map(Self::host).chain([COORDINATOR.to_owned()]).collect();
        let latency = self.random.between(1, self.latency.as_millis() as u64);
        if let (Some(a), Some(b)) = (self.random.pick(&hosts), self.random.pick(&hosts))
            && a != b
        {
            self.sim.set_link_latency(a, b, latency);
        }
    }

    fn heal(&mut self) {
        while let Some(entry) = self.heals.first_entry()
            && entry.key().0 <= self.now
        {
            let heal = entry.remove();
            heal.apply(self);
        }
    }

    /// Everything that is broken heals now.
    pub fn heal_all(&mut self) {
        for heal in std::mem::take(&mut self.heals).into_values() {
            heal.apply(self);
        }
    }

    pub fn log(&self, what: impl AsRef<str>) {
        self.witness.log(what);
    }

    pub fn living(&self) -> Vec<usize> {
        (0..self.slots.len()).filter(|index| self.slots[*index].life.is_some()).collect()
    }

    fn num_counted(&self) -> usize {
        self.slots.iter().filter(|slot| slot.life.as_ref().is_some_and(|life| !life.is_zombie)).count()
    }

    /// Takes note of who has ended; replaces them after a while, as a launcher does.
    fn look_after_workers(&mut self) {
        for index in 0..self.slots.len() {
            let Some(exit) = self.slots[index].ended.lock().unwrap().take() else { continue };
            let Some(life) = self.slots[index].life.take() else { continue };
            self.log(format!("process {} ended with {}: {exit}", life.process.number, exit.code.code()));
            let is_right = matches!(exit.code, ExitCode::Done | ExitCode::TempFail | ExitCode::Unavailable);
            let number = life.process.number;
            self.witness
                .check(is_right.then_some(()).ok_or(format!("process {number} ended with {:?}: {exit}", exit.code)));
            self.replace_at = self.replace_at.max(self.now + self.random.between(0, 4000));
        }
        if !self.is_done && self.num_counted() < self.target && self.replace_at <= self.now {
            self.start_worker();
        }
    }

    /// Gives the index of its host; nobody is started where there is no room.
    pub fn start_worker(&mut self) -> Option<usize> {
        let used: u32 = self.slots.iter().flat_map(|slot| &slot.life).map(|life| life.process.num_replicas).sum();
        let index = (0..self.slots.len()).find(|index| self.slots[*index].life.is_none())?;
        if used >= MAX_REPLICAS {
            return None;
        }
        self.num_processes += 1;
        let num_replicas = (1 + u32::from(self.random.below(4) == 0)).min(MAX_REPLICAS - used);
        let host = Self::host(index);
        let process = Process { number: self.num_processes, host: host.clone(), num_replicas, seed: self.seed };
        self.log(format!("start process {} ({}) on {host}", process.number, process.worker()));
        let (signals, queue) = mpsc::channel(8);
        let slot = &mut self.slots[index];
        *slot.process.lock().unwrap() = Some((process.clone(), queue));
        slot.life = Some(Life { process, signals, is_zombie: false });
        if std::mem::replace(&mut slot.is_known, true) {
            self.sim.bounce(host);
        } else {
            let (next, ended, witness) =
                (Arc::clone(&slot.process), Arc::clone(&slot.ended), Arc::clone(&self.witness));
            self.sim.host(host, move || {
                let (next, ended, witness) = (Arc::clone(&next), Arc::clone(&ended), Arc::clone(&witness));
                async move {
                    let (process, signals) = next.lock().unwrap().take().expect("someone to run");
                    let exit = worker::live(witness, process, signals).await;
                    *ended.lock().unwrap() = Some(exit);
                    Ok(())
                }
            });
        }
        Some(index)
    }

    /// A process is gone without a word.
    pub fn kill_worker(&mut self, index: usize) {
        if let Some(life) = self.slots[index].life.take() {
            self.log(format!("kill process {}", life.process.number));
            self.sim.crash(Self::host(index));
            self.slots[index].ended.lock().unwrap().take();
            self.replace_at = self.replace_at.max(self.now + self.random.between(0, 4000));
        }
    }

    fn start_coordinator(&mut self) {
        self.log("start coordinator");
        self.restart_at = None;
        if std::mem::replace(&mut self.is_coordinator_known, true) {
            let checked = self.witness.rules.lock().unwrap().restarted();
            self.witness.check(checked);
            self.sim.bounce(COORDINATOR);
            return;
        }
        let (witness, desk, seed) = (Arc::clone(&self.witness), Arc::clone(&self.desk), self.seed);
        self.sim.host(COORDINATOR, move || {
            let (witness, desk) = (Arc::clone(&witness), Arc::clone(&desk));
            async move {
                coordinator::live(witness, desk, seed).await;
                Ok(())
            }
        });
    }

    pub fn is_coordinator_up(&self) -> bool {
        self.restart_at.is_none()
    }

    /// It is gone without a word; another one comes after a while.
    pub fn kill_coordinator(&mut self, cut: Option<Cut>) {
        self.log(format!("kill coordinator, {cut:?}"));
        self.tally.num_restarts += 1;
        self.sim.crash(COORDINATOR);
        *self.desk.outcome.lock().unwrap() = None;
        *self.desk.is_dying.lock().unwrap() = None;
        *self.desk.cut.lock().unwrap() = None;
        if cut == Some(Cut::Torn) {
            self.tally.num_torn += 1;
            coordinator::tear(&self.witness.run_dir, &mut self.random).expect("files of its own");
        }
        self.bury();
        self.restart_at = Some(self.now + self.random.between(0, 12_000));
    }

    /// The lease of a process that is dead ends with it; here the process goes on, so its lease is taken away.
    fn bury(&self) {
        let store = rusqlite::Connection::open(self.witness.run_dir.join("run.db")).expect("a store");
        store.execute("DELETE FROM lease", []).expect("a lease");
        let found: i64 =
            store.query_row("SELECT IFNULL(MAX(step), 0) FROM steps", [], |row| row.get(0)).expect("steps");
        let known = self.witness.rules.lock().unwrap().committed();
        let checked = (Step(found as u64) == known).then_some(());
        self.witness.check(checked.ok_or(format!("the store holds {found} steps, but {known} had become durable")));
    }

    fn look_after_coordinator(&mut self) {
        let is_dying = *self.desk.is_dying.lock().unwrap();
        if let Some(cut) = is_dying {
            self.kill_coordinator(Some(cut));
        }
        let ended = self.desk.outcome.lock().unwrap().take();
        match ended {
            Some(Ok(outcome)) => {
                self.log(format!("coordinator ended with {}: {}", outcome.code.code(), outcome.reason));
                match outcome.code {
                    ExitCode::Done => self.is_done = true,
                    ExitCode::TempFail | ExitCode::Unavailable => {
                        self.tally.num_resumed += 1;
                        self.restart_at = Some(self.now + self.random.between(0, 5000));
                    }
                    code => self.witness.check(Err(format!("the run ended with {code:?}: {}", outcome.reason))),
                }
            }
            Some(Err(error)) => self.witness.check(Err(format!("no coordinator: {error}"))),
            None => {}
        }
        if self.restart_at.is_some_and(|at| at <= self.now) {
            self.start_coordinator();
        }
    }

    /// What the store says of the finished run.
    pub fn audit(&self) -> Result<(), String> {
        let error = |error: lockstep_coordinator::store::StoreError| error.to_string();
        let reader = RunReader::open(&self.witness.run_dir).map_err(error)?;
        let course = &self.witness.course;
        let mut times = BTreeMap::new();
        reader
            .each_ledger_row(|row| {
                for position in row.range.start..row.range.end() {
                    *times.entry((row.epoch, position)).or_insert(0u32) += 1;
                }
            })
            .map_err(error)?;
        let expected = course.epochs * course.num_train;
        if times.len() as u64 != expected || times.values().any(|times| *times != 1) {
            let wrong = times.iter().find(|(_, times)| **times != 1);
            return Err(format!("{} of {expected} samples are committed; not once: {wrong:?}", times.len()));
        }
        let lines = std::fs::read_to_string(self.witness.run_dir.join("metrics.jsonl")).map_err(|e| e.to_string())?;
        let num_lines = lines.lines().count() as u64;
        if num_lines != course.num_steps() {
            return Err(format!("metrics.jsonl has {num_lines} lines for {} steps", course.num_steps()));
        }
        if !self.witness.rules.lock().unwrap().finished {
            return Err("the run ended well without a record of it".into());
        }
        Ok(())
    }
}

/// A failure comes with what led to it, where `LOCKSTEP_STORY` asks for that.
impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("LOCKSTEP_STORY").is_some() {
            self.witness.history().iter().for_each(|line| eprintln!("{line}"));
        }
    }
}
