//! Configuration → bound → served: how the command runs a coordinator.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_proto::exit::ExitCode;
use lockstep_proto::recipe::Recipe;
use lockstep_proto::wire::TlsFiles;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_stream::Stream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::server::Connected;
use tonic::transport::{Server, ServerTlsConfig};

use crate::artifacts::Artifacts;
use crate::engine::{Effect, Engine, EngineConfig};
use crate::error::CoordinatorError;
use crate::http::Http;
use crate::progress::Progress;
use crate::run_dir::{self, RunDir};
use crate::runtime::Runtime;
use crate::service::Service;
use crate::status_file::{Published, StatusFile};
use crate::store::{Store, Writer, Writing};

/// Inputs that wait for the runtime; more wait in their streams.
const INPUTS: usize = 1024;
/// A peer that does not answer a ping is gone within `elastic.stall_timeout_s`, of which so manyth is between two pings:
/// so one that hears nothing is found too.
const PINGS: u32 = 3;
/// How long calls may take to end once the run is over.
const GRACE: Duration = Duration::from_secs(10);

/// What a coordinator is told.
#[derive(Clone, Debug)]
pub struct CoordinatorConfig {
    /// Resolved and checked.
    pub recipe: Recipe,
    /// Where the run is kept; see [`run_dir::fresh`] and [`run_dir::latest`] for the default.
    pub run_dir: PathBuf,
    /// Whether `latest` beside it is to point at it.
    pub link_latest: bool,
    /// Whether it may hold a run already.
    pub resume: bool,
    /// Where to listen; port 0 takes any that is free.
    pub listen: SocketAddr,
    /// What callers must show.
    pub token: Option<String>,
    /// Whether an address that others reach needs no token.
    pub insecure: bool,
    /// Certificates, for TLS.
    pub tls: TlsFiles,
    /// Where to answer over HTTP; port 0 takes any that is free.
    pub http: Option<SocketAddr>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What the process exits with.
    pub code: ExitCode,
    /// Why, for a person.
    pub reason: String,
    /// Hash of the final state, the run's identity, when it is complete.
    pub final_state_sha256: Option<String>,
}

/// What is asked of a coordinator that is to go; each with who asks, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// The run ends, to be resumed: what was reached is saved, workers are told to leave.
    Stop(String),
    /// Another coordinator will go on with the run: workers keep what they hold and wait for it.
    HandOver(String),
}

impl From<String> for Shutdown {
    fn from(reason: String) -> Self {
        Self::Stop(reason)
    }
}

/// A coordinator that holds its run and its address, and serves neither yet.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    http: Option<Http>,
    opened: Opened,
}

/// A coordinator that holds its run; connections come from the caller.
#[derive(Debug)]
pub struct Opened {
    address: SocketAddr,
    token: Option<String>,
    tls: Option<ServerTlsConfig>,
    published: Published,
    run: Run,
}

/// A run that this process may write.
#[derive(Debug)]
struct Run {
    run_dir: RunDir,
    run_id: String,
    stall_timeout: Duration,
    store: Store,
    artifacts: Artifacts,
    engine: Engine,
    final_state_sha256: Option<String>,
    effects: Vec<Effect>,
}

/// Where a coordinator begins: [`Coordinator::bind`].
#[derive(Debug)]
pub struct Coordinator;

impl Coordinator {
    /// Takes the address, the run directory and its lease; loads the history and proves the checkpoints.
    ///
    /// # Errors
    /// See [`CoordinatorError`]; nothing is left behind but, perhaps, a new run directory.
    pub async fn bind(config: CoordinatorConfig) -> Result<Bound, CoordinatorError> {
        let wanted = config.listen;
        if !wanted.ip().is_loopback() && config.token.is_none() && !config.tls.is_mutual() && !config.insecure {
            return Err(CoordinatorError::Exposed { address: wanted });
        }
        let listener = listen(wanted).await?;
        let address = listener.local_addr().map_err(|error| CoordinatorError::Listen { address: wanted, error })?;
        // Before the run is opened: whoever asks meanwhile hears that it is not ready.
        let http = match config.http {
            None => None,
            Some(wanted) => {
                let refused = |error| CoordinatorError::Listen { address: wanted, error };
                Some(Http::start(listen(wanted).await?).map_err(refused)?)
            }
        };
        let config = CoordinatorConfig { listen: address, ..config };
        // Hashes checkpoints: seconds, when they are large.
        let opened = match tokio::task::spawn_blocking(move || Self::open(config)).await {
            Ok(opened) => opened?,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        Ok(Bound { listener, http, opened })
    }

    /// The same without the address: `config.listen` is only what others are told. Blocks.
    ///
    /// # Errors
    /// As for [`bind`](Self::bind).
    pub fn open(config: CoordinatorConfig) -> Result<Opened, CoordinatorError> {
        let (address, token) = (config.listen, config.token.clone());
        let tls = config.tls.server()?;
        let run = Run::open(config)?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let published = StatusFile::publish(run.run_dir.path(), (scheme, address), &run.run_id)?;
        Ok(Opened { address, token, tls, published, run })
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, CoordinatorError> {
    TcpListener::bind(address).await.map_err(|error| CoordinatorError::Listen { address, error })
}

impl Run {
    fn open(config: CoordinatorConfig) -> Result<Self, CoordinatorError> {
        let recipe = if config.resume { run_dir::gone_on_with(&config.run_dir, config.recipe) } else { config.recipe };
        let run_dir = RunDir::prepare(&config.run_dir, &recipe, config.resume)?;
        let mut store = Store::open(run_dir.path())?;
        run_dir.resume(&recipe)?;
        run_dir.sweep();
        if config.link_latest {
            run_dir::link_latest(run_dir.path())?;
        }
        let (history, bad) = store.load_history()?;
        let artifacts = Artifacts::open(run_dir.path(), &store, recipe.log.tensorboard)?;
        let run_id = store.run_id().to_owned();
        let final_state_sha256 = store.final_state_sha256()?;
        let stall_timeout = Duration::from_secs_f64(recipe.elastic.stall_timeout_s);
        let engine_config = EngineConfig {
            recipe,
            run_id: run_id.clone(),
            run_dir: run_dir.path().display().to_string(),
            run_nonce: run_dir.nonce().to_owned(),
        };
        match Engine::new(engine_config, history) {
            Ok((engine, effects)) => {
                Ok(Self { run_dir, run_id, stall_timeout, store, artifacts, engine, final_state_sha256, effects })
            }
            Err(error) => {
                store.close()?;
                Err(CoordinatorError::Engine { error, bad: bad.into_iter().map(|bad| bad.reason).collect() })
            }
        }
    }
}

impl Bound {
    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.opened.address
    }

    /// The same, as workers are told it.
    pub fn url(&self) -> String {
        let scheme = if self.opened.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.opened.address)
    }

    /// Where it answers over HTTP.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(Http::address)
    }

