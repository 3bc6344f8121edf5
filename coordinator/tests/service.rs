//! A coordinator on a loopback port, and workers that report without computing.

#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::records::{hash, state, write_checkpoint};
use common::worker::{FakeWorker, connect};
use common::{config, recipe};
use lockstep_coordinator::status_file::StatusFile;
use lockstep_coordinator::store::RunReader;
use lockstep_coordinator::{Coordinator, CoordinatorConfig, CoordinatorError, Outcome, Progress};
use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Generation, Step};
use lockstep_proto::status::{Control, Phase, Status};
use lockstep_proto::transfer::{DownloadPart, DownloadRequest};
use lockstep_proto::wire::pb;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::{Code, Request};

struct Serving {
    address: std::net::SocketAddr,
    outcome: JoinHandle<Outcome>,
    news: mpsc::Receiver<Progress>,
    stop: tokio::sync::oneshot::Sender<String>,
}

async fn serve(config: CoordinatorConfig) -> Serving {
    let bound = Coordinator::bind(config).await.unwrap();
    let address = bound.local_addr();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let (observer, news) = mpsc::channel(1024);
    let shutdown = async {
        match stopped.await {
            Ok(reason) => reason,
            Err(_) => std::future::pending().await,
        }
    };
    let outcome = tokio::spawn(async move { bound.serve(shutdown, observer).await.unwrap() });
    Serving { address, outcome, news, stop }
}

/// A whole run of one worker.
async fn whole_run(run: &TempDir) -> (Outcome, Vec<Progress>) {
    let mut serving = serve(config(run.path(), false)).await;
    let finish = FakeWorker::new(serving.address, "w").await.follow(None).await.unwrap().unwrap();
    assert_eq!(finish.code, ExitCode::Done, "{}", finish.reason);
    let mut news = Vec::new();
    while let Some(progress) = serving.news.recv().await {
        news.push(progress);
    }
    (serving.outcome.await.unwrap(), news)
}

