//! Threads as ranks, over loopback.
#![allow(dead_code, clippy::unwrap_used)] // a panic is how tests fail

use std::sync::Arc;
use std::time::Duration;

use lockstep_collective::{CollectiveError, Lane, Listener, Op, TcpMesh};
use lockstep_proto::ids::{Generation, Rank, Step};

/// Long enough for a loaded machine; tests that wait for a deadline bring their own.
pub const PATIENCE: Duration = Duration::from_secs(30);
pub const SECRET: &str = "a secret";

pub fn op(lane: Lane, name: &'static str, index: u32) -> Op {
    Op { lane, step: Step(7), name, index }
}

pub fn listeners(world: u32) -> Vec<Listener> {
    (0..world).map(|_| Listener::bind("127.0.0.1").unwrap()).collect()
}

pub fn addresses(listeners: &[Listener]) -> Vec<String> {
    listeners.iter().map(Listener::address).collect()
}

/// Runs `work` for every rank, each on a thread of its own; results by rank.
pub fn ranks<T: Send>(world: u32, work: impl Fn(u32) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..world)
            .map(|rank| {
                scope.spawn({
                    let work = &work;
                    move || work(rank)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

pub fn connect(
    listener: &Listener,
    generation: u64,
    rank: u32,
    addresses: &[String],
    deadline: Duration,
) -> Result<TcpMesh, CollectiveError> {
    TcpMesh::connect(listener, Generation(generation), SECRET, Rank(rank), addresses, deadline)
}

/// A connected world.
pub fn meshes(world: u32, deadline: Duration) -> Vec<Arc<TcpMesh>> {
    let listeners = listeners(world);
    let addresses = addresses(&listeners);
    ranks(world, |rank| Arc::new(connect(&listeners[rank as usize], 1, rank, &addresses, deadline).unwrap()))
}
