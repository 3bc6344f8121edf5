//! Reaching the coordinator: with patience, a token, and a deadline.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::WorkerId;
use lockstep_proto::message::{FromWorker, Hello, ToWorker, Welcome};
use lockstep_proto::wire::pb::lockstep_client::LockstepClient;
use lockstep_proto::wire::{TlsFiles, pb};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::Instant;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

use crate::exit::Exit;

/// One attempt to open a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// From `Hello` to `Welcome`.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// A connection on which nothing comes back for so long is dead.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// A client of the coordinator.
pub type Client = LockstepClient<InterceptedService<Channel, Token>>;

/// Where the coordinator is and how it knows us.
#[derive(Clone, Debug)]
pub struct Coordinator {
    endpoint: Endpoint,
    url: String,
    token: Token,
    dialer: Dialer,
}

/// How an endpoint becomes a connection.
pub type Dial =
    dyn Fn(Endpoint) -> Pin<Box<dyn Future<Output = Result<Channel, tonic::transport::Error>> + Send>> + Send + Sync;

#[derive(Clone)]
struct Dialer(Arc<Dial>);

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Dialer")
    }
}

/// Puts the token into every call.
#[derive(Clone, Debug)]
pub struct Token(Option<MetadataValue<Ascii>>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

impl Coordinator {
    /// `url` is `http://HOST:PORT`, or just `HOST:PORT`.
    ///
    /// # Errors
    /// Not a URL; a token that no header can carry.
    pub fn new(url: &str, token: Option<&str>) -> Result<Self, Exit> {
        let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let usage = |reason: String| Exit::new(ExitCode::Usage, reason);
        let endpoint = Endpoint::from_shared(url.clone())
            .map_err(|error| usage(format!("--coordinator {url}: {error}; expected http://HOST:PORT")))?;
        if endpoint.uri().host().is_none() || endpoint.uri().port().is_none() {
            return Err(usage(format!("--coordinator {url}: expected http://HOST:PORT")));
        }
        let token = token.filter(|token| !token.is_empty()).map(|token| {
            let mut value: MetadataValue<Ascii> = format!("Bearer {token}")
                .parse()
                .map_err(|_| usage("--token holds characters that a header cannot carry".into()))?;
            value.set_sensitive(true);
            Ok::<_, Exit>(value)
        });
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(2 * KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let dialer = Dialer(Arc::new(|endpoint| Box::pin(async move { endpoint.connect().await })));
        Ok(Self { endpoint, url, token: Token(token.transpose()?), dialer })
    }

    /// Calls it over TLS, where its URL says https.
    ///
    /// # Errors
    /// Files that cannot be read, or do not go together or with the URL.
    pub fn secured_by(mut self, files: &TlsFiles) -> Result<Self, Exit> {
        let tls = files.client(&self.url).map_err(|error| Exit::new(error.exit_code(), error.to_string()))?;
        if let Some(tls) = tls {
            self.endpoint = self.endpoint.tls_config(tls).map_err(|error| {
                let reason = format!("TLS: {}; check that the files hold PEM", innermost(&error));
                Exit::new(ExitCode::Usage, reason)
            })?;
        }
        Ok(self)
    }

    /// Reaches it by another way than the system's TCP, as a simulation does.
    pub fn dialed_by(mut self, dial: Arc<Dial>) -> Self {
        self.dialer = Dialer(dial);
        self
    }

    /// As given, with its scheme.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Host and port.
    pub fn authority(&self) -> (&str, u16) {
        let uri = self.endpoint.uri();
        // invariant: `new` refuses a URL without them.
        let host = uri.host().unwrap_or("localhost");
        (host.trim_start_matches('[').trim_end_matches(']'), uri.port_u16().unwrap_or(0))
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// `Unavailable`, with the cause.
    pub async fn client(&self) -> Result<Client, Status> {
        let channel =
            (self.dialer.0)(self.endpoint.clone()).await.map_err(|error| Status::unavailable(innermost(&error)))?;
        Ok(LockstepClient::with_interceptor(channel, self.token.clone()))
    }

    /// Opens the stream and introduces the worker; tries again until `patience` is over.
    ///
    /// # Errors
    /// Refused, with the coordinator's reason; or not reached in time, with the URL and the last cause.
    pub async fn dial(&self, hello: &Hello, patience: Duration) -> Result<Link, Exit> {
        let mut backoff = Backoff::until(patience, &hello.worker);
        loop {
            let cause = match tokio::time::timeout(HANDSHAKE_TIMEOUT, self.greet(hello)).await {
                Ok(Ok(link)) => return Ok(link),
                Ok(Err(Failure::Final(exit))) => return Err(exit),
                Ok(Err(Failure::Again(cause))) => cause,
                Err(_) => format!("no answer within {} s", HANDSHAKE_TIMEOUT.as_secs()),
            };
            let Some(wait) = backoff.next_wait() else {
                let check = if self.url.starts_with("https") {
                    "check that it runs, that the address is right, and that both sides have certificates of one authority \
                     (--tls-cert, --tls-key, --tls-ca)"
                } else {
                    "check that it runs and that the address is right"
                };
                let seconds = patience.as_secs_f64().round();
                let reason = format!("coordinator {} unreachable for {seconds} s: {cause}; {check}", self.url);
                return Err(Exit::new(ExitCode::Unavailable, reason));
            };
            tracing::debug!("coordinator {}: {cause}; trying again in {wait:?}", self.url);
            tokio::time::sleep(wait).await;
        }
    }

    /// One attempt.
    async fn greet(&self, hello: &Hello) -> Result<Link, Failure> {
        let again = |status: Status| match exit_code(&status) {
            ExitCode::Unavailable => Failure::Again(status.message().to_owned()),
            code => Failure::Final(Exit::new(code, self.explain(&status))),
        };
        let mut client = self.client().await.map_err(again)?;
        // Unbounded, but the plan window bounds what there is to report; a bound would let a coordinator that does
        // not read hold up signals.
        let (sender, outgoing) = unbounded_channel();
        let _ = sender.send(FromWorker::Hello(hello.clone()).into());
        let stream = client.train(UnboundedReceiverStream::new(outgoing)).await.map_err(again)?;
        let mut link = Incoming(stream.into_inner());
        match link.next().await.map_err(again)? {
            Some(ToWorker::Welcome(welcome)) => Ok(Link { sender, incoming: link, welcome }),
            Some(ToWorker::Refused(refused)) => Err(Failure::Final(Exit::new(refused.code, refused.reason))),
            Some(ToWorker::Finish(finish)) => Err(Failure::Final(Exit::new(finish.code, finish.reason))),
            Some(_) => {
                let reason =
                    format!("coordinator {} did not answer hello with welcome; use the same version", self.url);
                Err(Failure::Final(Exit::new(ExitCode::Protocol, reason)))
            }
            None => Err(Failure::Again("it hung up".into())),
        }
    }

    fn explain(&self, status: &Status) -> String {
        let (url, message) = (&self.url, status.message());
        match status.code() {
            Code::Unauthenticated | Code::PermissionDenied => {
                format!(
                    "coordinator {url} does not know this worker: {message}; give its token by --token or LOCKSTEP_TOKEN"
                )
            }
            Code::Unimplemented => {
                format!("coordinator {url} speaks another protocol: {message}; use the same version")
            }
            _ => format!("coordinator {url}: {message}"),
        }
    }
}

/// An open stream, after `Welcome`.
pub struct Link {
    /// To the coordinator.
    pub sender: UnboundedSender<pb::FromWorker>,
    /// From it.
    pub incoming: Incoming,
    /// What it said first.
    pub welcome: Welcome,
}

/// Messages of a coordinator.
pub struct Incoming(Streaming<pb::ToWorker>);

impl Incoming {
    /// The next one; `None` at the end.
    ///
    /// # Errors
    /// The stream broke, or a message makes no sense.
    pub async fn next(&mut self) -> Result<Option<ToWorker>, Status> {
        let Some(message) = self.0.message().await? else { return Ok(None) };
        Ok(Some(ToWorker::try_from(message)?))
    }
}

enum Failure {
    Again(String),
    Final(Exit),
}

/// What a process exits with after such an answer. `Unavailable` is worth another try.
pub fn exit_code(status: &Status) -> ExitCode {
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => ExitCode::NoPermission,
        Code::Unimplemented | Code::InvalidArgument | Code::OutOfRange => ExitCode::Protocol,
        Code::ResourceExhausted => ExitCode::CantCreate,
        Code::NotFound | Code::DataLoss => ExitCode::Data,
        Code::FailedPrecondition | Code::AlreadyExists => ExitCode::TempFail,
        _ => ExitCode::Unavailable,
    }
}

/// The cause at the bottom: `Connection refused` rather than `transport error`.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut at = error;
    while let Some(source) = at.source() {
        at = source;
    }
    at.to_string()
}

/// Waits that double, with jitter, until patience is over.
pub struct Backoff {
    end: Instant,
    next: Duration,
    /// Hash of whose waits they are, and of those before.
    salt: DefaultHasher,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    const MOST: Duration = Duration::from_secs(5);

    /// Starts now. Names are unique, so each worker has waits of its own.
    pub fn until(patience: Duration, worker: &WorkerId) -> Self {
        let mut salt = DefaultHasher::new();
        worker.hash(&mut salt);
        Self { end: Instant::now() + patience, next: Self::FIRST, salt }
    }

    /// How long to wait before the next try; `None` when there is none any more.
    pub fn next_wait(&mut self) -> Option<Duration> {
        let left = self.end.checked_duration_since(Instant::now())?;
        if left.is_zero() {
            return None;
        }
        // 50–100 %, so that workers which lost the coordinator together do not come back together.
        self.next.hash(&mut self.salt);
        let jitter = 0.5 + 0.5 * (self.salt.finish() >> 56) as f64 / 255.0;
        let wait = self.next.mul_f64(jitter).min(left);
        self.next = (self.next * 2).min(Self::MOST);
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_with_and_without_scheme_and_need_a_port() {
        assert_eq!(Coordinator::new("127.0.0.1:7000", None).unwrap().url(), "http://127.0.0.1:7000");
        assert_eq!(Coordinator::new("http://[::1]:7000", None).unwrap().authority(), ("::1", 7000));
        for wrong in ["http://host", "host", "http://", "a b:1"] {
            let exit = Coordinator::new(wrong, None).unwrap_err();
            assert_eq!(exit.code, ExitCode::Usage, "{wrong}");
            assert!(exit.reason.contains("expected http://HOST:PORT"), "{exit}");
        }
    }

    #[tokio::test]
    async fn an_unreachable_coordinator_is_named_and_gives_69() {
        // A port that was free a moment ago; nobody listens.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let coordinator = Coordinator::new(&format!("127.0.0.1:{port}"), None).unwrap();
        let hello = Hello {
            protocol: 1,
            build: "test".into(),
            worker: WorkerId("w".into()),
            host: "h".into(),
            pid: 1,
            devices: vec!["cpu".into()],
            isa: "avx2".into(),
            run_id: None,
        };
        let exit = coordinator.dial(&hello, Duration::from_millis(300)).await.err().unwrap();
        assert_eq!(exit.code, ExitCode::Unavailable);
        assert!(exit.reason.contains(&format!("http://127.0.0.1:{port}")), "{exit}");
    }

    #[test]
    fn waits_grow_and_end() {
        let worker = WorkerId("w".into());
        let mut backoff = Backoff::until(Duration::from_secs(3600), &worker);
        let waits: Vec<_> = (0..10).filter_map(|_| backoff.next_wait()).collect();
        assert!(waits[0] <= Backoff::FIRST && waits[9] >= Backoff::MOST / 2);
        assert!(Backoff::until(Duration::ZERO, &worker).next_wait().is_none());
    }
}
