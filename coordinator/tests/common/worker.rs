//! A worker without a replica: it takes a plan and reports as if it had followed it. Checkpoints go over the wire.

use std::net::SocketAddr;

use lockstep_proto::ids::{Epoch, Generation, StateId, Step, WorkerId};
use lockstep_proto::manifest::{self, FileEntry};
use lockstep_proto::message::{
    CheckpointSaved, DataIdentity, EvalReport, Finish, FromWorker, Halted, Hello, Left, Open, PROTOCOL_VERSION,
    PlanItem, Ready, StepPlan, StepReport, StepTimes, Synced, ToWorker,
};
use lockstep_proto::transfer::{UploadHeader, UploadPart};
use lockstep_proto::wire::pb;
use lockstep_proto::wire::pb::lockstep_client::LockstepClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::records::{data, hash, write_checkpoint};

pub async fn connect(address: SocketAddr) -> LockstepClient<Channel> {
    LockstepClient::connect(format!("http://{address}")).await.unwrap()
}

pub struct FakeWorker {
    name: String,
    client: LockstepClient<Channel>,
    run_id: String,
    data: DataIdentity,
    state: Option<StateId>,
    open: Option<Open>,
}

impl FakeWorker {
    pub async fn new(address: SocketAddr, name: &str) -> Self {
        let client = connect(address).await;
        Self { name: name.into(), client, run_id: String::new(), data: data(), state: None, open: None }
    }

    /// Has a set of so many training samples.
    pub fn with_samples(mut self, num_train: u64) -> Self {
        self.data.num_train = num_train;
        self
    }

    /// Follows the run to its end, or, as a process that is killed, to just before it would report `die_before`.
    pub async fn follow(&mut self, die_before: Option<Step>) -> Result<Option<Finish>, Status> {
        let (outbox, messages) = mpsc::channel(64);
        let say = async |message: FromWorker| outbox.send(pb::FromWorker::from(message)).await.unwrap();
        say(FromWorker::Hello(Hello {
            protocol: PROTOCOL_VERSION,
            build: "fake".into(),
            worker: WorkerId(self.name.clone()),
            host: "here".into(),
            pid: std::process::id(),
            devices: vec!["cpu".into()],
            isa: "avx2".into(),
            run_id: None,
        }))
        .await;
        let mut incoming = self.client.train(ReceiverStream::new(messages)).await?.into_inner();
        while let Some(message) = incoming.message().await? {
            match ToWorker::try_from(message).unwrap() {
                ToWorker::Welcome(welcome) => {
                    self.run_id = welcome.run_id;
                    say(FromWorker::Ready(Ready {
                        data: self.data.clone(),
                        canary: Some("ca".repeat(32)),
                        state: self.state,
                        addresses: vec!["127.0.0.1:1".into()],
                        sees_run_dir: false,
                    }))
                    .await;
                }
                ToWorker::Open(open) => {
                    self.state = Some(open.base);
                    let (generation, state_sha256) = (open.generation, hash(open.base));
                    self.open = Some(open);
                    say(FromWorker::Synced(Synced { generation, state_sha256 })).await;
                }
                ToWorker::Plan(plan) => {
                    for item in plan.items {
                        if matches!(&item, PlanItem::Step(step) if Some(step.step) == die_before) {
                            return Ok(None);
                        }
                        if let Some(report) = self.perform(plan.generation, item).await {
                            say(report).await;
                        }
                    }
                }
                ToWorker::Close(close) => {
                    say(FromWorker::Halted(Halted { generation: close.generation, state: self.state })).await;
                }
                ToWorker::Committed { .. } | ToWorker::Drain(_) => {}
                ToWorker::Refused(refused) => return Err(Status::new(Code::FailedPrecondition, refused.reason)),
                ToWorker::Finish(finish) => {
                    say(FromWorker::Left(Left { code: finish.code, reason: finish.reason.clone() })).await;
                    return Ok(Some(finish));
                }
            }
        }
        Ok(None)
    }

    async fn perform(&mut self, generation: Generation, item: PlanItem) -> Option<FromWorker> {
        let open = self.open.as_ref().unwrap();
        let mine = open.members.iter().find(|member| member.worker.0 == self.name).unwrap();
        let rank = mine.rank;
        match item {
            PlanItem::Step(StepPlan { step, epoch, batch, .. }) => {
                self.state = Some(StateId { lineage: open.lineage, generation, step });
                Some(FromWorker::Reported(StepReport {
                    generation,
                    rank,
                    step,
                    loss: 1.0 / (step.0 as f64 + 2.0),
                    wrong: epoch.0,
                    samples: batch.len,
                    skipped: Vec::new(),
                    digest: u64::MAX - step.0,
                    ready: None,
                    times: StepTimes { data: 0.1, compute: 0.2, comm: 0.1, wall: 0.4 },
                }))
            }
            PlanItem::Evaluate { epoch, step } => Some(FromWorker::Evaluated(EvalReport {
                generation,
                rank,
                epoch,
                step,
                loss: 0.5,
                error: 1.0 / (epoch.0 as f64 + 2.0),
                error_top5: 0.0,
                samples: 10,
                skipped: Vec::new(),
                seconds: 0.1,
            })),
            PlanItem::Checkpoint { epoch, .. } if rank.0 == 0 => Some(self.save(generation, epoch).await),
            PlanItem::Checkpoint { .. } => None,
        }
    }

    async fn save(&mut self, generation: Generation, epoch: Epoch) -> FromWorker {
        let state = self.state.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let manifest = write_checkpoint(folder.path(), state);
        self.upload(folder.path(), generation, state).await.unwrap();
        FromWorker::CheckpointSaved(CheckpointSaved {
            generation,
            state,
            epoch,
            dir: format!("step-{}", state.step),
            bytes: manifest.bytes(),
            state_sha256: manifest.state_sha256,
        })
    }

    /// Sends a folder as the checkpoint of `state`.
    pub async fn upload(
        &mut self,
        folder: &std::path::Path,
        generation: Generation,
        state: StateId,
    ) -> Result<(), Status> {
        let names = ["model.safetensors", "optimizer.safetensors", manifest::FILE_NAME];
        let header = UploadPart::Header(UploadHeader {
            run_id: self.run_id.clone(),
            worker: WorkerId(self.name.clone()),
            generation,
            state,
            epoch: Epoch(0),
            dir: format!("step-{}", state.step),
            files: names.iter().map(|name| FileEntry::of(&folder.join(name)).unwrap()).collect(),
        });
        let mut parts = vec![pb::UploadPart::from(header)];
        for (file, name) in (0..).zip(names) {
            for chunk in std::fs::read(folder.join(name)).unwrap().chunks(1 << 20) {
                parts.push(UploadPart::Chunk { file, bytes: chunk.to_vec() }.into());
            }
        }
        self.client.upload_checkpoint(tokio_stream::iter(parts)).await.map(drop)
    }

    pub fn client(&mut self) -> &mut LockstepClient<Channel> {
        &mut self.client
    }

    /// As learned from `Welcome`.
    pub fn run_id(&self) -> &str {
        &self.run_id
    }

    pub fn set_run_id(&mut self, run_id: &str) {
        run_id.clone_into(&mut self.run_id);
    }
}
