//! What a worker must be in order to be admitted. Every refusal says what to do about it.

use lockstep_proto::exit::ExitCode;
use lockstep_proto::isa;
use lockstep_proto::message::{DataIdentity, Hello, PROTOCOL_VERSION, Ready};
use lockstep_proto::recipe::{DataKind, Recipe, Reduction};

use super::Engine;
use super::members::Peer;

/// Why a worker is not admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: ExitCode,
    pub(super) reason: String,
}

impl Refusal {
    fn new(code: ExitCode, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }
}

impl Engine {
    /// The run's instruction set, if the worker is welcome.
    pub(super) fn check_hello(&self, hello: &Hello) -> Result<String, Refusal> {
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

    pub(super) fn check_ready(&self, peer: &Peer, ready: &Ready) -> Result<(), Refusal> {
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
}

/// What the recipe says about its data, where that is known beforehand and not what the worker sees.
fn contradiction(recipe: &Recipe, seen: &DataIdentity) -> Option<String> {
    let data = &recipe.data;
    let (name, num_classes, lengths) = match data.kind {
        DataKind::Cifar10 => ("cifar10", 10, Some((50_000, 10_000))),
        DataKind::Cifar100 => ("cifar100", 100, Some((50_000, 10_000))),
        DataKind::Shapes => ("shapes", 10, None),
        DataKind::ImageFolder | DataKind::Webdataset => (data.kind.name(), seen.num_classes.max(1), None),
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
