//! When a checkpoint counts, and which are kept: the last few, the best, and never less than one.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{StateId, Step};
use lockstep_proto::message::{CheckpointBad, CheckpointSaved, Sha256};
use serde_json::json;

use super::effect::{Effect, History, Record, StoredCheckpoint};
use super::event::{Seq, StreamId};
use super::ledger::Ledger;
use super::outbox::Outbox;
use super::{Engine, Phase};

/// Checkpoints of the run.
#[derive(Debug)]
pub(super) struct Shelf {
    /// Ascending by step, with the record of each (0: of a former life).
    stored: Vec<(StoredCheckpoint, Seq)>,
    /// No longer kept. A writer whose acknowledgement was lost may speak of them again.
    retired: BTreeSet<StateId>,
    /// Written, but their states are not in the history yet.
    pending: Vec<(CheckpointSaved, StreamId)>,
    /// Test error after each evaluated step, as far as known.
    errors: BTreeMap<Step, f64>,
    /// The best checkpoint.
    best: Option<(Step, f64)>,
    /// Hash of the newest state that is known by hash.
    newest_state: Option<(Step, Sha256)>,
}

impl Shelf {
    pub(super) fn new(history: &History, ledger: &Ledger) -> Self {
        let known = history.checkpoints.iter().filter(|checkpoint| ledger.holds(checkpoint.state));
        let mut stored: Vec<_> = known.map(|checkpoint| (checkpoint.clone(), Seq(0))).collect();
        stored.sort_by_key(|(checkpoint, _)| checkpoint.state.step);
        Self {
            stored,
            retired: BTreeSet::new(),
            pending: Vec::new(),
            errors: history.best.into_iter().collect(),
            best: history.best,
            newest_state: None,
        }
    }

    pub(super) fn newest(&self) -> Option<&StoredCheckpoint> {
        self.stored.last().map(|(checkpoint, _)| checkpoint)
    }

    pub(super) fn has(&self, step: Step) -> bool {
        self.stored.iter().any(|(checkpoint, _)| checkpoint.state.step == step)
    }

    /// Whether losing everyone now would lose no more than steps.
    pub(super) fn has_durable(&self, outbox: &Outbox) -> bool {
        self.stored.iter().any(|(_, seq)| outbox.is_persisted(*seq))
    }

    pub(super) fn is_settled(&self) -> bool {
        self.pending.is_empty()
    }

    pub(super) fn evaluated(&mut self, step: Step, error: f64) {
        self.errors.insert(step, error);
    }

    /// The state after `step` hashes to this.
    pub(super) fn state_is(&mut self, step: Step, hash: Sha256) {
        self.newest_state = Some((step, hash));
    }

    pub(super) fn state_sha256(&self, step: Step) -> Option<&Sha256> {
        self.newest_state.as_ref().filter(|(of, _)| *of == step).map(|(_, hash)| hash)
    }

    /// Steps after `to` never happened.
    pub(super) fn roll_back(&mut self, to: Step) {
        self.stored.retain(|(checkpoint, _)| checkpoint.state.step <= to);
        self.errors.retain(|step, _| *step <= to);
        self.newest_state = None;
        let saved = |step: &Step| self.stored.iter().any(|(checkpoint, _)| checkpoint.state.step == *step);
        let errors = self.errors.iter().filter(|(step, _)| saved(step)).map(|(step, error)| (*step, *error));
        self.best = errors.min_by(|(_, a), (_, b)| a.total_cmp(b));
    }

    /// Written by a generation that is over, of states that the history will never hold.
    pub(super) fn forget_unfounded(&mut self, ledger: &Ledger) {
        self.pending.retain(|(saved, _)| ledger.holds(saved.state));
    }

    /// Whether its evaluation is the best of all checkpoints; remembers it if so.
    fn is_best(&mut self, step: Step) -> bool {
        let Some(error) = self.errors.get(&step).copied() else { return false };
        let is_best = self.best.is_none_or(|(of, best)| of == step || error < best);
        if is_best {
            self.best = Some((step, error));
        }
        is_best
    }

    fn put(&mut self, checkpoint: StoredCheckpoint, seq: Seq) {
        if checkpoint.best {
            self.stored.iter_mut().for_each(|(other, _)| other.best = false);
        }
        self.stored.retain(|(other, _)| other.state.step != checkpoint.state.step);
        self.stored.push((checkpoint, seq));
        self.stored.sort_by_key(|(checkpoint, _)| checkpoint.state.step);
    }

