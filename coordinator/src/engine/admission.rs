//! Who may join, and what it means when someone goes.
//!
//! ```text
//! Hello ─ protocol · name · room · instruction set ─► Welcome ─► Ready ─ data · canary · replicas ─► Idle
//!            └──────────────────────── Refused, with what to do about it ────────────────┘
//! ```

use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::WorkerId;
use lockstep_proto::message::{Drain, Hello, Leaving, Left, Ready, Refused, ToWorker, Welcome};
use lockstep_proto::plan::Course;
use serde_json::json;

use super::checks::Refusal;
use super::effect::{Effect, Record};
use super::event::StreamId;
use super::members::{Peer, Standing};
use super::{Engine, Phase, Settled, Stop};

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
            let worker = peer.worker().clone();
            self.settle(worker, &ready);
        }
        let run_id = &self.config.run_id;
        if let Some(peer) = self.roster.get_mut(stream) {
            // What belongs to another run is no state of this one.
            peer.state = if peer.hello.run_id.as_ref() == Some(run_id) { ready.state } else { None };
            peer.ready = Some(ready);
            peer.standing = Standing::Idle;
        }
    }

    /// The first worker's data, instruction set and canary become the run's.
    fn settle(&mut self, worker: WorkerId, ready: &Ready) {
        let isa = self.isa.clone().unwrap_or_default();
        let settled = Settled { data: ready.data.clone(), isa, canary: ready.canary.clone() };
        let (data, isa, canary) = (settled.data.clone(), settled.isa.clone(), settled.canary.clone());
        self.course = Some(Course::new(&self.config.recipe, settled.data.num_train));
        self.settled = Some(settled);
        self.persist(Record::Settled { worker, data, isa, canary });
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
        let goes_on =
            self.world.as_ref().is_some_and(|world| !world.has(stream)) || matches!(self.phase, Phase::Finishing(_));
        if is_fatal(left.code) && !goes_on {
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

    /// Cuts a worker off that may only be slow to hear of it: it may come back, and is healed then.
    pub(super) fn evict(&mut self, stream: StreamId, reason: &str) {
        self.outbox.push(Effect::Hangup { stream });
        self.lose(stream, reason);
    }

    /// A worker was asked to go. Where the run continues without it, it may go after the step in hand; where it does not,
    /// what it holds is saved first.
    pub(super) fn on_leaving(&mut self, stream: StreamId, leaving: &Leaving) {
        let Some(peer) = self.roster.get_mut(stream) else { return };
        peer.is_leaving = true;
        let (worker, has_part) = (peer.worker().clone(), peer.standing != Standing::Loading);
        let stays = |peer: &Peer| !peer.is_leaving && peer.ready.is_some();
        let num_staying = self.roster.iter().filter(|(_, peer)| stays(peer)).count();
        let is_spare = num_staying >= self.config.recipe.elastic.min_workers as usize;
        self.note("leaving", Some(worker.clone()), json!({ "reason": leaving.reason, "staying": num_staying }));
        if is_spare || !has_part || matches!(self.phase, Phase::Finishing(_)) {
            return self.outbox.send(stream, ToWorker::Drain(Drain { reason: leaving.reason.clone() }));
        }
        if self.stop.is_none() {
            let reason = format!(
                "worker {worker} leaves ({}), and {num_staying} would be left of elastic.min_workers = {}; \
                 continue with --resume",
                leaving.reason, self.config.recipe.elastic.min_workers
            );
            self.begin_stop(Stop { code: ExitCode::TempFail, reason, is_asked: false });
        }
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
