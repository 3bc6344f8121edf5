//! Ranks as threads of one process, joined over TCP on loopback or over NCCL's test double.
#![allow(dead_code)] // each test file uses its part

use std::sync::Arc;
use std::time::Duration;

use lockstep_collective::{Collective, Listener, Solo, TcpMesh};
use lockstep_nccl::{Libraries, Party, Rendezvous, Runtime};
use lockstep_proto::ids::{Generation, Rank};

/// Runs `rank` on every rank of a world; gives what each returned, by rank.
pub fn ranks<T: Send>(world: usize, rank: impl Fn(Arc<dyn Collective>) -> T + Sync) -> Vec<T> {
    if world == 1 {
        return vec![rank(Arc::new(Solo::new()))];
    }
    let listeners: Vec<Listener> = (0..world).map(|_| Listener::bind("127.0.0.1").unwrap()).collect();
    let addresses: Vec<String> = listeners.iter().map(Listener::address).collect();
    std::thread::scope(|scope| {
        let threads: Vec<_> = listeners
            .iter()
            .enumerate()
            .map(|(i, listener)| {
                let (addresses, rank) = (&addresses, &rank);
                scope.spawn(move || {
                    let deadline = Duration::from_secs(60);
                    let mesh = TcpMesh::connect(listener, Generation(1), "secret", Rank(i as u32), addresses, deadline);
                    rank(Arc::new(mesh.unwrap()))
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// The same over NCCL's test double, also for a world of one.
pub fn ranks_over_nccl<T: Send>(world: usize, rank: impl Fn(Arc<dyn Collective>) -> T + Sync) -> Vec<T> {
    let libraries =
        Libraries { nccl: Some(lockstep_nccl_double::nccl()), driver: Some(lockstep_nccl_double::driver()) };
    let places: Vec<Rendezvous> = (0..world)
        .map(|ordinal| {
            let runtime = Runtime::open(&libraries, ordinal as u32).unwrap();
            Rendezvous::new(Listener::bind("127.0.0.1").unwrap(), Arc::new(runtime))
        })
        .collect();
    let addresses: Vec<String> = places.iter().map(Rendezvous::address).collect();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(&places)
            .map(|(i, place)| {
                let (addresses, rank) = (&addresses, &rank);
                scope.spawn(move || {
                    let (generation, leader) = (Generation(1), Rank(0));
                    let party = Party { generation, secret: "secret", rank: Rank(i), leader, addresses };
                    rank(Arc::new(place.meet(&party, Duration::from_secs(60)).unwrap()))
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
