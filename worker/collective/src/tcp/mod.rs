//! Ranks that are processes, over TCP.

mod broadcast;
mod control;
mod drive;
mod exchange;
mod frame;
mod gather;
mod greeting;
mod listener;
mod mesh;
mod reduce;
mod rendezvous;
mod scratch;
mod shared;

pub use listener::Listener;
pub use mesh::TcpMesh;
