//! A generation opens over everyone who is ready; `closing` ends it.
//!
//! `Opened` is durable before anyone hears of it, so a number that was ever spoken never comes again.

use std::collections::BTreeMap;
use std::time::Duration;

use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Generation, Lineage, Rank, StateId, Step};
use lockstep_proto::message::{Member, Open, Sha256, Source, Synced, ToWorker};
use lockstep_proto::split::num_chunks;
use serde_json::json;
use sha2::{Digest, Sha256 as Hasher};

use super::balance::{Change, Speeds, Splits};
use super::base::Base;
use super::config::HOLD;
use super::effect::Record;
use super::event::{Seq, StreamId};
use super::members::Standing;
use super::reports::Reports;
use super::{Engine, Phase, Stop};

/// The open generation.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct World {
    pub(super) generation: Generation,
    lineage: Lineage,
    pub(super) base: StateId,
    source: Source,
    pub(super) leader: Rank,
    pub(super) members: Vec<Member>,
    /// Stream of each rank.
    pub(super) owners: Vec<StreamId>,
    /// Its record.
    opened: Seq,
    /// When `Open` went out.
    pub(super) sent: Option<Duration>,
    synced: BTreeMap<StreamId, Sha256>,
    /// Last planned step.
    pub(super) planned: Step,
    /// What is due at the base was planned.
    pub(super) is_started: bool,
    /// The last save before a clean end was planned.
    pub(super) is_stopping: bool,
    /// Of each rank.
    pub(super) progress: Vec<Progress>,
    /// A step of this generation was committed.
    pub(super) has_committed: bool,
    /// Another split of the batches, once that is durable.
    pub(super) resplit: Option<(Seq, Change)>,
    /// How fast its ranks are.
    pub(super) speeds: Speeds,
    /// Checkpoints asked for, with the time since which they could be there.
    pub(super) saves: BTreeMap<Step, Duration>,
}

/// How far a rank is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Progress {
    /// Last step it reported, or the base.
    pub(super) step: Step,
    /// When it last got on with anything, or was given work after none.
    pub(super) since: Duration,
    /// What it last counted.
    pub(super) beats: u64,
    /// It last said that it waits for others, or for its disk.
    pub(super) is_waiting: bool,
}

impl Progress {
    fn new(step: Step, since: Duration) -> Self {
        Self { step, since, beats: 0, is_waiting: false }
    }
}

impl World {
    pub(super) fn has(&self, stream: StreamId) -> bool {
        self.owners.contains(&stream)
    }

    /// Streams of its workers, each once.
    pub(super) fn streams(&self) -> Vec<StreamId> {
        let mut streams = self.owners.clone();
        streams.dedup(); // replicas of a worker are contiguous
        streams
    }

    pub(super) fn owner(&self, rank: Rank) -> Option<StreamId> {
        self.owners.get(rank.0 as usize).copied()
    }

    /// Whether its leader loads this checkpoint.
    pub(super) fn starts_from(&self, checkpoint: &str) -> bool {
        matches!(&self.source, Source::Checkpoint { dir } if dir == checkpoint)
    }

    pub(super) fn world_size(&self) -> u32 {
        self.members.len() as u32
    }
}

impl Engine {
    pub(super) fn gather(&mut self) {
        self.phase = Phase::Gathering { until: self.now.saturating_add(self.config.join_timeout()), hold: None };
    }

    pub(super) fn open_if_ready(&mut self) {
        let Phase::Gathering { until, hold } = self.phase else { return };
        // A stop opens a generation only to save what would be lost, with whoever is there.
        let lack = self.not_enough();
        let is_wanted = if self.stop.is_some() { self.would_lose_steps() } else { lack.is_none() };
        let is_expecting = (is_wanted || self.stop.is_some()) && self.expects_news();
        let hold = is_expecting.then(|| hold.unwrap_or(self.now.saturating_add(HOLD)));
        self.phase = Phase::Gathering { until, hold };
        match (&self.stop, hold) {
            (_, Some(hold)) if self.now < hold => {}
            _ if is_wanted => self.open(),
            (Some(Stop { code, reason, .. }), _) => self.end(*code, reason.clone()),
            (None, _) => self.say_what_is_waited_for(lack),
        }
    }

    /// What keeps a generation from opening, for a person.
    pub(super) fn not_enough(&self) -> Option<String> {
        self.lack_of(&self.available())
    }

    /// What these workers are too few for.
    pub(super) fn lack_of(&self, streams: &[StreamId]) -> Option<String> {
        let (have, need) = (streams.len(), self.config.recipe.elastic.min_workers);
        if have < need as usize {
            return Some(format!("{have} of elastic.min_workers = {need} workers are there"));
        }
        let ranks: u64 =
            streams.iter().filter_map(|stream| self.roster.get(*stream)).map(|peer| peer.num_replicas()).sum();
        let train = &self.config.recipe.train;
        let room = ranks * u64::from(self.config.most_chunks());
        (room < u64::from(num_chunks(train.batch, train.chunk))).then(|| {
            let most = self.config.recipe.elastic.max_shard;
            format!(
                "{ranks} replicas of at most elastic.max_shard = {most} samples cannot hold train.batch = {}",
                train.batch
            )
        })
    }

    /// After a loss, whoever watches is told why nothing happens; once, until it changes.
    fn say_what_is_waited_for(&mut self, lack: Option<String>) {
        if self.last_trouble.is_some() && lack != self.waiting_for {
            if let Some(lack) = &lack {
                let seconds = self.config.join_timeout().as_secs_f64();
                self.note("waiting", None, json!({ "because": lack, "at_most_s": seconds }));
            }
            self.waiting_for = lack;
        }
    }

