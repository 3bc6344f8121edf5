//! Threads as ranks, over the test double.
#![allow(dead_code, clippy::unwrap_used)] // each test file uses its part; a panic is how tests fail

use std::sync::Arc;
use std::time::Duration;

use lockstep_collective::{CollectiveError, Lane, Listener, Op, TcpMesh};
use lockstep_nccl::{Libraries, NcclMesh, Party, Rendezvous, Runtime};
use lockstep_proto::ids::{Generation, Rank, Step};

/// Long enough for a loaded machine; tests that wait for a deadline bring their own.
pub const PATIENCE: Duration = Duration::from_secs(30);
pub const SECRET: &str = "a secret";

pub fn op(lane: Lane, name: &'static str, index: u32) -> Op {
    Op { lane, step: Step(7), name, index }
}

pub fn double() -> Libraries {
    Libraries { nccl: Some(lockstep_nccl_double::nccl()), driver: Some(lockstep_nccl_double::driver()) }
}

pub fn rendezvous(ordinal: u32) -> Rendezvous {
    let runtime = Runtime::open(&double(), ordinal).unwrap().closing_within(Duration::from_secs(2));
    Rendezvous::new(Listener::bind("127.0.0.1").unwrap(), Arc::new(runtime))
}

pub fn meet(
    at: &Rendezvous,
    generation: u64,
    rank: u32,
    addresses: &[String],
    deadline: Duration,
) -> Result<NcclMesh, CollectiveError> {
    let generation = Generation(generation);
    let party = Party { generation, secret: SECRET, rank: Rank(rank), leader: Rank(0), addresses };
    at.meet(&party, deadline)
}

/// Runs `work` for every rank, each on a thread of its own; results by rank.
pub fn ranks<T: Send>(world: u32, work: impl Fn(u32) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..world).map(|rank| scope.spawn(move || work(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// A connected world.
pub fn meshes(world: u32, deadline: Duration) -> Vec<Arc<NcclMesh>> {
    let places: Vec<Rendezvous> = (0..world).map(rendezvous).collect();
    let addresses: Vec<String> = places.iter().map(Rendezvous::address).collect();
    ranks(world, |rank| Arc::new(meet(&places[rank as usize], 1, rank, &addresses, deadline).unwrap()))
}

/// The same over TCP.
pub fn tcp_meshes(world: u32) -> Vec<Arc<TcpMesh>> {
    let listeners: Vec<Listener> = (0..world).map(|_| Listener::bind("127.0.0.1").unwrap()).collect();
    let addresses: Vec<String> = listeners.iter().map(Listener::address).collect();
    ranks(world, |rank| {
        let listener = &listeners[rank as usize];
        Arc::new(TcpMesh::connect(listener, Generation(1), SECRET, Rank(rank), &addresses, PATIENCE).unwrap())
    })
}
