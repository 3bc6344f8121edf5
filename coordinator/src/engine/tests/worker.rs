//! A worker whose parameters are one integer: every bit of the course shows in it.

use std::collections::{BTreeMap, VecDeque};

use lockstep_proto::ids::{Epoch, Generation, Rank, StateId, Step, WorkerId};
use lockstep_proto::message::{
    CheckpointSaved, Close, Complaint, EvalReport, FromWorker, Halted, Hello, Open, PlanItem, Progress, RankProgress,
    Source, StepPlan, StepReport, StepTimes, Synced, ToWorker,
};

use super::script;

/// Parameters before training.
pub(super) const INITIAL: u64 = 0x5eed;

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^ (x >> 29)
}

/// The next parameters: they depend on those before and on every position of the batch.
pub(super) fn advance(parameters: u64, epoch: Epoch, batch: lockstep_proto::ids::SampleRange) -> u64 {
    let sum =
        (batch.start..batch.end()).fold(0u64, |sum, at| sum.wrapping_add(mix(parameters ^ mix(epoch.0 << 32 | at))));
    mix(parameters.wrapping_add(sum))
}

pub(super) fn loss(parameters: u64) -> f64 {
    (parameters % 1000) as f64 / 100.0
}

pub(super) fn hash(step: Step, parameters: u64) -> String {
    format!("{step}-{parameters:016x}")
}

/// What ranks share while they live: who is where in a generation, and files.
#[derive(Debug, Default)]
pub(super) struct Fabric {
    /// Number of the collective operation that each worker entered last; it stays when the worker dies.
    entered: BTreeMap<(Generation, WorkerId), u64>,
    /// What the leader broadcasts.
    broadcast: BTreeMap<Generation, (StateId, u64)>,
    /// The run directory.
    pub(super) disk: BTreeMap<String, (StateId, u64)>,
}

/// One process.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) hello: Hello,
    pub(super) inbox: VecDeque<ToWorker>,
    pub(super) outbox: VecDeque<FromWorker>,
    /// Not acknowledged yet.
    kept: Vec<FromWorker>,
    pub(super) held: Option<(StateId, u64)>,
    open: Option<Open>,
    items: VecDeque<PlanItem>,
    num_done: u64,
    is_broken: bool,
    is_ready: bool,
    saving: Option<(Generation, Epoch, StateId, u64)>,
    /// It was told to go.
    pub(super) is_over: bool,
}

impl Worker {
    pub(super) fn new(name: &str, num_replicas: usize) -> Self {
        let mut hello = script::hello(name);
        hello.devices = vec!["cpu".into(); num_replicas];
        Self {
            hello,
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
            kept: Vec::new(),
            held: None,
            open: None,
            items: VecDeque::new(),
            num_done: 0,
            is_broken: false,
            is_ready: false,
            saving: None,
            is_over: false,
        }
    }

    /// The stream broke: what was under way in either direction is gone; the next stream starts with this.
    pub(super) fn hello_again(&mut self) -> Hello {
        self.inbox.clear();
        self.outbox.clear();
        self.is_ready = false;
        self.hello.clone()
    }

    /// What it says of itself every second, once it may.
    pub(super) fn progress(&self) -> Option<Progress> {
        let (generation, ranks) = match &self.open {
            Some(open) => (open.generation, self.ranks(open)),
            None => (Generation(0), Vec::new()),
        };
        let of = |rank| RankProgress { rank, beats: self.num_done, is_waiting: true };
        self.is_ready.then(|| Progress { generation, ranks: ranks.into_iter().map(of).collect(), gpus: Vec::new() })
    }

    fn say(&mut self, message: FromWorker) {
        if matches!(message, FromWorker::Reported(_) | FromWorker::Evaluated(_) | FromWorker::CheckpointSaved(_)) {
            self.kept.push(message.clone());
        }
        if self.is_ready {
            self.outbox.push_back(message);
        }
    }

    fn halt(&mut self) {
        self.open = None;
        self.items.clear();
    }

    /// Takes one message.
    pub(super) fn hear(&mut self) {
        let Some(message) = self.inbox.pop_front() else { return };
        match message {
            ToWorker::Welcome(welcome) => {
                self.halt();
                self.hello.run_id = Some(welcome.run_id);
                let mut ready = script::ready();
                ready.addresses = vec!["a:1".into(); self.hello.devices.len()];
                ready.state = self.held.map(|(state, _)| state);
                self.outbox.push_back(FromWorker::Ready(ready));
                self.outbox.extend(self.kept.clone());
                self.is_ready = true;
            }
            ToWorker::Open(open) => {
                self.kept.retain(|message| generation_of(message) >= open.generation);
                self.open = Some(open);
                self.items.clear();
                self.num_done = 0;
                self.is_broken = false;
            }
            ToWorker::Plan(plan) => {
                if self.open.as_ref().is_some_and(|open| open.generation == plan.generation) {
                    self.items.extend(plan.items);
                }
            }
            ToWorker::Close(Close { generation, .. }) => {
                self.halt();
                self.say(FromWorker::Halted(Halted { generation, state: self.held.map(|(state, _)| state) }));
            }
            ToWorker::Committed { generation, step } => self.kept.retain(|message| match message {
                FromWorker::Reported(report) => report.generation > generation || report.step > step,
                _ => true,
            }),
            ToWorker::Drain(_) | ToWorker::Finish(_) | ToWorker::Refused(_) => self.is_over = true,
        }
    }

