//! Who may join, and what it means when someone goes.
//!
//! ```text
//! Hello ─ protocol · name · room · instruction set ─► Welcome ─► Ready ─ data · canary · replicas ─► Idle
//!            └──────────────────────── Refused, with what to do about it ────────────────┘
//! ```

use lockstep_proto::exit::ExitCode;
use lockstep_proto::isa;
use lockstep_proto::message::{DataIdentity, Hello, Left, PROTOCOL_VERSION, Ready, Refused, ToWorker, Welcome};
use lockstep_proto::plan::Course;
use lockstep_proto::recipe::{DataKind, Recipe, Reduction};
use serde_json::json;

use super::effect::{Effect, Record};
use super::event::StreamId;
use super::members::{Peer, Standing};
use super::{Engine, Phase, Settled};

/// Why a worker is not admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    code: ExitCode,
    reason: String,
}

impl Refusal {
    fn new(code: ExitCode, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }
}

impl Engine {
    pub(super) fn on_hello(&mut self, stream: StreamId, hello: Hello) {
        self.replace_former_self(&hello);
        match self.check_hello(&hello) {
            Err(refusal) => self.refuse(stream, &hello, refusal),
            Ok(isa) => {
                let record = Record::Joined {
                    worker: hello.worker.clone(),
                    host: hello.host.clone(),
                    pid: hello.pid,
                    devices: hello.devices.clone(),
                };
                self.persist(record);
                let welcome = Welcome {
                    run_id: self.config.run_id.clone(),
                    recipe_toml: self.config.recipe.to_toml(),
                    run_dir: self.config.run_dir.clone(),
                    run_nonce: self.config.run_nonce.clone(),
                    isa: isa.clone(),
                };
                self.isa = Some(isa);
                self.roster.insert(stream, Peer::new(hello, self.now));
                self.outbox.send(stream, ToWorker::Welcome(welcome));
            }
        }
    }

    /// A worker whose stream broke may be back before the transport noticed.
    fn replace_former_self(&mut self, hello: &Hello) {
        let Some(former) = self.roster.find(&hello.worker) else { return };
        let is_same =
            self.roster.get(former).is_some_and(|peer| peer.hello.host == hello.host && peer.hello.pid == hello.pid);
        if is_same {
            self.outbox.push(Effect::Hangup { stream: former });
            self.lose(former, "it opened a new stream");
        }
    }

    /// The run's instruction set, if the worker is welcome.
    fn check_hello(&self, hello: &Hello) -> Result<String, Refusal> {
        if hello.protocol != PROTOCOL_VERSION {
            let reason = format!(
                "worker {} ({}) speaks protocol {}, this coordinator {PROTOCOL_VERSION}; use the same version of lockstep \
                 on both sides",
                hello.worker, hello.build, hello.protocol
            );
            return Err(Refusal::new(ExitCode::Protocol, reason));
        }
        if hello.devices.is_empty() {
            let reason = format!("worker {} has no device; give it --devices", hello.worker);
            return Err(Refusal::new(ExitCode::Usage, reason));
        }
        if let Some(peer) = self.roster.find(&hello.worker).and_then(|stream| self.roster.get(stream)) {
            let reason = format!(
                "a worker named {} is here already (host {}, process {}); names must be unique",
                hello.worker, peer.hello.host, peer.hello.pid
            );
            return Err(Refusal::new(ExitCode::Usage, reason));
        }
        let max = self.config.recipe.elastic.max_workers as usize;
        if max > 0 && self.roster.len() >= max {
            let reason = format!("the run has its elastic.max_workers = {max} workers; raise it to admit more");
            return Err(Refusal::new(ExitCode::Usage, reason));
        }
        let Some(run) = &self.isa else { return Ok(hello.isa.clone()) };
        let is_enough = *run == hello.isa
            || matches!((isa::rung(run), isa::rung(&hello.isa)), (Some(run), Some(its)) if its >= run);
        if !is_enough {
            let reason = format!(
                "the run computes with instruction set {run}, worker {} on {} has only {}, which gives other bits; use \
                 another machine, or start a new run with the lesser one",
                hello.worker, hello.host, hello.isa
            );
            return Err(Refusal::new(ExitCode::Config, reason));
        }
        Ok(run.clone())
    }

