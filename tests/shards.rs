//! One set of images three times over: in a folder, in shards, in shards behind a web server. The same run from each.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::IntoResponse as _;
use common::{Course, audited, course, end, last_tensors, lockstep, train};
use lockstep_jpeg::{Encoding, Pixels, encode};
use tower_http::services::ServeDir;

/// 48 training and 12 test images of four classes; sizes and colours tell them apart.
fn draw(root: &Path) {
    for (split, num) in [("train", 12), ("val", 3)] {
        for class in 0..4_u32 {
            let folder = root.join(split).join(format!("n{class:02}"));
            fs::create_dir_all(&folder).unwrap();
            for number in 0..num {
                let (width, height) = (24 + 3 * number, 30 + class);
                let value = |x: u32, y: u32, c: u32| {
                    let phase = f64::from(x * (class + 1) + y * (c + 1) + 5 * number) / 6.0;
                    (120.0 + 100.0 * phase.sin()) as u8
                };
                let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
                let rgb: Vec<u8> = pixels.flat_map(|(x, y)| (0..3).map(move |c| value(x, y, c))).collect();
                let jpeg = encode(Pixels::Rgb, (width, height), &rgb, Encoding::default()).unwrap();
                fs::write(folder.join(format!("n{class:02}_{number}.JPEG")), jpeg).unwrap();
            }
        }
    }
}

/// A web server of files with ranges, until the runtime is dropped.
fn serve(root: &Path) -> (SocketAddr, tokio::runtime::Runtime) {
    started(axum::Router::new().fallback_service(ServeDir::new(root)))
}

fn started(files: axum::Router) -> (SocketAddr, tokio::runtime::Runtime) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move { axum::serve(listener, files).await });
    (address, runtime)
}

/// Such a server that takes 200 ms for a shard, and answers every 20th request of one with an error; it counts them.
fn serve_slowly(root: &Path) -> (SocketAddr, tokio::runtime::Runtime, Arc<AtomicU64>) {
    let asked = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&asked);
    let slow = from_fn(move |request: Request, next: Next| {
        let is_shard = request.uri().path().ends_with(".tar");
        let number = if is_shard { count.fetch_add(1, Ordering::Relaxed) } else { 0 };
        async move {
            if is_shard {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            if number % 20 == 5 { StatusCode::SERVICE_UNAVAILABLE.into_response() } else { next.run(request).await }
        }
    });
    let (address, runtime) = started(axum::Router::new().fallback_service(ServeDir::new(root)).layer(slow));
    (address, runtime, asked)
}

#[track_caller]
fn trained(run: &Path, workers: u32, sets: &[String]) -> (Course, [Vec<u8>; 2]) {
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let common = ["data.normalize=channel", "data.image.crop=16", "data.image.resize=20", "data.test_limit=0"];
    end(&mut train(run, workers, &[&common[..], &sets[..]].concat())).succeeded();
    audited(run);
    (course(run), last_tensors(run))
}

