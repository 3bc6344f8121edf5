//! A store that keeps its records in memory, loses the tail that was not durable, and minds the rules while it reads.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_proto::ids::{Epoch, Generation, Lineage, StateId, Step};
use lockstep_proto::plan::Course;
use lockstep_proto::split::num_chunks;

use crate::engine::balance::Splits;
use crate::engine::{CommittedStep, History, Record, StoredCheckpoint};

/// That of [`super::script::recipe`].
const CHUNK: u32 = 2;

pub(super) fn stored(generation: u64, step: u64, epoch: u64) -> StoredCheckpoint {
    let state = StateId { lineage: Lineage(1), generation: Generation(generation), step: Step(step) };
    StoredCheckpoint { state, epoch: Epoch(epoch), dir: format!("step-{step}"), best: false }
}

/// What the tables would hold.
#[derive(Clone, Debug, Default)]
pub(super) struct Tables {
    pub(super) steps: BTreeMap<Step, CommittedStep>,
    pub(super) evaluated: BTreeMap<Epoch, (Step, f64)>,
    pub(super) epochs: BTreeMap<Epoch, Step>,
    pub(super) checkpoints: BTreeMap<Step, StoredCheckpoint>,
    pub(super) generation: Generation,
    pub(super) world_size: u32,
    pub(super) splits: Vec<(Step, Vec<u64>)>,
    pub(super) lineage: Lineage,
    pub(super) settled: Option<(lockstep_proto::message::DataIdentity, String, Option<String>)>,
    pub(super) finished: Option<(Step, String)>,
    pub(super) num_rollbacks: u32,
    seen: BTreeSet<Generation>,
}

impl Tables {
    pub(super) fn committed(&self) -> Step {
        self.steps.keys().next_back().copied().unwrap_or_default()
    }

    fn generation_of(&self, step: Step) -> Generation {
        self.steps.get(&step).map(|row| row.generation).unwrap_or_default()
    }

    /// One more record; panics where it breaks a rule.
    pub(super) fn apply(&mut self, record: &Record, course: &Course) {
        match record {
            Record::Settled { data, isa, canary, .. } => {
                assert!(self.settled.is_none(), "settled once");
                self.settled = Some((data.clone(), isa.clone(), canary.clone()));
            }
            Record::Opened { generation, lineage, base, members } => {
                assert!(
                    *generation > self.generation && self.seen.insert(*generation),
                    "generations rise and never repeat"
                );
                assert_eq!(base.step, self.committed(), "a generation starts where the history ends");
                assert_eq!(base.generation, self.generation_of(base.step), "and from a state that is in it");
                self.generation = *generation;
                self.world_size = members.len() as u32;
                self.splits.clear();
                self.lineage = *lineage;
            }
            Record::Committed(row) => {
                assert_eq!(row.step, self.committed().next(), "steps follow one another");
                assert_eq!(row.generation, self.generation, "nothing of an older generation is committed");
                let at = course.at(row.step);
                let mut position = at.batch.start;
                for shard in row.shards.iter().filter(|shard| !shard.is_empty()) {
                    assert_eq!(shard.start, position, "shards tile the batch");
                    position = shard.end();
                }
                assert_eq!(position, at.batch.end());
                assert_eq!(row.shards.len(), self.world_size as usize);
                let splits = Splits::of(&self.history(|_| true), u32::MAX);
                let counts = splits.shards(num_chunks(at.batch.len, CHUNK), row.step);
                let has: Vec<u64> = row.shards.iter().map(|shard| shard.len.div_ceil(u64::from(CHUNK))).collect();
                assert_eq!(has, counts.into_iter().map(u64::from).collect::<Vec<_>>(), "as was durable before");
                if row.step.0 > 1 && course.at(Step(row.step.0 - 1)).ends_epoch {
                    let before = course.epoch_of(Step(row.step.0 - 1));
                    assert!(self.epochs.contains_key(&before), "an epoch's row comes before the next epoch's steps");
                }
                assert!(!self.checkpoints.is_empty(), "there is a checkpoint before there is a step");
                self.steps.insert(row.step, (**row).clone());
            }
            Record::Evaluated { epoch, step, error, .. } => {
                assert_eq!(*step, self.committed());
                self.evaluated.insert(*epoch, (*step, *error));
            }
            Record::EpochEnded { epoch, step } => {
                assert_eq!(*step, self.committed());
                self.epochs.insert(*epoch, *step);
            }
            Record::CheckpointSaved { state, epoch, dir, best, .. } => {
                assert_eq!(state.generation, self.generation_of(state.step), "its state is in the history");
                assert!(state.step <= self.committed());
                let row = StoredCheckpoint { state: *state, epoch: *epoch, dir: dir.clone(), best: *best };
                self.checkpoints.insert(state.step, row);
            }
            Record::CheckpointDeleted { dir } => {
                self.checkpoints.retain(|_, checkpoint| checkpoint.dir != *dir);
                assert!(!self.checkpoints.is_empty(), "the last checkpoint stays");
            }
            Record::RolledBack { from, to, lineage } => {
                assert_eq!(*from, self.committed());
                assert!(to < from && *lineage > self.lineage);
                self.steps.retain(|step, _| step <= to);
                self.evaluated.retain(|_, (step, _)| *step <= *to);
                self.epochs.retain(|_, step| *step <= *to);
                self.lineage = *lineage;
                self.num_rollbacks += 1;
            }
            Record::Split { generation, from, costs } => {
                assert_eq!((*generation, costs.len()), (self.generation, self.world_size as usize));
                assert!(*from > self.committed(), "a split is durable before its first step");
                self.splits.push((*from, costs.clone()));
            }
            Record::Finished { step, state_sha256 } => self.finished = Some((*step, state_sha256.clone())),
            Record::Joined { .. } | Record::Left { .. } | Record::Note { .. } => {}
        }
    }

    pub(super) fn history(&self, on_disk: impl Fn(&StoredCheckpoint) -> bool) -> History {
        let mut spans: Vec<(Step, Generation)> = Vec::new();
        for (step, row) in &self.steps {
            if spans.last().map(|(_, last)| *last) != Some(row.generation) {
                spans.push((*step, row.generation));
            }
        }
        History {
            settled: self.settled.clone(),
            generation: self.generation,
            world_size: self.world_size,
            splits: self.splits.clone(),
            lineage: self.lineage,
            committed: self.committed(),
            spans,
            errors: self.steps.values().map(|row| (row.wrong, row.samples)).collect(),
            evaluated: self.evaluated.keys().copied().collect(),
            best: self.evaluated.values().copied().min_by(|(_, a), (_, b)| a.total_cmp(b)),
            checkpoints: self.checkpoints.values().filter(|checkpoint| on_disk(checkpoint)).cloned().collect(),
            finished: self.finished.is_some(),
        }
    }
}