    pub(super) fn on_ready(&mut self, stream: StreamId, ready: Ready) {
        let Some(peer) = self.roster.get(stream) else { return };
        if peer.standing != Standing::Loading {
            return self.expel(stream, ExitCode::Protocol, "said ready twice");
        }
        if let Err(refusal) = self.check_ready(peer, &ready) {
            let hello = peer.hello.clone();
            self.roster.remove(stream);
            self.persist(Record::Left { worker: hello.worker.clone(), reason: refusal.reason.clone() });
            self.refuse(stream, &hello, refusal);
            self.forget_isa_if_alone();
            return;
        }
        if self.settled.is_none() {
            self.settle(&ready);
        }
        let run_id = &self.config.run_id;
        if let Some(peer) = self.roster.get_mut(stream) {
            // What belongs to another run is no state of this one.
            peer.state = if peer.hello.run_id.as_ref() == Some(run_id) { ready.state } else { None };
            peer.ready = Some(ready);
            peer.standing = Standing::Idle;
        }
    }

    fn check_ready(&self, peer: &Peer, ready: &Ready) -> Result<(), Refusal> {
        let worker = &peer.hello.worker;
        if ready.addresses.len() != peer.hello.devices.len() {
            let (given, need) = (ready.addresses.len(), peer.hello.devices.len());
            let reason = format!(
                "worker {worker} gave {given} addresses for {need} replicas; use the same version on both sides"
            );
            return Err(Refusal::new(ExitCode::Protocol, reason));
        }
        if let Some(expected) = contradiction(&self.config.recipe, &ready.data) {
            let reason = format!(
                "worker {worker} on {} sees {}, but the recipe's data are {expected}; check data.path there",
                peer.hello.host,
                describe(&ready.data)
            );
            return Err(Refusal::new(ExitCode::Data, reason));
        }
        if let Some(settled) = &self.settled {
            if settled.data != ready.data {
                let reason = format!(
                    "worker {worker} on {} sees {}, the run has {}; give it the same files",
                    peer.hello.host,
                    describe(&ready.data),
                    describe(&settled.data)
                );
                return Err(Refusal::new(ExitCode::Data, reason));
            }
            if settled.canary != ready.canary {
                let name = |canary: &Option<String>| canary.clone().unwrap_or_else(|| "none".into());
                let reason = format!(
                    "worker {worker} on {} cannot keep the bits of this run: its gradient of the fixed chunk hashes to {}, \
                     the run's to {}; use the same libtorch and kind of CPU, or train.reduction = \"fast\"",
                    peer.hello.host,
                    name(&ready.canary),
                    name(&settled.canary)
                );
                return Err(Refusal::new(ExitCode::Config, reason));
            }
        } else if self.config.recipe.train.reduction == Reduction::Canonical && ready.canary.is_none() {
            let reason = format!("worker {worker} computed no canary; use the same version of lockstep on both sides");
            return Err(Refusal::new(ExitCode::Protocol, reason));
        }
        let is_open = self.ledger.committed().0 > 0 || self.world.is_some();
        let others: u64 =
            self.roster.iter().filter(|(_, peer)| peer.ready.is_some()).map(|(_, peer)| peer.num_replicas()).sum();
        let batch = self.config.recipe.train.batch;
        if is_open && others + peer.num_replicas() > batch {
            let reason = format!("worker {worker} would make more replicas than train.batch = {batch} has samples");
            return Err(Refusal::new(ExitCode::Usage, reason));
        }
        Ok(())
    }

    /// The first worker's data, instruction set and canary become the run's.
    fn settle(&mut self, ready: &Ready) {
        let isa = self.isa.clone().unwrap_or_default();
        let settled = Settled { data: ready.data.clone(), isa, canary: ready.canary.clone() };
        let (data, isa, canary) = (settled.data.clone(), settled.isa.clone(), settled.canary.clone());
        self.course = Some(Course::new(&self.config.recipe, settled.data.num_train));
        self.settled = Some(settled);
        self.persist(Record::Settled { data, isa, canary });
    }

    /// An instruction set that nobody who is here asked for, and nothing was computed with, binds nobody.
    fn forget_isa_if_alone(&mut self) {
        if self.settled.is_none() && self.roster.len() == 0 {
            self.isa = None;
        }
    }

