//! Worker → coordinator.

use super::pb::{self, from_worker::Kind};
use super::{WireError, component, exit_code, need, optional_text, text};
use crate::ids::{Epoch, Generation, Lineage, Rank, StateId, Step, WorkerId};
use crate::message::{
    CheckpointBad, CheckpointSaved, Complaint, DataIdentity, EvalReport, FromWorker, GpuHealth, Halted, Hello, Leaving,
    Left, Progress, RankProgress, Ready, Skipped, StepReport, StepTimes, Synced,
};

impl From<FromWorker> for pb::FromWorker {
    fn from(message: FromWorker) -> Self {
        let kind = match message {
            FromWorker::Hello(m) => Kind::Hello(m.into()),
            FromWorker::Ready(m) => Kind::Ready(m.into()),
            FromWorker::Synced(m) => {
                Kind::Synced(pb::Synced { generation: m.generation.0, state_sha256: m.state_sha256 })
            }
            FromWorker::Reported(m) => Kind::Reported(m.into()),
            FromWorker::Evaluated(m) => Kind::Evaluated(m.into()),
            FromWorker::CheckpointSaved(m) => Kind::CheckpointSaved(m.into()),
            FromWorker::Complained(m) => Kind::Complained(pb::Complaint {
                generation: m.generation.0,
                rank: m.rank.0,
                step: m.step.0,
                culprit: m.culprit.map(|rank| rank.0),
                what: m.what,
            }),
            FromWorker::Halted(m) => {
                Kind::Halted(pb::Halted { generation: m.generation.0, state: m.state.map(Into::into) })
            }
            FromWorker::Progress(m) => Kind::Progress(m.into()),
            FromWorker::Leaving(m) => Kind::Leaving(pb::Leaving { reason: m.reason }),
            FromWorker::CheckpointBad(m) => {
                Kind::CheckpointBad(pb::CheckpointBad { generation: m.generation.0, dir: m.dir, reason: m.reason })
            }
            FromWorker::Left(m) => Kind::Left(pb::Left { code: m.code.code().into(), reason: m.reason }),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<pb::FromWorker> for FromWorker {
    type Error = WireError;

    fn try_from(message: pb::FromWorker) -> Result<Self, WireError> {
        Ok(match message.kind.ok_or(WireError::UnknownKind { message: "from_worker" })? {
            Kind::Hello(m) => Self::Hello(m.try_into()?),
            Kind::Ready(m) => Self::Ready(m.try_into()?),
            Kind::Synced(m) => Self::Synced(Synced {
                generation: Generation(m.generation),
                state_sha256: text(m.state_sha256, "synced.state_sha256")?,
            }),
            Kind::Reported(m) => Self::Reported(m.try_into()?),
            Kind::Evaluated(m) => Self::Evaluated(m.into()),
            Kind::CheckpointSaved(m) => Self::CheckpointSaved(m.try_into()?),
            Kind::Complained(m) => Self::Complained(Complaint {
                generation: Generation(m.generation),
                rank: Rank(m.rank),
                step: Step(m.step),
                culprit: m.culprit.map(Rank),
                what: m.what,
            }),
            Kind::Halted(m) => {
                Self::Halted(Halted { generation: Generation(m.generation), state: m.state.map(Into::into) })
            }
            Kind::Progress(m) => Self::Progress(m.into()),
            Kind::Leaving(m) => Self::Leaving(Leaving { reason: m.reason }),
            Kind::CheckpointBad(m) => Self::CheckpointBad(CheckpointBad {
                generation: Generation(m.generation),
                dir: component(m.dir, "checkpoint_bad.dir")?,
                reason: m.reason,
            }),
            Kind::Left(m) => Self::Left(Left { code: exit_code(m.code, "left.code")?, reason: m.reason }),
        })
    }
}

impl From<StateId> for pb::StateId {
    fn from(state: StateId) -> Self {
        Self { lineage: state.lineage.0, generation: state.generation.0, step: state.step.0 }
    }
}

impl From<pb::StateId> for StateId {
    fn from(state: pb::StateId) -> Self {
        Self { lineage: Lineage(state.lineage), generation: Generation(state.generation), step: Step(state.step) }
    }
}

impl From<Hello> for pb::Hello {
    fn from(m: Hello) -> Self {
        Self {
            protocol: m.protocol,
            build: m.build,
            worker: m.worker.0,
            host: m.host,
            pid: m.pid,
            devices: m.devices,
            isa: m.isa,
            run_id: m.run_id,
        }
    }
}

impl TryFrom<pb::Hello> for Hello {
    type Error = WireError;

    /// Keeps an unknown protocol number: only whoever holds the whole message can refuse it well.
    fn try_from(m: pb::Hello) -> Result<Self, WireError> {
        Ok(Self {
            protocol: m.protocol,
            build: m.build,
            worker: WorkerId(text(m.worker, "hello.worker")?),
            host: m.host,
            pid: m.pid,
            devices: m.devices,
            isa: m.isa,
            run_id: optional_text(m.run_id, "hello.run_id")?,
        })
    }
}

impl From<DataIdentity> for pb::DataIdentity {
    fn from(m: DataIdentity) -> Self {
        Self {
            name: m.name,
            num_train: m.num_train,
            num_test: m.num_test,
            num_classes: m.num_classes,
            fingerprint: m.fingerprint,
        }
    }
}

impl TryFrom<pb::DataIdentity> for DataIdentity {
    type Error = WireError;

    fn try_from(m: pb::DataIdentity) -> Result<Self, WireError> {
        Ok(Self {
            name: text(m.name, "data.name")?,
            num_train: m.num_train,
            num_test: m.num_test,
            num_classes: m.num_classes,
            fingerprint: text(m.fingerprint, "data.fingerprint")?,
        })
    }
}

impl From<Ready> for pb::Ready {
    fn from(m: Ready) -> Self {
        Self {
            data: Some(m.data.into()),
            canary: m.canary,
            state: m.state.map(Into::into),
            addresses: m.addresses,
            sees_run_dir: m.sees_run_dir,
        }
    }
}

impl TryFrom<pb::Ready> for Ready {
    type Error = WireError;

    fn try_from(m: pb::Ready) -> Result<Self, WireError> {
        Ok(Self {
            data: need(m.data, "ready.data")?.try_into()?,
            canary: optional_text(m.canary, "ready.canary")?,
            state: m.state.map(Into::into),
            addresses: m.addresses,
            sees_run_dir: m.sees_run_dir,
        })
    }
}

impl From<Skipped> for pb::Skipped {
    fn from(m: Skipped) -> Self {
        Self { position: m.position, file: m.file, reason: m.reason }
    }
}

impl From<pb::Skipped> for Skipped {
    fn from(m: pb::Skipped) -> Self {
        Self { position: m.position, file: m.file, reason: m.reason }
    }
}

impl From<StepReport> for pb::StepReport {
    fn from(m: StepReport) -> Self {
        let times = pb::StepTimes {
            data_s: m.times.data,
            compute_s: m.times.compute,
            comm_s: m.times.comm,
            wall_s: m.times.wall,
        };
        Self {
            generation: m.generation.0,
            rank: m.rank.0,
            step: m.step.0,
            loss: m.loss,
            wrong: m.wrong,
            samples: m.samples,
            digest: m.digest,
            times: Some(times),
            skipped: m.skipped.into_iter().map(Into::into).collect(),
            ready: m.ready,
        }
    }
}

impl TryFrom<pb::StepReport> for StepReport {
    type Error = WireError;

    fn try_from(m: pb::StepReport) -> Result<Self, WireError> {
        let times = need(m.times, "step_report.times")?;
        Ok(Self {
            generation: Generation(m.generation),
            rank: Rank(m.rank),
            step: Step(m.step),
            loss: m.loss,
            wrong: m.wrong,
            samples: m.samples,
            digest: m.digest,
            skipped: m.skipped.into_iter().map(Into::into).collect(),
            ready: m.ready,
            times: StepTimes { data: times.data_s, compute: times.compute_s, comm: times.comm_s, wall: times.wall_s },
        })
    }
}

impl From<EvalReport> for pb::EvalReport {
    fn from(m: EvalReport) -> Self {
        Self {
            generation: m.generation.0,
            rank: m.rank.0,
            epoch: m.epoch.0,
            step: m.step.0,
            loss: m.loss,
            error: m.error,
            error_top5: m.error_top5,
            samples: m.samples,
            seconds_s: m.seconds,
            skipped: m.skipped.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<pb::EvalReport> for EvalReport {
    fn from(m: pb::EvalReport) -> Self {
        Self {
            generation: Generation(m.generation),
            rank: Rank(m.rank),
            epoch: Epoch(m.epoch),
            step: Step(m.step),
            loss: m.loss,
            error: m.error,
            error_top5: m.error_top5,
            samples: m.samples,
            skipped: m.skipped.into_iter().map(Into::into).collect(),
            seconds: m.seconds_s,
        }
    }
}

impl From<Progress> for pb::Progress {
    fn from(m: Progress) -> Self {
        let of = |rank: RankProgress| pb::progress::OfRank {
            rank: rank.rank.0,
            beats: rank.beats,
            is_waiting: rank.is_waiting,
        };
        let gpus = m.gpus.into_iter().map(Into::into).collect();
        Self { generation: m.generation.0, ranks: m.ranks.into_iter().map(of).collect(), gpus }
    }
}

impl From<GpuHealth> for pb::GpuHealth {
    fn from(m: GpuHealth) -> Self {
        Self {
            device: m.device,
            utilization_percent: m.utilization_percent,
            memory_used_bytes: m.memory_used,
            memory_total_bytes: m.memory_total,
            temperature_c: m.temperature_c,
        }
    }
}

impl From<pb::GpuHealth> for GpuHealth {
    fn from(m: pb::GpuHealth) -> Self {
        Self {
            device: m.device,
            utilization_percent: m.utilization_percent,
            memory_used: m.memory_used_bytes,
            memory_total: m.memory_total_bytes,
            temperature_c: m.temperature_c,
        }
    }
}

impl From<pb::Progress> for Progress {
    fn from(m: pb::Progress) -> Self {
        let of = |rank: pb::progress::OfRank| RankProgress {
            rank: Rank(rank.rank),
            beats: rank.beats,
            is_waiting: rank.is_waiting,
        };
        let gpus = m.gpus.into_iter().map(Into::into).collect();
        Self { generation: Generation(m.generation), ranks: m.ranks.into_iter().map(of).collect(), gpus }
    }
}

impl From<CheckpointSaved> for pb::CheckpointSaved {
    fn from(m: CheckpointSaved) -> Self {
        Self {
            generation: m.generation.0,
            state: Some(m.state.into()),
            epoch: m.epoch.0,
            dir: m.dir,
            bytes: m.bytes,
            state_sha256: m.state_sha256,
        }
    }
}

impl TryFrom<pb::CheckpointSaved> for CheckpointSaved {
    type Error = WireError;

    fn try_from(m: pb::CheckpointSaved) -> Result<Self, WireError> {
        Ok(Self {
            generation: Generation(m.generation),
            state: need(m.state, "checkpoint_saved.state")?.into(),
            epoch: Epoch(m.epoch),
            dir: component(m.dir, "checkpoint_saved.dir")?,
            bytes: m.bytes,
            state_sha256: text(m.state_sha256, "checkpoint_saved.state_sha256")?,
        })
    }
}
