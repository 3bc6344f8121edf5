//! A coordinator that says what a test tells it to, and replicas of one integer.
#![allow(dead_code)] // each test file uses its part

mod integer;

use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use futures::Stream;
use lockstep_proto::ids::{Epoch, Generation, Lineage, Rank, SampleRange, StateId, Step, WorkerId};
use lockstep_proto::message::{
    Close, DataIdentity, Drain, FromWorker, Halted, Hello, Leaving, Member, Open, Plan, PlanItem, Ready, Source,
    StepPlan, StepReport, Synced, ToWorker, Welcome,
};
use lockstep_proto::transfer::{DownloadPart, UploadPart};
use lockstep_proto::wire::pb::{self, lockstep_server};
use lockstep_worker::connect::Coordinator;
use lockstep_worker::door::Transport;
use lockstep_worker::exit::Exit;
use lockstep_worker::session::{Config, Session, Signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

pub use integer::{Integers, Steps, hash_after, value_after};

/// Longer than anything here takes; a test that waits for it has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn data() -> DataIdentity {
    DataIdentity {
        name: "integers".into(),
        num_train: 1000,
        num_test: 100,
        num_classes: 10,
        fingerprint: "f".repeat(64),
    }
}

type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The other end of `Train`.
pub struct Conversation {
    incoming: Streaming<pb::FromWorker>,
    outgoing: mpsc::Sender<Result<pb::ToWorker, Status>>,
    pub token: Option<String>,
}

/// A checkpoint on its way.
pub enum Transfer {
    Uploaded(Vec<UploadPart>),
    Asked(String, mpsc::Sender<Result<pb::DownloadPart, Status>>),
}

struct Service {
    streams: mpsc::UnboundedSender<Conversation>,
    transfers: mpsc::UnboundedSender<Transfer>,
}

#[tonic::async_trait]
impl lockstep_server::Lockstep for Service {
    type TrainStream = Boxed<pb::ToWorker>;
    type WatchStream = Boxed<pb::RunStatus>;
    type DownloadCheckpointStream = Boxed<pb::DownloadPart>;

    async fn train(&self, request: Request<Streaming<pb::FromWorker>>) -> Result<Response<Self::TrainStream>, Status> {
        let token = request.metadata().get("authorization").map(|value| value.to_str().unwrap().to_owned());
        if token.as_deref() == Some("Bearer wrong") {
            return Err(Status::unauthenticated("unknown token"));
        }
        let (outgoing, stream) = mpsc::channel(100);
        let _ = self.streams.send(Conversation { incoming: request.into_inner(), outgoing, token });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::RunStatus>, Status> {
        Err(Status::unimplemented("status"))
    }

    async fn watch(&self, _: Request<pb::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("watch"))
    }

    async fn control(&self, _: Request<pb::ControlRequest>) -> Result<Response<pb::ControlReply>, Status> {
        Err(Status::unimplemented("control"))
    }

    async fn upload_checkpoint(
        &self,
        request: Request<Streaming<pb::UploadPart>>,
    ) -> Result<Response<pb::UploadReply>, Status> {
        let mut stream = request.into_inner();
        let mut parts = Vec::new();
        while let Some(part) = stream.next().await {
            parts.push(UploadPart::try_from(part?)?);
        }
        let _ = self.transfers.send(Transfer::Uploaded(parts));
        Ok(Response::new(pb::UploadReply {}))
    }

    async fn download_checkpoint(
        &self,
        request: Request<pb::DownloadRequest>,
    ) -> Result<Response<Self::DownloadCheckpointStream>, Status> {
        let (sender, stream) = mpsc::channel(100);
        let _ = self.transfers.send(Transfer::Asked(request.into_inner().dir, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// Serves until dropped.
pub struct Fake {
    pub url: String,
    streams: mpsc::UnboundedReceiver<Conversation>,
    transfers: mpsc::UnboundedReceiver<Transfer>,
    server: JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Fake {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (streams, stream_queue) = mpsc::unbounded_channel();
        let (transfers, transfer_queue) = mpsc::unbounded_channel();
        let service = lockstep_server::LockstepServer::new(Service { streams, transfers });
        let serve = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener));
        let server = tokio::spawn(async move {
            let _ = serve.await;
        });
        Self { url, streams: stream_queue, transfers: transfer_queue, server }
    }

    pub async fn stream(&mut self) -> Conversation {
        tokio::time::timeout(PATIENCE, self.streams.recv()).await.expect("no worker came").unwrap()
    }

    pub async fn transfer(&mut self) -> Transfer {
        tokio::time::timeout(PATIENCE, self.transfers.recv()).await.expect("no transfer came").unwrap()
    }

    pub fn config(&self, worker: &str, num_replicas: usize) -> Config {
        Config {
            coordinator: Coordinator::new(&self.url, Some("secret")).unwrap(),
            worker: WorkerId(worker.into()),
            devices: vec!["cpu".into(); num_replicas],
            transport: Transport::Tcp,
            advertise: "127.0.0.1".into(),
            isa: "avx2".into(),
            patience: PATIENCE,
            halt: PATIENCE,
            fault_canary: false,
        }
    }
}

/// NCCL's test double.
pub fn over_nccl() -> Transport {
    let (nccl, driver) = (lockstep_nccl_double::nccl(), lockstep_nccl_double::driver());
    Transport::Nccl(lockstep_nccl::Libraries { nccl: Some(nccl), driver: Some(driver) })
}

impl Conversation {
    /// The next message; `None` when the worker hung up. Signs of life are passed over, and who asks to go may.
    pub async fn next(&mut self) -> Option<FromWorker> {
        loop {
            match self.next_of_any_kind().await {
                Some(FromWorker::Progress(_)) => {}
                Some(FromWorker::Leaving(leaving)) => self.say(ToWorker::Drain(Drain { reason: leaving.reason })).await,
                other => return other,
            }
        }
    }

    /// It asks to go.
    pub async fn leaving(&mut self) -> Leaving {
        loop {
            match self.next_of_any_kind().await {
                Some(FromWorker::Leaving(leaving)) => return leaving,
                Some(FromWorker::Progress(_)) => {}
                other => panic!("expected that it asks to go, got {other:?}"),
            }
        }
    }

    pub async fn next_of_any_kind(&mut self) -> Option<FromWorker> {
        let message = tokio::time::timeout(PATIENCE, self.incoming.message()).await.expect("the worker says nothing");
        message.ok().flatten().map(|message| FromWorker::try_from(message).unwrap())
    }

    pub async fn say(&self, message: ToWorker) {
        self.outgoing.send(Ok(message.into())).await.unwrap();
    }

    pub async fn hello(&mut self) -> Hello {
        match self.next().await {
            Some(FromWorker::Hello(hello)) => hello,
            other => panic!("expected hello, got {other:?}"),
        }
    }

    pub async fn ready(&mut self) -> Ready {
        match self.next().await {
            Some(FromWorker::Ready(ready)) => ready,
            other => panic!("expected ready, got {other:?}"),
        }
    }

    /// Up to `Ready`, in a run directory that may exist.
    pub async fn welcome(&mut self, run_dir: &Path) -> (Hello, Ready) {
        let hello = self.hello().await;
        self.say(ToWorker::Welcome(welcome(run_dir, ""))).await;
        (hello, self.ready().await)
    }
}

pub fn welcome(run_dir: &Path, recipe: &str) -> Welcome {
    Welcome {
        run_id: "run".into(),
        recipe_toml: format!("name = \"test\"\n{recipe}"),
        run_dir: run_dir.to_string_lossy().into_owned(),
        run_nonce: "nonce".into(),
        isa: "avx2".into(),
    }
}

/// A run directory that workers recognise.
pub fn run_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(".nonce"), "nonce\n").unwrap();
    dir
}

