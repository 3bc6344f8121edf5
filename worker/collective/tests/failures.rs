//! Nobody waits for ever, and the error names the culprit.
#![allow(clippy::unwrap_used)] // a panic is how tests fail

mod common;

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use common::{PATIENCE, meshes, op, ranks};
use lockstep_collective::{Collective, CollectiveError, Lane, Layout, TcpMesh};
use lockstep_proto::ids::Rank;

/// What counts as "at once" on a loaded machine; every deadline here is far longer.
const AT_ONCE: Duration = Duration::from_secs(2);

fn sum(mesh: &TcpMesh, lane: Lane, name: &'static str, len: usize) -> Result<(), CollectiveError> {
    let (input, mut out) = (vec![1.0; len], vec![0.0; len]);
    mesh.reduce_f32(&op(lane, name, 0), &Layout::by_rank(mesh.world()), &[&input], &mut out)
}

/// Rank `absent` does `instead` while the others wait for it in a sum; what they find, by rank, and after how long.
fn without(
    absent: u32,
    deadline: Duration,
    len: usize,
    instead: impl Fn(&mut Option<Arc<TcpMesh>>) + Sync,
) -> Vec<(CollectiveError, Duration)> {
    let meshes = meshes(3, deadline);
    let slots: Vec<_> = meshes.into_iter().map(|mesh| std::sync::Mutex::new(Some(mesh))).collect();
    let summed = std::sync::Barrier::new(3);
    let results = ranks(3, |rank| {
        let mut slot = slots[rank as usize].lock().unwrap();
        sum(slot.as_ref().unwrap(), Lane::Norm, "before", 10).unwrap();
        // Whoever goes may have its sum while others still wait for theirs.
        summed.wait();
        let start = Instant::now();
        if rank == absent {
            instead(&mut slot);
            return None;
        }
        let error = sum(slot.as_ref().unwrap(), Lane::Buckets, "bucket", len).unwrap_err();
        let waited = start.elapsed();
        // Poisoned: the other lane and every operation fail with the first cause.
        let mesh = slot.as_ref().unwrap();
        assert_eq!(sum(mesh, Lane::Norm, "after", 1), Err(error.clone()));
        assert_eq!(mesh.all_gather(&op(Lane::Buckets, "after", 0), &[]), Err(error.clone()));
        Some((error, waited))
    });
    results.into_iter().flatten().collect()
}

#[test]
fn a_peer_that_is_dropped_is_noticed_at_once_by_name() {
    for len in [10, 3_000_000] {
        for (error, waited) in without(1, PATIENCE, len, |mesh| drop(mesh.take())) {
            assert!(matches!(&error, CollectiveError::PeerGone { rank: Rank(1), .. }), "{error}");
            assert!(error.to_string().contains("rank 1 is gone during bucket 0 of step 7"), "{error}");
            assert!(waited < AT_ONCE, "{waited:?}");
        }
    }
}

#[test]
fn a_peer_that_aborts_is_noticed_at_once_by_name() {
    for (error, waited) in without(2, PATIENCE, 3_000_000, |mesh| mesh.as_ref().unwrap().abort()) {
        assert_eq!(error.culprit(), Some(Rank(2)), "{error}");
        assert!(error.to_string().ends_with("it aborted"), "{error}");
        assert!(waited < AT_ONCE, "{waited:?}");
    }
}

#[test]
fn a_peer_that_hangs_is_named_at_the_deadline() {
    let deadline = Duration::from_millis(1500);
    for len in [10, 3_000_000] {
        let (done, wait) = channel::<()>();
        let wait = std::sync::Mutex::new(wait);
        let results = std::thread::scope(|scope| {
            let results = scope.spawn(|| {
                // Holds its connections open, says nothing, until the others are done or have long missed the deadline.
                without(0, deadline, len, |_| {
                    let _ = wait.lock().unwrap().recv_timeout(deadline * 3);
                })
            });
            let results = results.join().unwrap();
            drop(done);
            results
        });
        let late = results.iter().filter(|(error, _)| matches!(error, CollectiveError::Deadline { .. })).count();
        assert!(late >= 1, "{results:?}");
        for (error, waited) in results {
            assert_eq!(error.culprit(), Some(Rank(0)), "{error}");
            assert!(waited > deadline / 2 && waited < deadline + Duration::from_secs(1), "{waited:?}");
        }
    }
}

