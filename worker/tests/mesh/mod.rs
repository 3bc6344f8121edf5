//! Ranks as threads of one process, joined over TCP on loopback.

use std::sync::Arc;
use std::time::Duration;

use lockstep_collective::{Collective, Listener, Solo, TcpMesh};
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
