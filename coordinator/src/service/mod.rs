//! The tonic service: turns the wire into inputs of the runtime, and serves checkpoints from the run directory.
//!
//! It decides nothing. Everything about the run goes through the runtime's one queue; only checkpoint bytes do not.

mod refusal;
mod token;
mod transfer;

use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use lockstep_proto::message::{FromWorker, Hello, ToWorker};
use lockstep_proto::status::{Control, Status as RunStatus};
use lockstep_proto::transfer::{DownloadRequest, UploadPart};
use lockstep_proto::wire::pb::lockstep_server::{Lockstep, LockstepServer};
use lockstep_proto::wire::{MAX_MESSAGE_BYTES, pb};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tokio_stream::{Stream, StreamExt};
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status, Streaming};

use crate::engine::StreamId;
use refusal::Refusal;
use token::TokenCheck;

/// The first message of a stream is due at once.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// The next part of a checkpoint.
const PART_DEADLINE: Duration = Duration::from_secs(60);
/// A stream that was told to end and does not.
const FAREWELL_DEADLINE: Duration = Duration::from_secs(10);

/// Messages that wait for one worker. One that lets so many pile up does not read.
const OUTBOX: usize = 1024;

type Outbox = mpsc::Sender<Result<pb::ToWorker, Status>>;
type Reply<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What reaches the runtime.
pub(crate) enum Input {
    /// A stream opened: the runtime numbers it and runs its [`pump`].
    Opened { incoming: Streaming<pb::FromWorker>, outbox: Outbox },
    /// It said who it is.
    Connected { stream: StreamId, hello: Hello, peer: Peer },
    /// It said something.
    Received { stream: StreamId, message: FromWorker },
    /// It is gone.
    Disconnected { stream: StreamId, reason: String },
    /// Someone asks something of the run.
    Control(Control),
}

/// The sending side of a worker's stream. Dropping it ends the stream once everything sent is flushed.
pub(crate) struct Peer {
    outbox: Outbox,
    /// Dropped with the peer: the pump then waits for the farewell only so long.
    _hangup: oneshot::Sender<()>,
}

impl Peer {
    /// Queues a message. `false`: the worker has not read for a long time, or is gone.
    pub(crate) fn send(&self, message: ToWorker) -> bool {
        self.outbox.try_send(Ok(message.into())).is_ok()
    }
}

/// Reads a worker's stream to its end.
pub(crate) async fn pump(
    stream: StreamId,
    mut incoming: Streaming<pb::FromWorker>,
    outbox: Outbox,
    inputs: mpsc::Sender<Input>,
) {
    let hello = match tokio::time::timeout(HELLO_DEADLINE, next(&mut incoming)).await {
        Ok(Ok(Some(FromWorker::Hello(hello)))) => hello,
        other => {
            let refusal = match other {
                Err(_) => Refusal::Silent { seconds: HELLO_DEADLINE.as_secs() },
                Ok(Err(refusal)) => refusal,
                Ok(Ok(_)) => Refusal::Malformed("the first message of a stream must be `hello`".to_owned()),
            };
            tracing::info!(%refusal, "a stream was refused");
            let _ = outbox.try_send(Err(refusal.into()));
            return;
        }
    };
    let (hangup, mut hung_up) = oneshot::channel();
    let peer = Peer { outbox: outbox.clone(), _hangup: hangup };
    // A clone would keep the stream open.
    drop(outbox);
    if inputs.send(Input::Connected { stream, hello, peer }).await.is_err() {
        return;
    }
    let reason = loop {
        let message = tokio::select! {
            biased;
            message = next(&mut incoming) => message,
            _ = &mut hung_up => break farewell(stream, &mut incoming, &inputs).await,
        };
        match message {
            Ok(Some(message)) => {
                if inputs.send(Input::Received { stream, message }).await.is_err() {
                    return;
                }
            }
            Ok(None) => break "the worker closed its stream".to_owned(),
            Err(refusal) => break refusal.to_string(),
        }
    };
    let _ = inputs.send(Input::Disconnected { stream, reason }).await;
}