    fn open(&mut self) {
        let streams = self.available();
        let num_ranks: u64 =
            streams.iter().filter_map(|stream| self.roster.get(*stream)).map(|peer| peer.num_replicas()).sum();
        let batch = self.config.recipe.train.batch;
        if num_ranks > batch {
            let reason = format!(
                "{num_ranks} replicas are more than train.batch = {batch} has samples; start fewer or raise it"
            );
            return self.end(ExitCode::Usage, reason);
        }
        self.waiting_for = None;
        let base = self.choose_base();
        if !self.take_over(base.as_ref()) {
            return;
        }
        let Some(Base { state: base, holder, source }) = base else { return };
        self.shelf.forget_unfounded(&self.ledger);
        let (mut members, mut owners) = (Vec::new(), Vec::new());
        for stream in streams {
            let Some(peer) = self.roster.get_mut(stream) else { continue };
            peer.step = base.step;
            let addresses = peer.ready.iter().flat_map(|ready| &ready.addresses);
            for (replica, address) in (0..).zip(addresses) {
                let rank = Rank(members.len() as u32);
                members.push(Member { rank, worker: peer.worker().clone(), replica, address: address.clone() });
                owners.push(stream);
            }
        }
        let leader = holder.and_then(|holder| owners.iter().position(|owner| *owner == holder)).unwrap_or(0);
        let generation = self.ledger.open();
        let lineage = self.ledger.lineage();
        let opened = self.persist(Record::Opened { generation, lineage, base, members: members.clone() });
        self.reports = Reports::new(generation, Splits::even(members.len() as u32, self.config.most_chunks()));
        if let Some(first) = members.first() {
            self.savers.insert(generation, first.worker.clone());
        }
        self.world = Some(World {
            generation,
            lineage,
            base,
            source,
            leader: Rank(leader as u32),
            progress: vec![Progress::new(base.step, self.now); members.len()],
            speeds: Speeds::new(members.len()),
            resplit: None,
            members,
            owners,
            opened,
            sent: None,
            synced: BTreeMap::new(),
            planned: base.step,
            is_started: false,
            is_stopping: false,
            has_committed: false,
            saves: BTreeMap::new(),
        });
        self.phase = Phase::Opening;
    }

    pub(super) fn send_open_if_recorded(&mut self) {
        let (Phase::Opening, Some(world)) = (self.phase, &mut self.world) else { return };
        if world.sent.is_some() || !self.outbox.is_persisted(world.opened) {
            return;
        }
        world.sent = Some(self.now);
        let open = Open {
            generation: world.generation,
            lineage: world.lineage,
            base: world.base,
            members: world.members.clone(),
            leader: world.leader,
            source: world.source.clone(),
            rendezvous: rendezvous(&self.config.run_id, &self.config.run_nonce, world.generation),
        };
        for stream in world.streams() {
            if let Some(peer) = self.roster.get_mut(stream) {
                peer.standing = Standing::Busy;
            }
            self.outbox.send(stream, ToWorker::Open(open.clone()));
        }
    }

    pub(super) fn on_synced(&mut self, stream: StreamId, synced: Synced) {
        let (Phase::Opening, Some(world)) = (self.phase, &mut self.world) else { return };
        if synced.generation == world.generation && world.sent.is_some() && world.has(stream) {
            world.synced.insert(stream, synced.state_sha256);
        }
    }

    pub(super) fn train_if_synced(&mut self) {
        let (Phase::Opening, Some(world)) = (self.phase, &mut self.world) else { return };
        let streams = world.streams();
        if world.sent.is_none() || world.synced.len() < streams.len() {
            return;
        }
        // invariant: nobody can have synced but the owners of ranks.
        let hash = |rank: &Member| world.owners.get(rank.rank.0 as usize).and_then(|owner| world.synced.get(owner));
        let leaders = world.members.get(world.leader.0 as usize).and_then(hash);
        let others: Vec<String> = world
            .members
            .iter()
            .filter(|member| hash(member) != leaders)
            .map(|member| member.rank.to_string())
            .collect();
        if !others.is_empty() {
            let reason = format!(
                "after synchronising {} the state of rank {} differs from that of rank {}; check the memory of those \
                 machines, then --resume",
                world.base,
                others.join(", "),
                world.leader
            );
            return self.end(ExitCode::Software, reason);
        }
        if let Some(hash) = leaders {
            self.shelf.state_is(world.base.step, hash.clone());
        }
        for progress in &mut world.progress {
            progress.since = self.now;
        }
        let base = world.base.step;
        self.phase = Phase::Training;
        if let Some(closed) = self.closed.take().filter(|closed| closed.is_failure) {
            let seconds = self.now.saturating_sub(closed.at).as_secs_f64();
            self.note("recovered", None, json!({ "from": closed.reason, "base": base, "seconds": seconds }));
        }
    }

    /// Whoever became ready meanwhile comes in at once: at most the step in flight is done again.
    pub(super) fn admit_newcomers(&mut self) {
        let (Phase::Training, Some(world), None) = (self.phase, &self.world, &self.stop) else { return };
        let committed = self.ledger.committed();
        if world.saves.keys().any(|step| *step <= committed) {
            return; // first the checkpoint in hand, so that no two processes write it
        }
        let newcomers = self.available();
        let is_worth_it = self.total_steps().is_some_and(|total| committed.0 < total);
        if let (Some(stream), true) = (newcomers.first(), is_worth_it)
            && let Some(peer) = self.roster.get(*stream)
        {
            self.close(&format!("worker {} joins", peer.worker()), false);
        }
    }
}

/// The secret of a generation: whoever knows the run's nonce can tell it, and nobody else.
fn rendezvous(run_id: &str, run_nonce: &str, generation: Generation) -> String {
    let digest = Hasher::digest(format!("lockstep rendezvous\0{run_id}\0{run_nonce}\0{generation}"));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