    /// The run directory, absolute.
    pub fn run_dir(&self) -> &Path {
        self.opened.run.run_dir.path()
    }

    /// Identity of the run.
    pub fn run_id(&self) -> &str {
        &self.opened.run.run_id
    }

    /// Serves the run to its end. When `shutdown` resolves, the run is asked to end as resumable, or handed over;
    /// `observer` is told what happens, and misses what it does not take in time.
    ///
    /// # Errors
    /// When it cannot begin. Whatever goes wrong afterwards is in the outcome.
    pub async fn serve(
        self,
        shutdown: impl Future<Output: Into<Shutdown>>,
        observer: mpsc::Sender<Progress>,
    ) -> Result<Outcome, CoordinatorError> {
        let incoming = TcpListenerStream::new(self.listener);
        self.opened.serve_with(incoming, self.http, Writing::Thread, (shutdown, observer)).await
    }
}

impl Opened {
    /// Serves the run to its end, over the connections of `incoming`. See [`Bound::serve`].
    ///
    /// # Errors
    /// When it cannot begin. Whatever goes wrong afterwards is in the outcome.
    pub async fn serve<S>(
        self,
        incoming: impl Stream<Item = io::Result<S>> + Send + 'static,
        writing: Writing,
        shutdown: impl Future<Output: Into<Shutdown>>,
        observer: mpsc::Sender<Progress>,
    ) -> Result<Outcome, CoordinatorError>
    where
        S: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    {
        self.serve_with(incoming, None, writing, (shutdown, observer)).await
    }

    async fn serve_with<S>(
        self,
        incoming: impl Stream<Item = io::Result<S>> + Send + 'static,
        http: Option<Http>,
        writing: Writing,
        (shutdown, observer): (impl Future<Output: Into<Shutdown>>, mpsc::Sender<Progress>),
    ) -> Result<Outcome, CoordinatorError>
    where
        S: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    {
        let Self { address, token, tls, published, run } = self;
        let path = run.run_dir.path().to_owned();
        let stall = run.stall_timeout;
        let writer = Writer::start(run.store, run.artifacts, observer.clone(), writing)
            .map_err(|error| CoordinatorError::Io { path: path.clone(), error })?;
        let (inputs, received) = mpsc::channel(INPUTS);
        let (status, seen) = watch::channel(Default::default());

        let service =
            Service { run_id: run.run_id.clone(), run_dir: path.clone(), inputs: inputs.clone(), status: seen };
        if let Some(http) = &http {
            http.is_ready(service.status.clone());
        }
        let (over, is_over) = oneshot::channel::<()>();
        // Before any worker is let in: whoever asks needs no token.
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_service_status("", tonic_health::ServingStatus::Serving).await;
        let mut builder = Server::builder();
        if let Some(tls) = tls {
            builder = builder.tls_config(tls).map_err(CoordinatorError::BadTls)?;
        }
        let mut server = JoinSet::new();
        server.spawn(
            builder
                .http2_keepalive_interval(Some(stall / PINGS))
                .http2_keepalive_timeout(Some(stall - stall / PINGS))
                .tcp_nodelay(true)
                .add_service(health_service)
                .add_service(service.into_server(token.as_deref()))
                .serve_with_incoming_shutdown(incoming, async {
                    let _ = is_over.await;
                }),
        );

        tracing::info!(%address, run_dir = %path.display(), "coordinator listens");
        let runtime =
            Runtime::new((run.engine, run.final_state_sha256), writer, (inputs, received), (status, observer), &path);
        let outcome = runtime.run(run.effects, shutdown, &mut server).await;

        // Every stream was ended by the runtime; connections may now close in good order, and then must.
        drop(over);
        let _ = tokio::time::timeout(GRACE, server.join_next()).await;
        server.shutdown().await;
        drop(published);
        Ok(outcome)
    }
}
