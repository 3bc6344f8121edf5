//! A thousand generations in one process leave nothing behind. In a process of its own, so that no other test opens files.
#![allow(clippy::unwrap_used)] // a panic is how tests fail

mod common;

use std::time::{Duration, Instant};

use common::{PATIENCE, meet, op, ranks, rendezvous};
use lockstep_collective::{Collective, Lane, Layout};
use lockstep_nccl::Rendezvous;

const GENERATIONS: u64 = 1000;
/// So many until every pool and cache has what it wants.
const WARM: u64 = 100;

#[derive(Clone, Copy, Debug)]
struct Held {
    files: usize,
    threads: usize,
    resident_kib: usize,
}

fn held() -> Held {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    Held {
        files: std::fs::read_dir("/proc/self/fd").unwrap().count(),
        threads: field("Threads:"),
        resident_kib: field("VmRSS:"),
    }
}

/// Once threads that are at their end have ended.
fn settled(threads: usize) -> Held {
    let until = Instant::now() + Duration::from_secs(20);
    while held().threads > threads && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    held()
}

fn generation(places: &[Rendezvous], addresses: &[String], number: u64) {
    let layout = Layout::canonical(3, &[1, 2]);
    ranks(2, |rank| {
        let mesh = meet(&places[rank as usize], number, rank, addresses, PATIENCE).unwrap();
        let mut sum = vec![0f32; 5000];
        let partial = vec![1f32; 5000];
        let partials = vec![&partial[..]; layout.num_partials(mesh.rank())];
        mesh.reduce_f32(&op(Lane::Buckets, "bucket", 0), &layout, &partials, &mut sum).unwrap();
        // Whoever is through first may abort while the other looks.
        let _ = mesh.barrier(&op(Lane::Norm, "end", 0));
        // Some end by an abort, some in the middle of an operation, the others in good order.
        match number % 4 {
            0 | 1 if rank == 0 => mesh.abort(),
            1 => drop(mesh.all_gather(&op(Lane::Norm, "lonely", 0), &[1])),
            _ => {}
        }
    });
}

#[test]
fn a_thousand_generations_leak_no_file_no_thread_no_memory() {
    const CHILD: &str = "LOCKSTEP_TEST_COUNTS_FILES";
    if std::env::var_os(CHILD).is_none() {
        let name = "a_thousand_generations_leak_no_file_no_thread_no_memory";
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--test-threads=1", "--nocapture"])
            .env(CHILD, "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let start = held();
    let places = [rendezvous(0), rendezvous(1)];
    let addresses: Vec<String> = places.iter().map(Rendezvous::address).collect();
    let began = Instant::now();
    (1..=WARM).for_each(|number| generation(&places, &addresses, number));
    let warm = settled(start.threads);
    (WARM + 1..=GENERATIONS).for_each(|number| generation(&places, &addresses, number));
    let end = settled(start.threads);
    eprintln!("{GENERATIONS} generations in {:.1?}: {warm:?} after {WARM}, {end:?} at the end", began.elapsed());
    assert_eq!((end.files, end.threads), (warm.files, warm.threads));
    assert_eq!(end.threads, start.threads);
    assert!(end.resident_kib < warm.resident_kib + 8 * 1024, "{warm:?} {end:?}");
    let left = std::fs::read_dir("/dev/shm").unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with(&format!("lockstep-double-{}-", std::process::id()))
    });
    assert_eq!(left.count(), 0);
}
