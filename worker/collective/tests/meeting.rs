//! How ranks find each other, over generations.
#![allow(clippy::unwrap_used)] // a panic is how tests fail

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::{PATIENCE, SECRET, addresses, connect, listeners, op, ranks};
use lockstep_collective::{Collective, CollectiveError, Lane, Listener, TcpMesh};
use lockstep_proto::ids::{Generation, Rank};

#[test]
fn an_older_generation_and_a_wrong_secret_are_refused_and_the_mesh_still_forms() {
    let listeners = listeners(4);
    let addresses = addresses(&listeners);
    // Rank 3's listener stands for two intruders: they never get in, and harm nobody.
    let short = Duration::from_millis(400);
    let results = ranks(5, |who| match who {
        0..3 => connect(&listeners[who as usize], 5, who, &addresses[..3], PATIENCE).map(|mesh| {
            assert_eq!(mesh.generation(), Generation(5));
            mesh.barrier(&op(Lane::Norm, "here", 0))
        }),
        3 => connect(&listeners[3], 4, 2, &addresses[..3], short).map(|_| Ok(())),
        _ => TcpMesh::connect(&listeners[3], Generation(5), "guess", Rank(2), &addresses[..3], short).map(|_| Ok(())),
    });
    assert!(results[..3].iter().all(|result| *result == Ok(Ok(()))), "{results:?}");
    for error in results[3..].iter().map(|result| result.as_ref().unwrap_err()) {
        assert!(matches!(error, CollectiveError::NeverCame { rank: Rank(0), .. }), "{error}");
    }
}

#[test]
fn strangers_do_no_harm() {
    let listeners = listeners(2);
    let addresses = addresses(&listeners);
    let mut mute = TcpStream::connect(&addresses[0]).unwrap();
    let mut loud = TcpStream::connect(&addresses[0]).unwrap();
    loud.write_all(&[b'x'; 500]).unwrap();
    let meshes = ranks(2, |rank| connect(&listeners[rank as usize], 1, rank, &addresses, PATIENCE).unwrap());
    assert!(!matches!(loud.read(&mut [0; 8]), Ok(1..)));
    assert!(!matches!(mute.read(&mut [0; 8]), Ok(1..)));
    ranks(2, |rank| meshes[rank as usize].barrier(&op(Lane::Buckets, "here", 0)).unwrap());
}

#[test]
fn whoever_never_comes_is_named_with_its_address() {
    let listeners = listeners(3);
    let addresses = addresses(&listeners);
    let deadline = Duration::from_millis(700);
    let start = Instant::now();
    let errors = ranks(2, |rank| connect(&listeners[rank as usize], 3, rank, &addresses, deadline).err().unwrap());
    assert!(start.elapsed() < deadline + Duration::from_secs(1));
    for error in errors {
        assert_eq!(error.culprit(), Some(Rank(2)));
        assert!(
            error.to_string().starts_with(&format!("rank 2 at {} did not come to generation 3", addresses[2])),
            "{error}"
        );
    }
}

#[test]
fn a_rank_that_is_not_there_yet_is_waited_for() {
    let listeners = listeners(2);
    let addresses = addresses(&listeners);
    ranks(2, |rank| {
        if rank == 0 {
            // Looks at the door for another generation first, which refuses the one that knocks.
            let error = connect(&listeners[0], 1, 0, &addresses, Duration::from_millis(300)).err().unwrap();
            assert!(error.to_string().contains("rank 1 of generation 2 was refused"), "{error}");
        }
        connect(&listeners[rank as usize], 2, rank, &addresses, PATIENCE)
            .unwrap()
            .barrier(&op(Lane::Norm, "here", 0))
            .unwrap();
    });
}

#[test]
fn a_meeting_can_be_cancelled() {
    let listeners = listeners(2);
    let addresses = addresses(&listeners);
    std::thread::scope(|scope| {
        let meeting = scope.spawn(|| connect(&listeners[0], 3, 0, &addresses, PATIENCE).err());
        listeners[0].cancel(Generation(3));
        assert_eq!(meeting.join().unwrap(), Some(CollectiveError::Aborted));
    });
    ranks(2, |rank| connect(&listeners[rank as usize], 4, rank, &addresses, PATIENCE).map(drop).unwrap());
}

#[test]
fn a_world_of_one_needs_no_one() {
    let listener = Listener::bind("localhost").unwrap();
    let mesh = connect(&listener, 1, 0, &[listener.address()], PATIENCE).unwrap();
    assert_eq!(mesh.all_gather(&op(Lane::Norm, "alone", 0), SECRET.as_bytes()).unwrap(), [SECRET.as_bytes()]);
}

#[test]
fn a_host_that_is_not_here_is_named() {
    let error = Listener::bind("no-such-host.invalid").unwrap_err();
    assert!(error.to_string().starts_with("cannot listen on no-such-host.invalid: "), "{error}");
}

/// In a process of its own, so that no other test opens or closes files meanwhile.
#[test]
fn many_generations_on_the_same_listeners_leak_no_connection() {
    const CHILD: &str = "LOCKSTEP_TEST_COUNTS_FILES";
    if std::env::var_os(CHILD).is_none() {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "many_generations_on_the_same_listeners_leak_no_connection", "--test-threads=1"])
            .env(CHILD, "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let listeners = listeners(3);
    let addresses = addresses(&listeners);
    let before = open();
    for generation in 1..=40 {
        let meshes = ranks(3, |rank| {
            let mesh = connect(&listeners[rank as usize], generation, rank, &addresses, PATIENCE).unwrap();
            mesh.barrier(&op(Lane::Norm, "here", 0)).unwrap();
            mesh
        });
        // Some end by an abort, once everybody is through; the others in good order.
        if let Some(mesh) = meshes.get(generation as usize % 5) {
            mesh.abort();
        }
    }
    assert_eq!(open(), before);
}
