//! Who computes: a session with the coordinator, replicas, and the mathematics of a step.
//!
//! ```text
//! trainer   Compute over libtorch                    model    programs by name
//!   step      the step loop                          program  operations, flat layout, segments
//!   evaluate  the whole test set                     exec     chunks, norm layers, buckets
//!   state     parameters, momentum, statistics       optim    the update
//! ```
//! May never: decide membership, the order of samples or the schedule.
#![forbid(unsafe_code)]

pub mod compute;
pub mod exit;

mod evaluate;
pub mod exec;
pub mod model;
mod number;
mod optim;
pub mod program;
mod shard;
pub mod state;
pub mod step;
pub mod trainer;