/// After the last message to a worker: its own last words, for a while.
async fn farewell(stream: StreamId, incoming: &mut Streaming<pb::FromWorker>, inputs: &mpsc::Sender<Input>) -> String {
    let last_words = async {
        while let Ok(Some(message)) = next(incoming).await {
            if inputs.send(Input::Received { stream, message }).await.is_err() {
                break;
            }
        }
    };
    match tokio::time::timeout(FAREWELL_DEADLINE, last_words).await {
        Ok(()) => "the stream was closed".to_owned(),
        Err(_) => format!("did not close its stream within {} s", FAREWELL_DEADLINE.as_secs()),
    }
}

async fn next(incoming: &mut Streaming<pb::FromWorker>) -> Result<Option<FromWorker>, Refusal> {
    match incoming.message().await {
        Ok(message) => Ok(message.map(FromWorker::try_from).transpose()?),
        Err(status) => Err(Refusal::Transport(Box::new(status))),
    }
}

/// What the service needs to know.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) run_id: String,
    pub(crate) run_dir: PathBuf,
    pub(crate) inputs: mpsc::Sender<Input>,
    pub(crate) status: watch::Receiver<RunStatus>,
}

impl Service {
    /// With limits and token check around it.
    pub(crate) fn into_server(self, token: Option<&str>) -> InterceptedService<LockstepServer<Self>, TokenCheck> {
        let server = LockstepServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        InterceptedService::new(server, TokenCheck::new(token))
    }

    fn ours(&self, run_id: &str) -> Result<(), Refusal> {
        if run_id == self.run_id {
            return Ok(());
        }
        Err(Refusal::OtherRun { ours: self.run_id.clone(), theirs: run_id.to_owned() })
    }
}

#[tonic::async_trait]
impl Lockstep for Service {
    type TrainStream = ReceiverStream<Result<pb::ToWorker, Status>>;
    type WatchStream = Reply<pb::RunStatus>;
    type DownloadCheckpointStream = Reply<pb::DownloadPart>;

    async fn train(&self, request: Request<Streaming<pb::FromWorker>>) -> Result<Response<Self::TrainStream>, Status> {
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let opened = Input::Opened { incoming: request.into_inner(), outbox };
        self.inputs.send(opened).await.map_err(|_| Refusal::Over)?;
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::RunStatus>, Status> {
        let status = self.status.borrow().clone();
        Ok(Response::new(status.into()))
    }

    async fn watch(&self, _: Request<pb::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let states = WatchStream::new(self.status.clone()).map(|status| Ok(status.into()));
        Ok(Response::new(Box::pin(states)))
    }

    async fn control(&self, request: Request<pb::ControlRequest>) -> Result<Response<pb::ControlReply>, Status> {
        let control = Control::try_from(request.into_inner()).map_err(Refusal::from)?;
        self.inputs.send(Input::Control(control)).await.map_err(|_| Refusal::Over)?;
        Ok(Response::new(pb::ControlReply {}))
    }

    async fn upload_checkpoint(
        &self,
        request: Request<Streaming<pb::UploadPart>>,
    ) -> Result<Response<pb::UploadReply>, Status> {
        let mut incoming = request.into_inner();
        let parts = async_stream::stream! {
            loop {
                let part = match tokio::time::timeout(PART_DEADLINE, incoming.message()).await {
                    Err(_) => Err(Refusal::Silent { seconds: PART_DEADLINE.as_secs() }),
                    Ok(Err(status)) => Err(Refusal::Transport(Box::new(status))),
                    Ok(Ok(None)) => return,
                    Ok(Ok(Some(part))) => UploadPart::try_from(part).map_err(Refusal::from),
                };
                yield part;
            }
        };
        let admit = |header: &lockstep_proto::transfer::UploadHeader| {
            self.ours(&header.run_id)?;
            let open = self.status.borrow().generation;
            if header.generation < open {
                return Err(Refusal::OldGeneration { ours: open, theirs: header.generation });
            }
            Ok(())
        };
        transfer::receive(&self.run_dir.join("checkpoints"), admit, Box::pin(parts)).await?;
        Ok(Response::new(pb::UploadReply {}))
    }

    async fn download_checkpoint(
        &self,
        request: Request<pb::DownloadRequest>,
    ) -> Result<Response<Self::DownloadCheckpointStream>, Status> {
        let wanted = DownloadRequest::try_from(request.into_inner()).map_err(Refusal::from)?;
        self.ours(&wanted.run_id)?;
        let parts = transfer::send(&self.run_dir.join("checkpoints"), &wanted.dir)?;
        Ok(Response::new(Box::pin(parts.map(|part| part.map(Into::into).map_err(Status::from)))))
    }
}
