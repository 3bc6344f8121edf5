//! Who computes: a session with the coordinator, replicas, and the mathematics of a step.
//!
//! ```text
//! main ─ args ─► session ◄── connect, gRPC ──► coordinator
//!                   │ Open, Item, Halt
//!                   ▼
//!                replica     one OS thread, one state, one rank        eval · export · bench
//!                   ├─ sync        the base state of a generation
//!                   ├─ checkpoint  snapshots, writer, reader, transfer
//!                   └─ compute     the seam: what is asked of the mathematics
//!                        ▲
//! trainer   Compute over libtorch                    model    programs by name
//!   load      chunks, read ahead or now
//!   step      the step loop                          program  operations, flat layout, segments
//!   evaluate  the whole test set                     exec     chunks, norm layers, buckets
//!   state     parameters, buffers, statistics        optim    the update
//!   average   of the weights                         tally    loss, errors, digest; what is not a number
//! device    the same on an accelerator: everything is enqueued, and gated
//! proof     figures that need a GPU, by the public commands alone, in one table
//! ```
//! May never: decide membership, the order of samples or the schedule; let a failed collective reach the weights.
#![forbid(unsafe_code)]

pub mod abort;
pub mod args;
pub mod bench;
pub mod checkpoint;
pub mod compute;
pub mod connect;
pub mod device;
pub mod devices;
pub mod door;
pub mod dry_run;
pub mod evaluate_cmd;
pub mod exit;
pub mod export;
pub mod gate;
mod health;
pub mod isa;
pub mod panic;
pub mod replica;
pub mod session;
pub mod sync;
pub mod workshop;

mod average;
mod evaluate;
pub mod exec;
mod load;
pub mod model;
mod number;
mod optim;
pub mod outline;
pub mod predict;
pub mod program;
pub mod proof;
pub mod pulse;
mod running;
mod shard;
mod skip;
pub mod state;
pub mod step;
mod tally;
pub mod trainer;
pub mod tuning;
mod weights;
