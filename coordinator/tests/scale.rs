//! A coordinator of many workers.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod common;

use std::time::Instant;

use common::config;
use common::worker::FakeWorker;
use lockstep_coordinator::{Coordinator, CoordinatorConfig};
use lockstep_proto::exit::ExitCode;
use lockstep_proto::recipe::Recipe;
use tokio::sync::mpsc;

const WORKERS: usize = 256;
const SAMPLES: u64 = 40_960;

/// 256 ranks of four samples a step: every step is planned for, reported by and committed from all of them. Docs/scaling.md
/// has what it takes.
#[tokio::test(flavor = "multi_thread")]
async fn it_leads_256_workers() {
    let run = tempfile::tempdir().unwrap();
    let recipe = Recipe::from_toml(
        "name = \"wide\"\n[data]\nkind = \"shapes\"\ntrain_size = 40960\n[schedule]\nkind = \"constant\"\n\
         [train]\nbatch = 1024\nchunk = 4\nepochs = 2\n[elastic]\nmin_workers = 256\njoin_timeout_s = 120.0\n",
        "test",
    )
    .unwrap();
    let bound = Coordinator::bind(CoordinatorConfig { recipe, ..config(run.path(), false) }).await.unwrap();
    let address = bound.local_addr();
    let (observer, mut news) = mpsc::channel(64);
    tokio::spawn(async move { while news.recv().await.is_some() {} });
    let serving = tokio::spawn(bound.serve(std::future::pending::<String>(), observer));
    let began = Instant::now();
    let workers: Vec<_> = (0..WORKERS)
        .map(|number| {
            tokio::spawn(async move {
                let worker = FakeWorker::new(address, &format!("w{number}")).await;
                worker.with_samples(SAMPLES).follow(None).await.unwrap()
            })
        })
        .collect();
    for worker in workers {
        assert_eq!(worker.await.unwrap().unwrap().code, ExitCode::Done);
    }
    let outcome = serving.await.unwrap().unwrap();
    println!("80 steps of {WORKERS} workers in {:.1} s: {outcome:?}", began.elapsed().as_secs_f64());
    let connection = rusqlite::Connection::open(run.path().join("run.db")).unwrap();
    let count = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(count("SELECT COUNT(*) FROM steps"), 80);
    assert_eq!(count("SELECT COUNT(*) FROM ledger"), 80 * WORKERS as i64);
    assert_eq!(count("SELECT SUM(len) FROM ledger"), 80 * 1024);
}