#[test]
fn folder_shards_and_shards_behind_a_web_server_give_the_same_run() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, shards) = (dir.path().join("folder"), dir.path().join("www/shards"));
    draw(&folder);
    let pack = |dest: &Path| lockstep_pack(&folder, dest);
    let packed = pack(&shards);
    assert_eq!(
        (packed["train"].as_u64(), packed["val"].as_u64(), packed["kept"].as_u64()),
        (Some(48), Some(12), Some(0))
    );
    assert_eq!(pack(&shards)["kept"].as_u64(), Some(60), "the same command again finds it done");
    end(lockstep(&["data", "verify"]).arg(&shards)).succeeded();

    let (address, _server) = serve(&dir.path().join("www"));
    let path = |kind: &str, path: &str| vec![format!("data.kind={kind}"), format!("data.path={path}")];
    let cache = format!("data.cache_dir={}", dir.path().join("cache").display());
    let url = format!("http://{address}/shards");
    let mut behind = path("webdataset", &url);
    behind.push(cache);
    let mut uncached = path("webdataset", &url);
    uncached.push("data.cache_bytes=0".into());

    let at = |name: &str| dir.path().join(name);
    let first = trained(&at("1"), 1, &path("image-folder", &folder.to_string_lossy()));
    assert_eq!(first.0.steps.len(), 6, "two steps an epoch, three epochs");
    let losses: Vec<u64> = first.0.steps.iter().map(|step| step[4]).collect();
    assert!(losses.windows(2).all(|pair| pair[0] != pair[1]), "{losses:?}");
    for (name, workers, sets) in
        [("2", 1, path("webdataset", &shards.to_string_lossy())), ("3", 2, behind.clone()), ("4", 1, uncached)]
    {
        let run = trained(&at(name), workers, &sets);
        assert_eq!(run.0, first.0, "{sets:?}");
        assert!(run.1 == first.1, "tensors of {sets:?}");
    }
    assert!(at("cache/blocks").is_dir());
    // blocks keep samples together: another order, the same from disk and from behind the server
    let blocks = ["data.order=blocks", "data.block=8", "data.block_window=2"].map(str::to_owned);
    let near = trained(&at("5"), 1, &[path("webdataset", &shards.to_string_lossy()), blocks.to_vec()].concat());
    let far = trained(&at("6"), 1, &[behind, blocks.to_vec()].concat());
    assert_eq!(near, far);
    assert_ne!(near.0.steps, first.0.steps);
}

#[track_caller]
fn lockstep_pack(folder: &Path, dest: &Path) -> serde_json::Value {
    let mut command = lockstep(&["data", "pack", "--json", "--shard-samples", "10"]);
    end(command.arg(folder).arg(dest)).succeeded().json()
}

#[test]
fn a_slow_store_with_errors_changes_no_bit_and_is_asked_for_each_block_once() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, shards) = (dir.path().join("folder"), dir.path().join("www/shards"));
    draw(&folder);
    lockstep_pack(&folder, &shards);
    let sets = |kind: &str, path: &str, more: &[String]| {
        [vec![format!("data.kind={kind}"), format!("data.path={path}")], more.to_vec()].concat()
    };
    let near = trained(&dir.path().join("1"), 1, &sets("image-folder", &folder.to_string_lossy(), &[]));

    let (address, _server, asked) = serve_slowly(&dir.path().join("www"));
    let url = format!("http://{address}/shards");
    let cache = [format!("data.cache_dir={}", dir.path().join("cache").display())];
    assert_eq!(trained(&dir.path().join("2"), 1, &sets("webdataset", &url, &cache)), near);
    // Seven shards of one block each, and one answer that was an error; three epochs ask no more than one.
    assert_eq!(asked.load(Ordering::Relaxed), 7 + 1);

    // Nothing kept: a request a sample and epoch, and the evaluation's.
    let uncached = ["data.cache_bytes=0".to_owned()];
    assert_eq!(trained(&dir.path().join("3"), 2, &sets("webdataset", &url, &uncached)), near);
    let asked = asked.load(Ordering::Relaxed) - 8;
    let least = 3 * 48 + 12;
    assert!((least..2 * least).contains(&asked), "{asked} requests");
}

#[test]
fn a_shard_that_goes_missing_ends_the_run_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, shards) = (dir.path().join("folder"), dir.path().join("www/shards"));
    draw(&folder);
    lockstep_pack(&folder, &shards);
    let (address, _server) = serve(&dir.path().join("www"));
    fs::remove_file(shards.join("train/000002.tar")).unwrap();
    let sets = [
        "data.kind=webdataset".to_owned(),
        format!("data.path=http://{address}/shards"),
        format!("data.cache_dir={}", dir.path().join("cache").display()),
        "data.normalize=channel".to_owned(),
        "data.image.crop=16".to_owned(),
        "data.image.resize=20".to_owned(),
        "data.read_timeout_s=10".to_owned(),
    ];
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let ended = end(&mut train(&dir.path().join("run"), 1, &sets));
    assert_eq!(ended.code, Some(66), "{}", ended.stderr);
    let named = format!("http://{address}/shards/train/000002.tar: no such shard, though lockstep-index.json lists it");
    assert!(ended.stderr.contains(&named), "{}", ended.stderr);
}