    /// Finishes the checkpoint in hand.
    pub(super) fn write(&mut self, fabric: &mut Fabric) {
        let Some((generation, epoch, state, parameters)) = self.saving.take() else { return };
        let dir = format!("step-{}", state.step);
        fabric.disk.insert(dir.clone(), (state, parameters));
        let state_sha256 = hash(state.step, parameters);
        self.say(FromWorker::CheckpointSaved(CheckpointSaved {
            generation,
            state,
            epoch,
            dir,
            bytes: 1,
            state_sha256,
        }));
    }

    /// One move of computation: enters or leaves a collective operation. `alive` are workers that are still there
    /// and have not halted this generation.
    pub(super) fn work(&mut self, fabric: &mut Fabric, is_there: &dyn Fn(&WorkerId, Generation) -> bool) {
        let Some(open) = self.open.clone() else { return };
        if self.is_broken {
            return;
        }
        if let (Some(PlanItem::Checkpoint { epoch, .. }), true) = (self.items.front(), self.num_done > 0) {
            let is_first = open.members.first().is_some_and(|member| member.worker == self.hello.worker);
            if !is_first {
                self.items.pop_front();
            } else if self.saving.is_some() {
                self.write(fabric);
            } else if let Some((state, parameters)) = self.held {
                self.saving = Some((open.generation, *epoch, state, parameters));
                self.items.pop_front();
            }
            return;
        }
        if self.num_done > 0 && self.items.is_empty() {
            return;
        }
        let number = self.num_done + 1;
        let me = self.hello.worker.clone();
        if fabric.entered.insert((open.generation, me.clone()), number) != Some(number) {
            if self.num_done == 0 {
                self.lead(fabric, &open);
            }
            return; // entered; leaves later
        }
        let has_entered = |worker: &WorkerId| fabric.entered.get(&(open.generation, worker.clone())) >= Some(&number);
        let missing = open.members.iter().find(|member| !has_entered(&member.worker));
        match missing {
            None => self.complete(fabric, &open),
            Some(member) if is_there(&member.worker, open.generation) => {} // waits
            Some(member) => {
                self.is_broken = true;
                let step = self.held.map_or(Step(0), |(state, _)| state.step);
                let (rank, culprit) = (self.ranks(&open)[0], Some(member.rank));
                let what = "connection reset".into();
                self.say(FromWorker::Complained(Complaint { generation: open.generation, rank, step, culprit, what }));
            }
        }
    }

    /// Whether it takes part in a generation, or is yet to hear of it.
    pub(super) fn may_enter(&self, generation: Generation) -> bool {
        let is_coming =
            self.inbox.iter().any(|message| matches!(message, ToWorker::Open(open) if open.generation == generation));
        is_coming || !self.is_broken && self.open.as_ref().is_some_and(|open| open.generation == generation)
    }

    fn ranks(&self, open: &Open) -> Vec<Rank> {
        open.members.iter().filter(|member| member.worker == self.hello.worker).map(|member| member.rank).collect()
    }

    fn lead(&mut self, fabric: &mut Fabric, open: &Open) {
        if !self.ranks(open).contains(&open.leader) {
            return;
        }
        let base = match &open.source {
            Source::Init => (open.base, INITIAL),
            Source::Held => self.held.expect("a leader holds the base"),
            Source::Checkpoint { dir } => fabric.disk[dir],
        };
        assert_eq!(base.0, open.base, "the base is what its source holds");
        fabric.broadcast.insert(open.generation, base);
    }

    fn complete(&mut self, fabric: &mut Fabric, open: &Open) {
        self.num_done += 1;
        let generation = open.generation;
        if self.num_done == 1 {
            let (state, parameters) = fabric.broadcast[&generation];
            self.held = Some((state, parameters));
            self.say(FromWorker::Synced(Synced { generation, state_sha256: hash(state.step, parameters) }));
            return;
        }
        let Some((state, parameters)) = self.held else { return };
        match self.items.pop_front() {
            Some(PlanItem::Step(plan)) => self.step(open, &plan, state, parameters),
            Some(PlanItem::Evaluate { epoch, step }) => {
                assert_eq!(state.step, step);
                for rank in self.ranks(open) {
                    let error = (parameters % 97) as f64 / 100.0;
                    self.say(FromWorker::Evaluated(EvalReport {
                        generation,
                        rank,
                        epoch,
                        step,
                        loss: loss(parameters),
                        error,
                        error_top5: 0.0,
                        samples: 10,
                        skipped: Vec::new(),
                        seconds: 1.0,
                    }));
                }
            }
            Some(PlanItem::Checkpoint { .. }) | None => {}
        }
    }

    fn step(&mut self, open: &Open, plan: &StepPlan, state: StateId, parameters: u64) {
        assert_eq!(plan.step, state.step.next());
        let next = StateId { lineage: open.lineage, generation: open.generation, step: plan.step };
        self.held = Some((next, advance(parameters, plan.epoch, plan.batch)));
        for rank in self.ranks(open) {
            self.say(FromWorker::Reported(StepReport {
                generation: open.generation,
                rank,
                step: plan.step,
                loss: loss(parameters),
                wrong: parameters % 5,
                samples: plan.batch.len,
                digest: mix(parameters),
                skipped: Vec::new(),
                ready: None,
                times: StepTimes { wall: 1.0, ..StepTimes::default() },
            }));
        }
    }
}

fn generation_of(message: &FromWorker) -> Generation {
    match message {
        FromWorker::Reported(report) => report.generation,
        FromWorker::Evaluated(report) => report.generation,
        FromWorker::CheckpointSaved(saved) => saved.generation,
        _ => Generation(u64::MAX),
    }
}
