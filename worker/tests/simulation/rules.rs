//! What the records of a run may say, held against what replicas did. Fed with every transaction as it becomes
//! durable, so that a broken rule is found at the step at which it breaks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use lockstep_coordinator::engine::{CommittedStep, Record};
use lockstep_proto::ids::{Generation, Lineage, SampleRange, StateId, Step, WorkerId};
use lockstep_proto::manifest::Manifest;
use lockstep_proto::message::Member;

use crate::course::{Course, left_out, loss, sha256};
use crate::states::States;

type Checked = Result<(), String>;

macro_rules! rule {
    ($holds:expr, $($what:tt)+) => {
        if !$holds {
            return Err(format!($($what)+));
        }
    };
}

/// The tables, as they must be.
#[derive(Debug)]
pub struct Rules {
    course: Course,
    run_dir: PathBuf,
    /// Generation of each committed step.
    steps: BTreeMap<Step, Generation>,
    checkpoints: BTreeMap<Step, StateId>,
    generations: BTreeSet<Generation>,
    members: Vec<Member>,
    lineage: Lineage,
    /// A step that not every rank had applied when it was committed: right only just before another generation opens.
    unanimous_or_last: Option<Step>,
    pub finished: bool,
    pub num_rollbacks: u32,
    pub worlds: BTreeSet<u32>,
}

impl Rules {
    pub fn new(course: Course, run_dir: &Path) -> Self {
        Self {
            course,
            run_dir: run_dir.to_owned(),
            steps: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
            generations: BTreeSet::new(),
            members: Vec::new(),
            lineage: Lineage(0),
            unanimous_or_last: None,
            finished: false,
            num_rollbacks: 0,
            worlds: BTreeSet::new(),
        }
    }

    pub fn committed(&self) -> Step {
        self.steps.keys().next_back().copied().unwrap_or_default()
    }

    pub fn generation(&self) -> Generation {
        self.generations.last().copied().unwrap_or_default()
    }

    pub fn num_generations(&self) -> usize {
        self.generations.len()
    }

    /// Whether a worker has ranks in the newest generation.
    pub fn has_member(&self, worker: &WorkerId) -> bool {
        self.members.iter().any(|member| member.worker == *worker)
    }

    /// Another coordinator takes over from what is durable.
    pub fn restarted(&mut self) -> Checked {
        self.unanimous_or_last = None;
        self.checkpoint_loads()
    }

    fn loads(&self, id: &StateId) -> bool {
        let dir = self.run_dir.join(format!("checkpoints/step-{}", id.step));
        Manifest::verify(&dir).is_ok_and(|manifest| manifest.state() == *id)
    }

    /// A group of records is durable. Of the checkpoints in it, one that retention has no use for may be gone already, with
    /// a newer one in the same group; the newest must load.
    pub fn group_ends(&self) -> Checked {
        if let Some(newest) = self.checkpoints.values().next_back() {
            rule!(self.loads(newest), "the checkpoint of {newest} is the newest that counts, and does not load");
        }
        Ok(())
    }

    fn checkpoint_loads(&self) -> Checked {
        rule!(
            self.committed() == Step(0) || self.checkpoints.values().any(|id| self.loads(id)),
            "there is no loadable checkpoint after step {}: {:?}",
            self.committed(),
            self.checkpoints
        );
        Ok(())
    }

    fn generation_of(&self, step: Step) -> Generation {
        self.steps.get(&step).copied().unwrap_or_default()
    }

