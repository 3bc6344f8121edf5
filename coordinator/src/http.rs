//! What a cluster asks over HTTP: whether the process lives, whether it is ready, how the run stands. Read only.
//!
//! | path | answer |
//! |---|---|
//! | `/healthz` | 200 while the process serves |
//! | `/readyz` | 200 once the run directory is held and workers may join; 503 before |
//! | `/metrics` | Prometheus |
//! | `/status` | JSON, as `lockstep status --json` |

use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use lockstep_proto::message::GpuHealth;
use lockstep_proto::status::{Phase, Status};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What Prometheus wants to be told that it gets.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The state of the run, once there is one.
type Seen = Option<watch::Receiver<Status>>;

/// An HTTP server; it goes when this does.
#[derive(Debug)]
pub(crate) struct Http {
    address: SocketAddr,
    ready: watch::Sender<Seen>,
    _server: JoinSet<()>,
}

impl Http {
    /// Serves from now on, not ready yet.
    pub(crate) fn start(listener: TcpListener) -> std::io::Result<Self> {
        let address = listener.local_addr()?;
        let (ready, seen) = watch::channel(None);
        let mut server = JoinSet::new();
        server.spawn(async move {
            if let Err(error) = axum::serve(listener, router(seen)).await {
                tracing::warn!("HTTP ended: {error}");
            }
        });
        Ok(Self { address, ready, _server: server })
    }

    /// Where.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The run is held; `status` is its state from now on.
    pub(crate) fn is_ready(&self, status: watch::Receiver<Status>) {
        self.ready.send_replace(Some(status));
    }
}

fn router(seen: watch::Receiver<Seen>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "lives\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .with_state(seen)
}

/// The answer before there is a run.
const EARLY: (StatusCode, &str) = (StatusCode::SERVICE_UNAVAILABLE, "not ready: the run directory is being opened\n");

/// What `tell` makes of the run's state, once there is one.
fn answer<T: IntoResponse>(seen: &watch::Receiver<Seen>, tell: impl FnOnce(Status) -> T) -> Response {
    let status = seen.borrow().as_ref().map(|status| status.borrow().clone());
    status.map_or_else(|| EARLY.into_response(), |status| tell(status).into_response())
}

async fn readyz(State(seen): State<watch::Receiver<Seen>>) -> Response {
    answer(&seen, |_| "ready\n")
}

async fn status(State(seen): State<watch::Receiver<Seen>>) -> Response {
    answer(&seen, axum::Json)
}

async fn metrics(State(seen): State<watch::Receiver<Seen>>) -> Response {
    answer(&seen, |status| ([(header::CONTENT_TYPE, OPENMETRICS)], exposition(&status)))
}

/// What workers tell of each of their GPUs.
type GpuGauge = (&'static str, &'static str, fn(&GpuHealth) -> f64);
const GPU_GAUGES: [GpuGauge; 4] = [
    ("gpu_utilization", "Share of the last moments in which a kernel ran", |gpu| {
        f64::from(gpu.utilization_percent) / 100.0
    }),
    ("gpu_memory_used_bytes", "Device memory in use", |gpu| gpu.memory_used as f64),
    ("gpu_memory_total_bytes", "Device memory", |gpu| gpu.memory_total as f64),
    ("gpu_temperature_celsius", "Temperature of the GPU", |gpu| f64::from(gpu.temperature_c)),
];

/// The state as gauges. What is unknown is left out.
fn exposition(status: &Status) -> String {
    let mut registry = Registry::with_prefix("lockstep");
    let labels = vec![("run_id", status.run_id.clone()), ("name", status.name.clone())];
    registry.register("run", "The run", Info::new(labels));
    let mut gauge = |name: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            let gauge = Gauge::<f64, std::sync::atomic::AtomicU64>::default();
            gauge.set(value);
            registry.register(name, help, gauge);
        }
    };
    let count = |n: u64| Some(n as f64);
    gauge("step", "Last committed step", count(status.step.0));
    gauge("steps_planned", "Steps of the whole run", count(status.total_steps));
    gauge("epoch", "Epoch of the last committed step", count(status.epoch.0));
    gauge("generation", "The open generation, or the last one", count(status.generation.0));
    gauge("lineage", "The current history; a rollback begins a new one", count(status.lineage.0));
    gauge("world_size", "Ranks of the open generation", count(status.world_size.into()));
    gauge("workers", "Worker processes that are connected", count(status.members.len() as u64));
    gauge("loss", "Training loss of the last committed step", status.loss);
    gauge("error", "Training error of the last committed step, a fraction", status.error);
    gauge("learning_rate", "Learning rate of the last committed step", status.lr);
    gauge("test_error", "Test error of the last evaluation, a fraction", status.test_error);
    gauge("images_per_second", "Of all ranks together, lately", status.images_per_s);
    gauge("remaining_seconds", "To the end at that rate", status.eta_s);
    gauge("updated_timestamp_seconds", "When this was true", Some(status.updated_unix_s));
    for (name, help, of) in GPU_GAUGES {
        let family = Family::<Vec<(&str, String)>, Gauge<f64, std::sync::atomic::AtomicU64>>::default();
        for (member, gpu) in status.members.iter().flat_map(|member| member.gpus.iter().map(move |gpu| (member, gpu))) {
            let labels = vec![("worker", member.worker.0.clone()), ("device", gpu.device.clone())];
            family.get_or_create(&labels).set(of(gpu));
        }
        registry.register(name, help, family);
    }
    let phases = Family::<Vec<(&str, String)>, Gauge>::default();
    for phase in Phase::ALL {
        phases.get_or_create(&vec![("phase", phase.name().to_owned())]).set((phase == status.phase).into());
    }
    registry.register("phase", "What is going on: 1 for one of them", phases);
    let mut text = String::new();
    // A string takes all that is written to it.
    let _ = encode(&mut text, &registry);
    text
}

#[cfg(test)]
mod tests {
    use lockstep_proto::ids::{Step, WorkerId};
    use lockstep_proto::status::MemberStatus;

    use super::*;

    #[test]
    fn gpus_are_told_by_worker_and_device() {
        let gpu = GpuHealth {
            device: "cuda:1".into(),
            utilization_percent: 97,
            memory_used: 1 << 30,
            memory_total: 80 << 30,
            temperature_c: 64,
        };
        let member = MemberStatus {
            worker: WorkerId("w".into()),
            host: "h".into(),
            pid: 1,
            devices: vec!["cuda:1".into()],
            ranks: Vec::new(),
            last_step: Step(0),
            last_report_age_s: 0.0,
            gpus: vec![gpu],
        };
        let text = exposition(&Status { members: vec![member], ..Status::default() });
        for line in [
            "lockstep_gpu_utilization{worker=\"w\",device=\"cuda:1\"} 0.97",
            "lockstep_gpu_temperature_celsius{worker=\"w\",device=\"cuda:1\"} 64.0",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn the_exposition_has_what_is_known_and_leaves_out_what_is_not() {
        let status = Status { step: Step(7), loss: Some(1.5), phase: Phase::Training, ..Status::default() };
        let text = exposition(&status);
        for line in ["lockstep_step 7.0", "lockstep_loss 1.5", "lockstep_phase{phase=\"training\"} 1", "# EOF"] {
            assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
        }
        assert!(text.contains("lockstep_phase{phase=\"done\"} 0"), "{text}");
        assert!(!text.contains("test_error"), "{text}");
    }
}
