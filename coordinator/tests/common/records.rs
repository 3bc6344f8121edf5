//! Records of a run of two ranks.

use std::path::Path;

use lockstep_coordinator::engine::{CommittedStep, Record};
use lockstep_proto::ids::{Epoch, Generation, Lineage, Rank, SampleRange, StateId, Step, WorkerId};
use lockstep_proto::manifest::{FORMAT, FileEntry, Manifest};
use lockstep_proto::message::{DataIdentity, Member, StepTimes};

/// 40 training samples, as the small recipe's.
pub fn data() -> DataIdentity {
    DataIdentity { name: "shapes".into(), num_train: 40, num_test: 10, num_classes: 10, fingerprint: "0f".repeat(32) }
}

pub fn settled() -> Record {
    Record::Settled { worker: WorkerId("a".into()), data: data(), isa: "avx2".into(), canary: Some("ca".repeat(32)) }
}

pub fn opened(generation: u64, base: u64) -> Record {
    let member = |rank: u32| Member {
        rank: Rank(rank),
        worker: WorkerId(format!("worker-{rank}")),
        replica: 0,
        address: format!("127.0.0.1:{rank}"),
    };
    let base = StateId { lineage: Lineage(1), generation: Generation(generation.saturating_sub(1)), step: Step(base) };
    Record::Opened {
        generation: Generation(generation),
        lineage: Lineage(1),
        base,
        members: vec![member(0), member(1)],
    }
}

/// Step `step` of generation `generation`, cut 8 + the rest; every figure can be recomputed from the step.
pub fn committed(step: u64, generation: u64) -> Record {
    let epoch = (step - 1) / 3 + 1;
    let start = (step - 1) % 3 * 16;
    let samples = (40 - start).min(16);
    let shard = |start, len| SampleRange { start, len };
    Record::Committed(Box::new(CommittedStep {
        step: Step(step),
        epoch: Epoch(epoch),
        generation: Generation(generation),
        lr: 0.1 / step as f64,
        loss: 1.0 / 3.0 / step as f64,
        wrong: step,
        samples,
        skipped: Vec::new(),
        digest: u64::MAX - step,
        ready: None,
        shards: vec![shard(start, 8), shard(start + 8, samples - 8)],
        times: StepTimes { data: 0.125, compute: 0.25, comm: 0.125, wall: 0.5 },
    }))
}

pub fn evaluated(epoch: u64, step: u64, error: f64) -> Record {
    Record::Evaluated {
        epoch: Epoch(epoch),
        step: Step(step),
        generation: Generation(1),
        world_size: 2,
        loss: error * 2.0,
        error,
        error_top5: error / 2.0,
        skipped: Vec::new(),
    }
}

pub fn epoch_ended(epoch: u64, step: u64) -> Record {
    Record::EpochEnded { epoch: Epoch(epoch), step: Step(step) }
}

pub fn saved(step: u64, generation: u64) -> Record {
    Record::CheckpointSaved {
        state: state(step, generation),
        epoch: Epoch(step.div_ceil(3)),
        dir: format!("step-{step}"),
        bytes: 5,
        best: false,
    }
}

pub fn state(step: u64, generation: u64) -> StateId {
    StateId { lineage: Lineage(1), generation: Generation(generation), step: Step(step) }
}

/// Writes a checkpoint that verifies.
pub fn write_checkpoint(dir: &Path, state: StateId) -> Manifest {
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("model.safetensors"), state.to_string()).unwrap();
    std::fs::write(dir.join("optimizer.safetensors"), vec![7; 3 << 20]).unwrap();
    let files = ["model.safetensors", "optimizer.safetensors"];
    let manifest = Manifest {
        format: FORMAT,
        lineage: state.lineage,
        generation: state.generation,
        step: state.step,
        epoch: Epoch(state.step.0.div_ceil(3)),
        next_position: 0,
        world_size: 2,
        recipe_sha256: "ab".repeat(32),
        state_sha256: hash(state),
        scheduled: Default::default(),
        files: files.into_iter().map(|name| FileEntry::of(&dir.join(name)).unwrap()).collect(),
    };
    manifest.write(dir).unwrap();
    manifest
}

/// Stands for the hash of a state.
pub fn hash(state: StateId) -> String {
    format!("{:064x}", state.step.0)
}