    /// One more record is durable.
    pub fn apply(&mut self, record: &Record, states: &States) -> Checked {
        if let Some(step) = self.unanimous_or_last {
            let goes_on = matches!(
                record,
                Record::Committed(_)
                    | Record::Evaluated { .. }
                    | Record::EpochEnded { .. }
                    | Record::Opened { .. }
                    | Record::Left { .. }
            );
            rule!(goes_on, "step {step} was committed before every rank had applied it; then {record:?}");
        }
        match record {
            Record::Opened { generation, lineage, base, members } => {
                self.opened((*generation, *lineage), *base, members, states)
            }
            Record::Committed(row) => self.row(row, states),
            Record::Evaluated { step, loss: found, .. } => {
                rule!(*step == self.committed(), "step {step} was evaluated after step {}", self.committed());
                let expected = loss(self.course.parameters(*step));
                rule!(*found == expected, "the evaluation of step {step} gave {found}, not {expected}");
                Ok(())
            }
            Record::CheckpointSaved { state, .. } => {
                let known = self.generation_of(state.step);
                rule!(
                    state.step <= self.committed() && known == state.generation,
                    "a checkpoint of {state} counts, but the run's step {} is of generation {known}",
                    state.step
                );
                self.checkpoints.insert(state.step, *state);
                Ok(())
            }
            Record::CheckpointDeleted { dir } => {
                self.checkpoints.retain(|step, _| *dir != format!("step-{step}"));
                self.checkpoint_loads()
            }
            Record::RolledBack { from, to, lineage } => {
                rule!(*from == self.committed() && to < from, "rolled back from {from} to {to}");
                rule!(*lineage > self.lineage, "rolled back into lineage {lineage}, after {}", self.lineage);
                self.steps.retain(|step, _| step <= to);
                self.checkpoints.retain(|step, _| step <= to);
                self.lineage = *lineage;
                self.num_rollbacks += 1;
                self.checkpoint_loads()
            }
            Record::Finished { step, state_sha256 } => {
                let (last, committed) = (Step(self.course.num_steps()), self.committed());
                rule!(*step == last && committed == last, "finished at step {step}, {committed} of {last} committed");
                let expected = sha256(self.course.parameters(last));
                rule!(*state_sha256 == expected, "the final state hashes to {state_sha256}, not {expected}");
                self.finished = true;
                Ok(())
            }
            Record::Settled { .. }
            | Record::Joined { .. }
            | Record::Left { .. }
            | Record::EpochEnded { .. }
            | Record::Split { .. }
            | Record::Note { .. } => Ok(()),
        }
    }

    fn opened(
        &mut self,
        (generation, lineage): (Generation, Lineage),
        base: StateId,
        members: &[Member],
        states: &States,
    ) -> Checked {
        rule!(
            self.generations.last().is_none_or(|last| *last < generation),
            "generation {generation} was there before"
        );
        rule!(base.step == self.committed(), "generation {generation} starts from {base}, the history ends elsewhere");
        let known = self.generation_of(base.step);
        rule!(
            base.generation == known,
            "generation {generation} starts from {base}, but step {} of the run is of generation {known}",
            base.step
        );
        rule!(
            base.step == Step(0) || states.of(base.generation, base.step).is_some_and(|(id, _)| id == base),
            "generation {generation} starts from {base}, which nobody ever computed"
        );
        self.generations.insert(generation);
        self.worlds.insert(members.len() as u32);
        self.members = members.to_vec();
        self.lineage = lineage;
        self.unanimous_or_last = None;
        Ok(())
    }

    fn row(&mut self, row: &CommittedStep, states: &States) -> Checked {
        let step = row.step;
        rule!(step == self.committed().next(), "step {step} was committed after step {}", self.committed());
        let open = self.generation();
        rule!(
            row.generation == open,
            "step {step} of generation {} was committed in generation {open}",
            row.generation
        );
        rule!(!self.checkpoints.is_empty(), "step {step} was committed before there was a checkpoint");
        let Some((id, known)) = states.of(row.generation, step) else {
            return Err(format!("step {step} of generation {open} was committed, but nobody had applied it"));
        };
        let before = Step(step.0 - 1);
        let from = known.parent.unwrap_or_default();
        rule!(
            from.step == before && from.generation == self.generation_of(before),
            "{id} was committed, but it was computed from {from}, and the run's step {before} is of generation {}",
            self.generation_of(before)
        );
        let (epoch, batch) = self.course.at(step);
        let skipped: Vec<u64> = row.skipped.iter().map(|skipped| skipped.position).collect();
        rule!(skipped == left_out(epoch, batch), "step {step} of epoch {epoch} left out {skipped:?}");
        rule!(
            row.epoch == epoch && row.samples + skipped.len() as u64 == batch.len,
            "step {step}: epoch {} with {} samples instead of epoch {epoch} with {}",
            row.epoch,
            row.samples,
            batch.len
        );
        let expected = loss(self.course.parameters(before));
        rule!(row.loss == expected, "step {step} has loss {}, not {expected}", row.loss);
        rule!(tiles(&row.shards, batch), "step {step}: shards {:?} do not tile {batch}", row.shards);
        rule!(row.shards.len() == self.members.len(), "step {step}: {} shards", row.shards.len());
        let has_applied = |member: &Member| known.appliers.contains(&(member.worker.clone(), member.replica));
        if !self.members.iter().all(has_applied) {
            self.unanimous_or_last = Some(step);
        }
        self.steps.insert(step, row.generation);
        Ok(())
    }
}

/// Whether shards, in order, are the batch: nothing twice, nothing left out.
pub fn tiles(shards: &[SampleRange], batch: SampleRange) -> bool {
    let end = shards
        .iter()
        .filter(|shard| !shard.is_empty())
        .try_fold(batch.start, |at, shard| (shard.start == at).then_some(shard.end()));
    end == Some(batch.end())
}