    /// Takes out what need not be kept any longer; only durable ones are counted.
    fn retire(&mut self, keep: usize, outbox: &Outbox) -> Vec<StoredCheckpoint> {
        if keep == 0 {
            return Vec::new();
        }
        let durable: Vec<Step> = self
            .stored
            .iter()
            .filter(|(_, seq)| outbox.is_persisted(*seq))
            .map(|(checkpoint, _)| checkpoint.state.step)
            .collect();
        let Some(oldest_kept) = durable.len().checked_sub(keep).and_then(|index| durable.get(index)).copied() else {
            return Vec::new();
        };
        let is_kept = |checkpoint: &StoredCheckpoint| checkpoint.best || checkpoint.state.step >= oldest_kept;
        let (kept, retired) =
            std::mem::take(&mut self.stored).into_iter().partition(|(checkpoint, _)| is_kept(checkpoint));
        self.stored = kept;
        let retired: Vec<(StoredCheckpoint, Seq)> = retired;
        self.retired.extend(retired.iter().map(|(checkpoint, _)| checkpoint.state));
        retired.into_iter().map(|(checkpoint, _)| checkpoint).collect()
    }
}

impl Engine {
    /// Rank 0's process of some generation of this life finished writing. Asynchronous: the generation may be over.
    pub(super) fn on_saved(&mut self, stream: StreamId, saved: CheckpointSaved) {
        let Some(peer) = self.roster.get(stream) else { return };
        if self.savers.get(&saved.generation) != Some(peer.worker()) {
            return; // fenced: of no generation of ours, or not its rank 0
        }
        if saved.dir != format!("step-{}", saved.state.step) {
            let reason = format!("saved {} as {:?} instead of step-{}", saved.state, saved.dir, saved.state.step);
            return self.expel(stream, ExitCode::Protocol, &reason);
        }
        self.shelf.pending.push((saved, stream));
    }

    /// Rule (e): a checkpoint counts once its state is in the history; its evaluation comes first.
    pub(super) fn file_checkpoints(&mut self) {
        let Some(course) = &self.course else { return };
        let committed = self.ledger.committed();
        let is_stopping = self.stop.is_some(); // then it is evaluated on resume
        let waits = |saved: &CheckpointSaved| {
            saved.state.step > committed
                || !is_stopping
                    && self.ledger.evaluation_due(course, saved.state.step).is_some()
                    && saved.state.step == committed
        };
        if !matches!(self.phase, Phase::Training) {
            return;
        }
        let (later, now): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.shelf.pending).into_iter().partition(|(saved, _)| waits(saved));
        self.shelf.pending = later;
        for (saved, stream) in now {
            self.file(saved, stream);
        }
    }

    fn file(&mut self, saved: CheckpointSaved, stream: StreamId) {
        let CheckpointSaved { generation, state, epoch, dir, bytes, state_sha256 } = saved;
        if !self.ledger.holds(state) {
            let known = self.ledger.generation_of(state.step);
            let detail = json!({ "dir": dir, "state": state, "generation_of_step": known });
            self.note("checkpoint_discarded", None, detail);
            if self.world.as_ref().is_some_and(|world| world.generation == generation) {
                let reason = format!("saved {state}, which this run never went through");
                self.expel(stream, ExitCode::Protocol, &reason);
            }
            return;
        }
        if let Some(world) = &mut self.world {
            world.saves.remove(&state.step);
        }
        if state.step == self.ledger.committed() {
            self.shelf.state_is(state.step, state_sha256);
        }
        if self.shelf.has(state.step) || self.shelf.retired.contains(&state) {
            return; // two generations saved it, or it was said twice: the same state
        }
        let best = self.shelf.is_best(state.step);
        let record = Record::CheckpointSaved { state, epoch, dir: dir.clone(), bytes, best };
        let seq = self.persist(record);
        self.shelf.put(StoredCheckpoint { state, epoch, dir, best }, seq);
    }

    /// A leader could not start from it: the one before is taken. Nothing is deleted, for it may be that worker's disk.
    pub(super) fn on_checkpoint_bad(&mut self, stream: StreamId, bad: CheckpointBad) {
        let (Phase::Opening, Some(world)) = (self.phase, &self.world) else { return };
        if bad.generation != world.generation
            || !world.starts_from(&bad.dir)
            || world.owner(world.leader) != Some(stream)
        {
            return; // fenced
        }
        let worker = self.roster.get(stream).map(|peer| peer.worker().clone());
        self.shelf.stored.retain(|(checkpoint, _)| checkpoint.dir != bad.dir);
        self.note("checkpoint_bad", worker, json!({ "dir": bad.dir, "reason": bad.reason }));
        self.close(&format!("checkpoint {} does not load: {}", bad.dir, bad.reason), true);
    }

    pub(super) fn retire_checkpoints(&mut self) {
        let keep = self.config.recipe.checkpoint.keep as usize;
        for StoredCheckpoint { state: StateId { .. }, dir, .. } in self.shelf.retire(keep, &self.outbox) {
            self.outbox.push(Effect::DeleteCheckpoint { dir: dir.clone() });
            self.persist(Record::CheckpointDeleted { dir });
        }
    }
}
