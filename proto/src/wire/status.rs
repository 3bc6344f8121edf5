//! Status, watch, control.

use super::pb::{self, control_request};
use super::{WireError, optional_text, text};
use crate::ids::{Epoch, Generation, Lineage, Rank, Step, WorkerId};
use crate::status::{Control, MemberStatus, Phase, Status};

impl From<Status> for pb::RunStatus {
    fn from(m: Status) -> Self {
        Self {
            run_id: m.run_id,
            name: m.name,
            run_dir: m.run_dir,
            phase: pb::Phase::from(m.phase).into(),
            generation: m.generation.0,
            lineage: m.lineage.0,
            world_size: m.world_size,
            step: m.step.0,
            total_steps: m.total_steps,
            epoch: m.epoch.0,
            total_epochs: m.total_epochs,
            loss: m.loss,
            error: m.error,
            lr: m.lr,
            test_error: m.test_error,
            images_per_s: m.images_per_s,
            eta_s: m.eta_s,
            members: m.members.into_iter().map(Into::into).collect(),
            last_event: m.last_event,
            started_unix_s: m.started_unix_s,
            updated_unix_s: m.updated_unix_s,
        }
    }
}

impl TryFrom<pb::RunStatus> for Status {
    type Error = WireError;

    fn try_from(m: pb::RunStatus) -> Result<Self, WireError> {
        Ok(Self {
            run_id: text(m.run_id, "run_status.run_id")?,
            name: m.name,
            run_dir: m.run_dir,
            phase: phase(m.phase)?,
            generation: Generation(m.generation),
            lineage: Lineage(m.lineage),
            world_size: m.world_size,
            step: Step(m.step),
            total_steps: m.total_steps,
            epoch: Epoch(m.epoch),
            total_epochs: m.total_epochs,
            loss: m.loss,
            error: m.error,
            lr: m.lr,
            test_error: m.test_error,
            images_per_s: m.images_per_s,
            eta_s: m.eta_s,
            members: m.members.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            last_event: optional_text(m.last_event, "run_status.last_event")?,
            started_unix_s: m.started_unix_s,
            updated_unix_s: m.updated_unix_s,
        })
    }
}

impl From<Phase> for pb::Phase {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Waiting => Self::Waiting,
            Phase::Syncing => Self::Syncing,
            Phase::Training => Self::Training,
            Phase::Halting => Self::Halting,
            Phase::Draining => Self::Draining,
            Phase::Done => Self::Done,
            Phase::Failed => Self::Failed,
        }
    }
}

fn phase(code: i32) -> Result<Phase, WireError> {
    let unknown = WireError::UnknownCode { field: "run_status.phase", code: i64::from(code) };
    Ok(match pb::Phase::try_from(code) {
        Ok(pb::Phase::Waiting) => Phase::Waiting,
        Ok(pb::Phase::Syncing) => Phase::Syncing,
        Ok(pb::Phase::Training) => Phase::Training,
        Ok(pb::Phase::Halting) => Phase::Halting,
        Ok(pb::Phase::Draining) => Phase::Draining,
        Ok(pb::Phase::Done) => Phase::Done,
        Ok(pb::Phase::Failed) => Phase::Failed,
        Ok(pb::Phase::Unspecified) | Err(_) => return Err(unknown),
    })
}

impl From<MemberStatus> for pb::MemberStatus {
    fn from(m: MemberStatus) -> Self {
        Self {
            worker: m.worker.0,
            host: m.host,
            pid: m.pid,
            devices: m.devices,
            ranks: m.ranks.into_iter().map(|rank| rank.0).collect(),
            last_step: m.last_step.0,
            last_report_age_s: m.last_report_age_s,
            gpus: m.gpus.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::MemberStatus> for MemberStatus {
    type Error = WireError;

    fn try_from(m: pb::MemberStatus) -> Result<Self, WireError> {
        Ok(Self {
            worker: WorkerId(text(m.worker, "member_status.worker")?),
            host: m.host,
            pid: m.pid,
            devices: m.devices,
            ranks: m.ranks.into_iter().map(Rank).collect(),
            last_step: Step(m.last_step),
            last_report_age_s: m.last_report_age_s,
            gpus: m.gpus.into_iter().map(Into::into).collect(),
        })
    }
}

impl From<Control> for pb::ControlRequest {
    fn from(control: Control) -> Self {
        let kind = match control {
            Control::Stop { reason } => control_request::Kind::Stop(control_request::Stop { reason }),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<pb::ControlRequest> for Control {
    type Error = WireError;

    fn try_from(request: pb::ControlRequest) -> Result<Self, WireError> {
        match request.kind.ok_or(WireError::UnknownKind { message: "control_request" })? {
            control_request::Kind::Stop(m) => Ok(Self::Stop { reason: m.reason }),
        }
    }
}
