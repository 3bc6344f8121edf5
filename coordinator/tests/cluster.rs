//! What a cluster needs of a coordinator: TLS on both sides, health without a token, metrics.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod common;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use common::config;
use common::worker::FakeWorker;
use lockstep_coordinator::{Bound, Coordinator, CoordinatorConfig, CoordinatorError, Outcome};
use lockstep_proto::exit::ExitCode;
use lockstep_proto::wire::TlsFiles;
use lockstep_proto::wire::pb;
use lockstep_proto::wire::pb::lockstep_client::LockstepClient;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

fn serve(bound: Bound) -> (oneshot::Sender<()>, JoinHandle<Outcome>) {
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async {
        let _ = stopped.await;
        "the test is over".to_owned()
    };
    let (observer, _) = mpsc::channel(1);
    (stop, tokio::spawn(async move { bound.serve(shutdown, observer).await.unwrap() }))
}

/// The answer to a GET, head and body.
async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn http_tells_life_readiness_metrics_and_status() {
    let run = tempfile::tempdir().unwrap();
    let with_http = CoordinatorConfig { http: Some(([127, 0, 0, 1], 0).into()), ..config(run.path(), false) };
    let bound = Coordinator::bind(with_http).await.unwrap();
    let (http, address) = (bound.http_addr().unwrap(), bound.local_addr());
    assert!(get(http, "/healthz").await.starts_with("HTTP/1.1 200"));
    for path in ["/readyz", "/metrics", "/status"] {
        assert!(get(http, path).await.starts_with("HTTP/1.1 503"), "{path}: it does not serve yet");
    }
    let (stop, outcome) = serve(bound);
    while !get(http, "/readyz").await.starts_with("HTTP/1.1 200") {}

    // As far as step 4, and no end: what is asked then is answered by a run that goes on.
    let mut worker = FakeWorker::new(address, "w").await;
    worker.follow(Some(lockstep_proto::ids::Step(4))).await.unwrap();
    let metrics = loop {
        let metrics = get(http, "/metrics").await;
        if metrics.contains("\nlockstep_step 3.0\n") {
            break metrics;
        }
    };
    assert!(metrics.contains("application/openmetrics-text") && metrics.ends_with("# EOF\n"), "{metrics}");
    let status = get(http, "/status").await;
    let status: serde_json::Value = serde_json::from_str(status.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(status["step"], 3);
    assert!(get(http, "/").await.starts_with("HTTP/1.1 404"));
    stop.send(()).unwrap();
    outcome.await.unwrap();
    assert!(tokio::net::TcpStream::connect(http).await.is_err(), "HTTP ends with the run");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_needs_no_token() {
    let run = tempfile::tempdir().unwrap();
    let guarded = CoordinatorConfig { token: Some("secret".into()), ..config(run.path(), false) };
    let bound = Coordinator::bind(guarded).await.unwrap();
    let address = bound.local_addr();
    let (stop, outcome) = serve(bound);
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let answer = HealthClient::new(channel.clone()).check(HealthCheckRequest { service: String::new() }).await.unwrap();
    assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
    let refused = LockstepClient::new(channel).status(pb::StatusRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    stop.send(()).unwrap();
    outcome.await.unwrap();
}

/// An authority, and certificates of it, as files.
struct Authority {
    folder: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new(folder: &Path) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(folder.join("ca.crt"), issuer.pem()).unwrap();
        Self { folder: folder.to_owned(), issuer }
    }

    fn ca(&self) -> Option<PathBuf> {
        Some(self.folder.join("ca.crt"))
    }

    /// A certificate and its key, for `localhost`.
    fn certify(&self, name: &str) -> (Option<PathBuf>, Option<PathBuf>) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let (crt, pem) = (self.folder.join(format!("{name}.crt")), self.folder.join(format!("{name}.key")));
        std::fs::write(&crt, cert.pem()).unwrap();
        std::fs::write(&pem, key.serialize_pem()).unwrap();
        (Some(crt), Some(pem))
    }

    fn files(&self, name: &str) -> TlsFiles {
        let (cert, key) = self.certify(name);
        TlsFiles { cert, key, ca: self.ca() }
    }
}

async fn dial(port: u16, files: &TlsFiles) -> Result<LockstepClient<Channel>, tonic::transport::Error> {
    let url = format!("https://localhost:{port}");
    let tls = files.client(&url).unwrap().unwrap();
    Ok(LockstepClient::new(Endpoint::from_shared(url).unwrap().tls_config(tls)?.connect().await?))
}

/// Whether a call gets through.
async fn is_heard(port: u16, files: &TlsFiles) -> bool {
    match dial(port, files).await {
        Ok(mut client) => client.status(pb::StatusRequest {}).await.is_ok(),
        Err(_) => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_mutual_tls_only_certificates_of_the_authority_get_through_and_no_token_is_needed() {
    let run = tempfile::tempdir().unwrap();
    let ours = Authority::new(&run.path().join("ours"));
    let theirs = Authority::new(&run.path().join("theirs"));
    let everywhere = CoordinatorConfig {
        listen: ([0, 0, 0, 0], 0).into(),
        tls: ours.files("coordinator"),
        ..config(&run.path().join("run"), false)
    };
    let bound = Coordinator::bind(everywhere).await.unwrap();
    let port = bound.local_addr().port();
    assert!(bound.url().starts_with("https://"), "{}", bound.url());
    let (stop, outcome) = serve(bound);

    assert!(is_heard(port, &ours.files("worker")).await);
    let without = TlsFiles { ca: ours.ca(), ..TlsFiles::default() };
    assert!(!is_heard(port, &without).await, "no certificate");
    let strangers = TlsFiles { ca: ours.ca(), ..theirs.files("worker") };
    assert!(!is_heard(port, &strangers).await, "a certificate of another authority");
    let misled = TlsFiles { ca: theirs.ca(), ..ours.files("worker") };
    assert!(!is_heard(port, &misled).await, "a worker that trusts another authority");
    let plain = Endpoint::from_shared(format!("http://localhost:{port}")).unwrap().connect().await;
    let is_heard_plainly = match plain {
        Ok(channel) => LockstepClient::new(channel).status(pb::StatusRequest {}).await.is_ok(),
        Err(_) => false,
    };
    assert!(!is_heard_plainly);
    stop.send(()).unwrap();
    outcome.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_are_none_are_refused_before_anything_is_written() {
    let run = tempfile::tempdir().unwrap();
    let (cert, key) = (run.path().join("a.crt"), run.path().join("a.key"));
    std::fs::write(&cert, "not PEM").unwrap();
    let missing = TlsFiles { cert: Some(cert), key: Some(key), ca: None };
    let target = run.path().join("run");
    let error = Coordinator::bind(CoordinatorConfig { tls: missing, ..config(&target, false) }).await.err().unwrap();
    assert!(matches!(error, CoordinatorError::Tls(_)), "{error}");
    assert_eq!(error.exit_code(), ExitCode::NoInput);
    assert!(!target.exists());
}
