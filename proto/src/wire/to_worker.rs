//! Coordinator → worker.

use super::pb::{self, plan_item, source, to_worker::Kind};
use super::{WireError, component, exit_code, need, text};
use crate::ids::{Epoch, Generation, Lineage, Rank, SampleRange, Step, WorkerId};
use crate::message::{
    Close, Drain, Finish, Member, Open, Plan, PlanItem, Refused, Source, StepPlan, ToWorker, Welcome,
};

impl From<ToWorker> for pb::ToWorker {
    fn from(message: ToWorker) -> Self {
        let kind = match message {
            ToWorker::Welcome(m) => Kind::Welcome(pb::Welcome {
                run_id: m.run_id,
                recipe_toml: m.recipe_toml,
                run_dir: m.run_dir,
                run_nonce: m.run_nonce,
                isa: m.isa,
            }),
            ToWorker::Refused(m) => Kind::Refused(pb::Refused { code: m.code.code().into(), reason: m.reason }),
            ToWorker::Open(m) => Kind::Open(m.into()),
            ToWorker::Plan(m) => Kind::Plan(pb::Plan {
                generation: m.generation.0,
                items: m.items.into_iter().map(Into::into).collect(),
            }),
            ToWorker::Close(m) => Kind::Close(pb::Close { generation: m.generation.0, reason: m.reason }),
            ToWorker::Committed { generation, step } => {
                Kind::Committed(pb::Committed { generation: generation.0, step: step.0 })
            }
            ToWorker::Drain(m) => Kind::Drain(pb::Drain { reason: m.reason }),
            ToWorker::Finish(m) => Kind::Finish(pb::Finish { code: m.code.code().into(), reason: m.reason }),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<pb::ToWorker> for ToWorker {
    type Error = WireError;

    fn try_from(message: pb::ToWorker) -> Result<Self, WireError> {
        Ok(match message.kind.ok_or(WireError::UnknownKind { message: "to_worker" })? {
            Kind::Welcome(m) => Self::Welcome(Welcome {
                run_id: text(m.run_id, "welcome.run_id")?,
                recipe_toml: text(m.recipe_toml, "welcome.recipe_toml")?,
                run_dir: m.run_dir,
                run_nonce: m.run_nonce,
                isa: m.isa,
            }),
            Kind::Refused(m) => Self::Refused(Refused { code: exit_code(m.code, "refused.code")?, reason: m.reason }),
            Kind::Open(m) => Self::Open(m.try_into()?),
            Kind::Plan(m) => Self::Plan(Plan {
                generation: Generation(m.generation),
                items: m.items.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            }),
            Kind::Close(m) => Self::Close(Close { generation: Generation(m.generation), reason: m.reason }),
            Kind::Committed(m) => Self::Committed { generation: Generation(m.generation), step: Step(m.step) },
            Kind::Drain(m) => Self::Drain(Drain { reason: m.reason }),
            Kind::Finish(m) => Self::Finish(Finish { code: exit_code(m.code, "finish.code")?, reason: m.reason }),
        })
    }
}

impl From<Open> for pb::Open {
    fn from(m: Open) -> Self {
        let source = match m.source {
            Source::Init => source::Kind::Init(source::Init {}),
            Source::Held => source::Kind::Held(source::Held {}),
            Source::Checkpoint { dir } => source::Kind::Checkpoint(source::Checkpoint { dir }),
        };
        let member =
            |m: Member| pb::Member { rank: m.rank.0, worker: m.worker.0, replica: m.replica, address: m.address };
        Self {
            generation: m.generation.0,
            lineage: m.lineage.0,
            base: Some(m.base.into()),
            members: m.members.into_iter().map(member).collect(),
            leader: m.leader.0,
            source: Some(pb::Source { kind: Some(source) }),
            rendezvous: m.rendezvous,
        }
    }
}

impl TryFrom<pb::Open> for Open {
    type Error = WireError;

    /// Ranks must be `0 … n − 1` in order and the leader one of them: everything after relies on it.
    fn try_from(m: pb::Open) -> Result<Self, WireError> {
        let members = m.members.into_iter().enumerate().map(|(place, member)| {
            if u32::try_from(place) != Ok(member.rank) {
                let what = format!("lists rank {} at place {place}; expected every rank, ascending", member.rank);
                return Err(WireError::Invalid { field: "open.members", what });
            }
            Ok(Member {
                rank: Rank(member.rank),
                worker: WorkerId(text(member.worker, "member.worker")?),
                replica: member.replica,
                address: member.address,
            })
        });
        let members: Vec<Member> = members.collect::<Result<_, _>>()?;
        if !members.iter().any(|member| member.rank.0 == m.leader) {
            let what = format!("is rank {}, which is not in a world of {}", m.leader, members.len());
            return Err(WireError::Invalid { field: "open.leader", what });
        }
        let source = need(m.source, "open.source")?;
        let source = match source.kind.ok_or(WireError::UnknownKind { message: "open.source" })? {
            source::Kind::Init(_) => Source::Init,
            source::Kind::Held(_) => Source::Held,
            source::Kind::Checkpoint(m) => Source::Checkpoint { dir: component(m.dir, "open.source.dir")? },
        };
        Ok(Self {
            generation: Generation(m.generation),
            lineage: Lineage(m.lineage),
            base: need(m.base, "open.base")?.into(),
            members,
            leader: Rank(m.leader),
            source,
            rendezvous: m.rendezvous,
        })
    }
}

impl From<PlanItem> for pb::PlanItem {
    fn from(item: PlanItem) -> Self {
        let kind = match item {
            PlanItem::Step(m) => plan_item::Kind::Step(pb::StepPlan {
                step: m.step.0,
                epoch: m.epoch.0,
                lr: m.lr,
                batch: Some(pb::SampleRange { start: m.batch.start, len: m.batch.len }),
                shards: m.shards,
            }),
            PlanItem::Evaluate { epoch, step } => {
                plan_item::Kind::Evaluate(pb::Evaluate { epoch: epoch.0, step: step.0 })
            }
            PlanItem::Checkpoint { step, epoch } => {
                plan_item::Kind::Checkpoint(pb::Checkpoint { step: step.0, epoch: epoch.0 })
            }
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<pb::PlanItem> for PlanItem {
    type Error = WireError;

    fn try_from(item: pb::PlanItem) -> Result<Self, WireError> {
        Ok(match item.kind.ok_or(WireError::UnknownKind { message: "plan_item" })? {
            plan_item::Kind::Step(m) => Self::Step(StepPlan {
                step: Step(m.step),
                epoch: Epoch(m.epoch),
                lr: m.lr,
                batch: need(m.batch, "step_plan.batch")?.try_into()?,
                shards: m.shards,
            }),
            plan_item::Kind::Evaluate(m) => Self::Evaluate { epoch: Epoch(m.epoch), step: Step(m.step) },
            plan_item::Kind::Checkpoint(m) => Self::Checkpoint { step: Step(m.step), epoch: Epoch(m.epoch) },
        })
    }
}

impl TryFrom<pb::SampleRange> for SampleRange {
    type Error = WireError;

    fn try_from(range: pb::SampleRange) -> Result<Self, WireError> {
        if range.start.checked_add(range.len).is_none() {
            let what = format!("starts at {} and is {} long: past the last position", range.start, range.len);
            return Err(WireError::Invalid { field: "sample_range", what });
        }
        Ok(Self { start: range.start, len: range.len })
    }
}