    fn refuse(&mut self, stream: StreamId, hello: &Hello, refusal: Refusal) {
        let detail = json!({ "code": refusal.code.code(), "reason": refusal.reason, "host": hello.host });
        self.note("refused", Some(hello.worker.clone()), detail);
        self.last_refusal = Some(refusal.reason.clone());
        self.outbox.send(stream, ToWorker::Refused(Refused { code: refusal.code, reason: refusal.reason }));
        self.outbox.push(Effect::Hangup { stream });
    }

    pub(super) fn on_disconnected(&mut self, stream: StreamId, reason: &str) {
        self.lose(stream, reason);
    }

    /// A worker says why it goes. What will not get better ends the run, unless the run goes on without that worker.
    pub(super) fn on_left(&mut self, stream: StreamId, left: Left) {
        let Some(peer) = self.roster.get(stream) else { return };
        let worker = peer.worker().clone();
        let is_bystander = self.world.is_some() && !matches!(peer.standing, Standing::Busy | Standing::Halting);
        if is_fatal(left.code) && !is_bystander {
            let reason = format!("worker {worker} on {}: {}", peer.hello.host, left.reason);
            self.roster.remove(stream);
            self.persist(Record::Left { worker, reason: left.reason });
            self.end(left.code, reason);
            return;
        }
        self.outbox.push(Effect::Hangup { stream });
        self.remove(stream, &format!("left: {}", left.reason));
    }

    /// A worker that went without a word.
    pub(super) fn lose(&mut self, stream: StreamId, reason: &str) {
        let Some(peer) = self.roster.get(stream) else { return };
        let (worker, step) = (peer.worker().clone(), peer.step);
        self.note("lost", Some(worker), json!({ "reason": reason, "last_step": step }));
        self.remove(stream, &format!("lost: {reason}"));
    }

    /// Makes a worker go that cannot stay.
    pub(super) fn expel(&mut self, stream: StreamId, code: ExitCode, reason: &str) {
        let Some(peer) = self.roster.get(stream) else { return };
        let reason = format!("worker {} {reason}", peer.worker());
        self.outbox.send(stream, ToWorker::Refused(Refused { code, reason: reason.clone() }));
        self.outbox.push(Effect::Hangup { stream });
        self.lose(stream, &reason);
    }

    fn remove(&mut self, stream: StreamId, reason: &str) {
        let Some(peer) = self.roster.remove(stream) else { return };
        let had_part = self.world.as_ref().is_some_and(|world| world.has(stream));
        self.persist(Record::Left { worker: peer.worker().clone(), reason: reason.to_owned() });
        self.forget_isa_if_alone();
        if had_part && !matches!(self.phase, Phase::Finishing(_)) {
            self.close(&format!("worker {} {reason}", peer.worker()), true);
        }
    }
}

/// Codes that a new attempt would end with again.
fn is_fatal(code: ExitCode) -> bool {
    use ExitCode::{CantCreate, Config, Data, NoInput, Software, Usage};
    matches!(code, Usage | Data | NoInput | Software | CantCreate | Config)
}

/// What the recipe says about its data, where that is known beforehand and not what the worker sees.
fn contradiction(recipe: &Recipe, seen: &DataIdentity) -> Option<String> {
    let data = &recipe.data;
    let (name, num_classes, lengths) = match data.kind {
        DataKind::Cifar10 => ("cifar10", 10, Some((50_000, 10_000))),
        DataKind::Cifar100 => ("cifar100", 100, Some((50_000, 10_000))),
        DataKind::Shapes => ("shapes", 10, None),
    };
    let limited = |whole: u64, limit: u64| if limit == 0 { whole } else { whole.min(limit) };
    let lengths = lengths.map(|(train, test)| (limited(train, data.limit), limited(test, data.test_limit)));
    let fits = seen.name == name
        && seen.num_classes == num_classes
        && seen.num_train > 0
        && lengths.is_none_or(|lengths| lengths == (seen.num_train, seen.num_test));
    if fits {
        return None;
    }
    Some(match lengths {
        Some((train, test)) => format!("{name} with {train} training and {test} test samples of {num_classes} classes"),
        None => format!("{name} with at least one training sample of {num_classes} classes"),
    })
}

fn describe(data: &DataIdentity) -> String {
    format!(
        "{} with {} training and {} test samples of {} classes, fingerprint {}",
        data.name, data.num_train, data.num_test, data.num_classes, data.fingerprint
    )
}