pub fn base(generation: u64, step: u64) -> StateId {
    StateId { lineage: Lineage(1), generation: Generation(generation), step: Step(step) }
}

/// A generation of one worker's replicas.
pub fn open(generation: u64, base: StateId, source: Source, worker: &str, addresses: &[String]) -> ToWorker {
    open_world(generation, base, source, &[(worker, addresses)])
}

/// A generation of several workers; rank 0 leads.
pub fn open_world(generation: u64, base: StateId, source: Source, workers: &[(&str, &[String])]) -> ToWorker {
    let mut members = Vec::new();
    for (worker, addresses) in workers {
        for (replica, address) in (0..).zip(*addresses) {
            let rank = Rank(members.len() as u32);
            members.push(Member { rank, worker: WorkerId((*worker).into()), replica, address: address.clone() });
        }
    }
    ToWorker::Open(Open {
        generation: Generation(generation),
        lineage: Lineage(1),
        base,
        members,
        leader: Rank(0),
        source,
        rendezvous: "rendezvous".into(),
    })
}

pub fn plan(generation: u64, items: impl IntoIterator<Item = PlanItem>) -> ToWorker {
    ToWorker::Plan(Plan { generation: Generation(generation), items: items.into_iter().collect() })
}

pub fn step(step: u64) -> PlanItem {
    PlanItem::Step(StepPlan {
        step: Step(step),
        epoch: Epoch(1),
        lr: 0.1,
        batch: SampleRange { start: (step - 1) * 128, len: 128 },
        shards: vec![8],
    })
}

/// A worker in the background.
pub struct Worker {
    pub signals: mpsc::Sender<Signal>,
    pub steps: Steps,
    pub begun: mpsc::UnboundedReceiver<Step>,
    life: JoinHandle<Exit>,
}

impl Worker {
    pub fn start(config: Config) -> Self {
        let (signals, queue) = mpsc::channel(8);
        let (steps, begun) = Steps::new();
        let life = tokio::spawn(Session::live(config, Integers(steps.clone()), queue));
        Self { signals, steps, begun, life }
    }

    pub async fn begins(&mut self, step: u64) {
        let begun = tokio::time::timeout(PATIENCE, self.begun.recv()).await.expect("no step began");
        assert_eq!(begun, Some(Step(step)));
    }

    pub async fn end(self) -> Exit {
        tokio::time::timeout(PATIENCE, self.life).await.expect("the worker does not end").unwrap()
    }
}

/// The download of a folder, as a coordinator does it.
pub async fn serve(folder: &Path, parts: mpsc::Sender<Result<pb::DownloadPart, Status>>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let bytes = std::fs::read(entry.path()).unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        parts.send(Ok(DownloadPart::File { name, bytes: bytes.len() as u64 }.into())).await.unwrap();
        parts.send(Ok(DownloadPart::Chunk { bytes }.into())).await.unwrap();
    }
}

#[track_caller]
pub fn reported(message: Option<FromWorker>) -> StepReport {
    match message {
        Some(FromWorker::Reported(report)) => report,
        other => panic!("expected a report, got {other:?}"),
    }
}

pub fn synced(generation: u64, state_sha256: String) -> Option<FromWorker> {
    Some(FromWorker::Synced(Synced { generation: Generation(generation), state_sha256 }))
}

pub fn halted(generation: u64, state: Option<StateId>) -> Option<FromWorker> {
    Some(FromWorker::Halted(Halted { generation: Generation(generation), state }))
}

pub fn close(generation: u64) -> ToWorker {
    ToWorker::Close(Close { generation: Generation(generation), reason: "a test".into() })
}