#[test]
fn an_abort_from_another_thread_ends_a_wait_at_once() {
    for lane in Lane::ALL {
        let meshes = meshes(2, PATIENCE);
        let mesh = &meshes[0];
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| sum(mesh, lane, "lonely", 100));
            // Whether it comes before, while or after the other begins to wait, the outcome is the same.
            while mesh.history(lane).is_empty() {
                std::thread::yield_now();
            }
            let start = Instant::now();
            mesh.abort();
            assert_eq!(waiting.join().unwrap(), Err(CollectiveError::Aborted));
            assert!(start.elapsed() < AT_ONCE);
        });
        // What was sent before may still complete one operation of the peer, never a second.
        let error = sum(&meshes[1], lane, "lonely", 100).and_then(|()| sum(&meshes[1], lane, "next", 100)).unwrap_err();
        assert_eq!(error.culprit(), Some(Rank(0)), "{error}");
    }
}

#[test]
fn different_operations_are_named_on_both_sides() {
    let meshes = meshes(2, PATIENCE);
    let names = ["layer", "bucket"];
    let errors = ranks(2, |rank| sum(&meshes[rank as usize], Lane::Norm, names[rank as usize], 10).unwrap_err());
    for (rank, error) in errors.iter().enumerate() {
        assert!(matches!(error, CollectiveError::Mismatch { .. }), "{error}");
        assert_eq!(error.culprit(), Some(Rank(1 - rank as u32)));
        let (ours, theirs) = (names[rank], names[1 - rank]);
        let start = format!(
            "rank {} called {theirs} 0 of step 7 (norm lane, number 1) while this rank called {ours} 0 of step 7",
            1 - rank
        );
        assert!(error.to_string().starts_with(&start), "{error}");
    }
}

#[test]
fn different_lengths_layouts_and_roots_are_mismatches() {
    type Kind = dyn Fn(&TcpMesh) -> Result<(), CollectiveError> + Sync;
    let kinds: [&Kind; 3] = [
        &|mesh| sum(mesh, Lane::Norm, "length", 10 + mesh.rank().0 as usize),
        &|mesh| {
            let layout = Layout::canonical(4, if mesh.rank().0 == 0 { &[2, 2] } else { &[1, 3] });
            let partials = vec![&[0.0; 5][..]; layout.num_partials(mesh.rank())];
            mesh.reduce_f64(&op(Lane::Norm, "layout", 0), &layout, &partials, &mut [0.0; 5])
        },
        &|mesh| {
            // Rank 0 sends a longer message than rank 1 has room for.
            let mut bytes = vec![0; 20 - mesh.rank().0 as usize];
            mesh.broadcast(&op(Lane::Norm, "room", 0), Rank(0), &mut bytes)?;
            mesh.barrier(&op(Lane::Norm, "barrier", 0))
        },
    ];
    for kind in kinds {
        let meshes = meshes(2, PATIENCE);
        for error in ranks(2, |rank| kind(&meshes[rank as usize]).unwrap_err()) {
            assert!(matches!(error, CollectiveError::Mismatch { .. }), "{error}");
        }
    }
}

#[test]
fn a_misuse_fails_here_and_is_told_to_the_peers() {
    let meshes = meshes(2, PATIENCE);
    let errors = ranks(2, |rank| match rank {
        0 => meshes[0].broadcast(&op(Lane::Norm, "heal", 0), Rank(5), &mut []).unwrap_err(),
        _ => sum(&meshes[1], Lane::Norm, "sum", 10).unwrap_err(),
    });
    assert!(matches!(errors[0], CollectiveError::Misuse { .. }));
    assert_eq!(errors[1].culprit(), Some(Rank(0)));
    assert!(errors[1].to_string().contains("rank 5 cannot be the root in a world of 2"), "{}", errors[1]);
}

#[test]
fn leaving_after_the_last_operation_disturbs_nobody() {
    for _ in 0..20 {
        let meshes = meshes(4, PATIENCE);
        let slots: Vec<_> = meshes.into_iter().map(|mesh| std::sync::Mutex::new(Some(mesh))).collect();
        ranks(4, |rank| {
            let mesh = slots[rank as usize].lock().unwrap().take().unwrap();
            sum(&mesh, Lane::Buckets, "last", 100_000).unwrap();
        });
    }
}