/// Lines of `metrics.jsonl` as objects.
fn metrics(run: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_goes_from_joining_to_the_end() {
    let run = tempfile::tempdir().unwrap();
    let (outcome, news) = whole_run(&run).await;
    assert_eq!(outcome.code, ExitCode::Done, "{}", outcome.reason);
    assert_eq!(outcome.final_state_sha256, Some(hash(state(6, 1))));

    let lines = metrics(run.path());
    assert_eq!(lines.iter().map(|line| line["step"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    assert_eq!(lines[2]["samples"], 8, "the short last batch");
    assert_eq!(lines[4]["loss"].as_f64(), Some(1.0 / 7.0), "to the last bit");
    let keys = [
        "step",
        "epoch",
        "generation",
        "world_size",
        "lr",
        "loss",
        "error",
        "samples",
        "images_per_s",
        "data_s",
        "compute_s",
        "comm_s",
    ];
    let found: Vec<&String> = lines[0].as_object().unwrap().keys().collect();
    assert_eq!(found.len(), keys.len());
    assert!(keys.iter().all(|key| found.iter().any(|found| found == key)), "{found:?}");

    let csv = std::fs::read_to_string(run.path().join("epochs.csv")).unwrap();
    let rows: Vec<&str> = csv.lines().collect();
    assert!(rows[0].starts_with("epoch,step,images,lr,train_loss"), "{csv}");
    assert!(rows[1].starts_with("0,0,0,,,,0.5,0.5,0,0,,1"), "{csv}");
    assert_eq!(rows.len(), 4, "{csv}");

    let steps = news.iter().filter(|news| matches!(news, Progress::Step(_))).count();
    assert_eq!(steps, 6);
    let status = news.iter().rev().find_map(|news| match news {
        Progress::Status(status) => Some(status),
        _ => None,
    });
    assert_eq!(status.unwrap().phase, Phase::Done);
    assert!(!run.path().join("coordinator.json").exists());
    let provenance = std::fs::read_to_string(run.path().join("provenance.json")).unwrap();
    assert!(provenance.contains("\"instruction_set\": \"avx2\""), "{provenance}");
    assert_eq!(std::fs::read_dir(run.path().join("tensorboard")).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn derived_files_are_rebuilt_from_the_store() {
    let run = tempfile::tempdir().unwrap();
    let (first, _) = whole_run(&run).await;
    let names = ["metrics.jsonl", "epochs.csv"];
    let read = || names.map(|name| std::fs::read_to_string(run.path().join(name)).unwrap());
    let whole = read();
    let damages = [
        whole[0][..whole[0].len() - 7].to_owned(), // cut inside a line
        whole[0].lines().take(4).map(|line| format!("{line}\n")).collect(), // lines lost
        format!("{}{}", whole[0], whole[0].lines().last().unwrap()), // a line doubled
        String::new(),
    ];
    for damaged in damages {
        std::fs::write(run.path().join("metrics.jsonl"), damaged).unwrap();
        std::fs::write(run.path().join("epochs.csv"), "nonsense").unwrap();
        let outcome = serve(config(run.path(), true)).await.outcome.await.unwrap();
        assert_eq!((outcome.code, &outcome.final_state_sha256), (ExitCode::Done, &first.final_state_sha256));
        assert_eq!(read(), whole);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_worker_is_replaced_and_no_step_is_doubled_or_lost() {
    let run = tempfile::tempdir().unwrap();
    let serving = serve(config(run.path(), false)).await;
    let died = FakeWorker::new(serving.address, "first").await.follow(Some(Step(5))).await.unwrap();
    assert_eq!(died, None);
    let finish = FakeWorker::new(serving.address, "second").await.follow(None).await.unwrap().unwrap();
    assert_eq!(finish.code, ExitCode::Done, "{}", finish.reason);
    assert_eq!(serving.outcome.await.unwrap().code, ExitCode::Done);
    let lines = metrics(run.path());
    assert_eq!(lines.iter().map(|line| line["step"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    let mut positions: BTreeMap<u64, u64> = BTreeMap::new();
    RunReader::open(run.path())
        .unwrap()
        .each_ledger_row(|row| *positions.entry(row.epoch.0).or_default() += row.range.len)
        .unwrap();
    assert_eq!(positions, BTreeMap::from([(1, 40), (2, 40)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_the_run_as_resumable() {
    let run = tempfile::tempdir().unwrap();
    let serving = serve(config(run.path(), false)).await;
    let published = StatusFile::read(run.path()).unwrap();
    assert_eq!(published.address, format!("http://{}", serving.address));
    let mut client = connect(serving.address).await;
    let status = client.status(pb::StatusRequest {}).await.unwrap().into_inner();
    let status = Status::try_from(status).unwrap();
    assert_eq!((status.phase, status.run_id), (Phase::Waiting, published.run_id));
    let stop = Control::Stop { reason: "enough for today".into() };
    client.control(pb::ControlRequest::from(stop)).await.unwrap();
    let outcome = serving.outcome.await.unwrap();
    assert_eq!((outcome.code, outcome.final_state_sha256), (ExitCode::TempFail, None));
    assert!(outcome.reason.contains("enough for today"), "{}", outcome.reason);

    let serving = serve(config(run.path(), true)).await;
    serving.stop.send("a signal".into()).unwrap();
    assert_eq!(serving.outcome.await.unwrap().code, ExitCode::TempFail);
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_see_the_run_and_are_let_go_at_its_end() {
    let run = tempfile::tempdir().unwrap();
    let serving = serve(config(run.path(), false)).await;
    let mut states = connect(serving.address).await.watch(pb::WatchRequest {}).await.unwrap().into_inner();
    FakeWorker::new(serving.address, "w").await.follow(None).await.unwrap();
    let mut last = None;
    while let Some(status) = states.message().await.unwrap() {
        last = Some(Status::try_from(status).unwrap());
    }
    let last = last.unwrap();
    assert_eq!((last.phase, last.step), (Phase::Done, Step(6)));
    assert_eq!(serving.outcome.await.unwrap().code, ExitCode::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_without_the_token_are_refused_with_the_remedy() {
    let run = tempfile::tempdir().unwrap();
    let serving = serve(CoordinatorConfig { token: Some("secret".into()), ..config(run.path(), false) }).await;
    let mut client = connect(serving.address).await;
    let with = |token: Option<&str>| {
        let mut request = Request::new(pb::StatusRequest {});
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        request
    };
    for token in [None, Some("guess"), Some("secret and more")] {
        let refused = client.status(with(token)).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert!(refused.message().contains("LOCKSTEP_TOKEN"), "{refused}");
    }
    client.status(with(Some("secret"))).await.unwrap();
    let refused = FakeWorker::new(serving.address, "w").await.follow(None).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    serving.stop.send("done".into()).unwrap();
    serving.outcome.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_travel_whole_or_not_at_all() {
    let run = tempfile::tempdir().unwrap();
    whole_run(&run).await;
    // A larger run, so that there is a coordinator to talk to.
    let mut larger = config(run.path(), true);
    larger.recipe.train.epochs = 3;
    let serving = serve(larger).await;
    let run_id = StatusFile::read(run.path()).unwrap().run_id;
    let mut worker = FakeWorker::new(serving.address, "w").await;

    let ask = |run_id: &str, dir: &str| {
        pb::DownloadRequest::from(DownloadRequest { run_id: run_id.to_owned(), dir: dir.to_owned() })
    };
    let mut parts = worker.client().download_checkpoint(ask(&run_id, "step-6")).await.unwrap().into_inner();
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    while let Some(part) = parts.message().await.unwrap() {
        match DownloadPart::try_from(part).unwrap() {
            DownloadPart::File { name, .. } => files.push((name, Vec::new())),
            DownloadPart::Chunk { bytes } => files.last_mut().unwrap().1.extend(bytes),
        }
    }
    let folder = run.path().join("checkpoints/step-6");
    assert_eq!(files.last().unwrap().0, "manifest.json", "the manifest comes last");
    for (name, bytes) in &files {
        assert_eq!(*bytes, std::fs::read(folder.join(name)).unwrap(), "{name}");
    }
    for (dir, code) in [
        ("step-99", Code::NotFound),
        ("step-06", Code::NotFound),
        (".", Code::InvalidArgument),
        ("..", Code::InvalidArgument),
        ("../checkpoints/step-6", Code::InvalidArgument),
        ("/etc", Code::InvalidArgument),
    ] {
        let refused = worker.client().download_checkpoint(ask(&run_id, dir)).await.unwrap_err();
        assert_eq!(refused.code(), code, "{dir}");
    }
    let refused = worker.client().download_checkpoint(ask("another", "step-6")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);

    let upload = tempfile::tempdir().unwrap();
    write_checkpoint(upload.path(), state(7, 1));
    worker.set_run_id("another");
    let refused = worker.upload(upload.path(), Generation(9), state(7, 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    worker.set_run_id(&run_id);
    let refused = worker.upload(upload.path(), Generation(0), state(7, 1)).await.unwrap_err();
    assert!(refused.message().contains("generation 0 is over"), "{refused}");
    let refused = worker.upload(upload.path(), Generation(9), state(8, 1)).await.unwrap_err();
    assert!(refused.message().contains("its manifest holds step 7"), "{refused}");
    // The header is right about what it sends, but the manifest is not.
    std::fs::write(upload.path().join("model.safetensors"), "something else").unwrap();
    let refused = worker.upload(upload.path(), Generation(9), state(7, 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::DataLoss, "{refused}");
    let left: Vec<String> = std::fs::read_dir(run.path().join("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !["step-0", "step-3", "step-6"].contains(&name.as_str()))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    serving.stop.send("done".into()).unwrap();
    serving.outcome.await.unwrap();
}

#[tokio::test]
async fn a_stream_that_does_not_begin_with_hello_is_refused() {
    let run = tempfile::tempdir().unwrap();
    let serving = serve(config(run.path(), false)).await;
    let mut client = connect(serving.address).await;
    let message = pb::FromWorker { kind: None };
    let mut stream = client.train(tokio_stream::iter([message])).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap_err().code(), Code::InvalidArgument);
    serving.stop.send("done".into()).unwrap();
    serving.outcome.await.unwrap();
}

#[tokio::test]
async fn a_coordinator_that_cannot_start_says_why() {
    let run = tempfile::tempdir().unwrap();
    let fail = async |config: CoordinatorConfig| {
        let error: CoordinatorError = Coordinator::bind(config).await.unwrap_err();
        (error.exit_code(), error.to_string())
    };
    let _first = Coordinator::bind(config(run.path(), false)).await.unwrap();

    let (code, text) = fail(config(run.path(), false)).await;
    assert_eq!(code, ExitCode::Usage);
    assert!(text.contains("holds a run already; continue it with --resume"), "{text}");

    let (code, text) = fail(config(run.path(), true)).await;
    assert_eq!(code, ExitCode::CantCreate);
    assert!(text.contains(&format!("process {}", std::process::id())), "{text}");

    let mut other = recipe();
    other.train.batch = 8;
    for (resume, expected) in [(false, "holds another recipe"), (true, "cannot resume")] {
        let (code, text) = fail(CoordinatorConfig { recipe: other.clone(), ..config(run.path(), resume) }).await;
        assert_eq!(code, ExitCode::Usage);
        assert!(text.contains(expected) && text.contains("train.batch"), "{text}");
    }

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (code, text) = fail(CoordinatorConfig { listen: address, ..config(&run.path().join("b"), false) }).await;
    assert_eq!(code, ExitCode::CantCreate);
    assert!(text.contains(&address.to_string()), "{text}");

    let exposed = CoordinatorConfig { listen: ([0, 0, 0, 0], 0).into(), ..config(&run.path().join("c"), false) };
    let (code, text) = fail(exposed).await;
    assert_eq!(code, ExitCode::Usage);
    assert!(text.contains("--token") && text.contains("--insecure"), "{text}");

    let file = run.path().join("file");
    std::fs::write(&file, "").unwrap();
    let (code, text) = fail(config(&file.join("run"), false)).await;
    assert_eq!(code, ExitCode::CantCreate);
    assert!(text.contains("file/run") && text.contains("os error"), "{text}");
}
