//! A replica on an accelerator: the same program and state as on the CPU, enqueued instead of done.
//!
//! ```text
//! trainer   Compute: opens, enqueues, settles, leaves; keeps a copy of the state on the host for checkpoints
//!   stepper   upload · load · body (eager, captured or replayed) · outcome
//!     body      forward ─ loss ─ backward ─ buckets ─ vote ─ gate ─ optimizer: only enqueues
//!     ballot    what the vote must add up to
//!     captures  which steps run as a graph, the same ones on every rank
//!     pending   outcomes that are not known yet
//!     wanted    which samples, in which pieces
//!   gpu       the trait: streams, events, graphs, one communicator, poison
//!     host      everything at once, on CPU tensors: the same course of a step without a GPU
//!     cuda      the real one
//!     trial     which way to do BatchNorm is faster here
//! ```
//! A failed collective may leave junk that completes as if nothing had happened, and its successors are queued already.
//! So nothing here believes that an operation succeeded because it ended: weights, momentum and running statistics are
//! only written by work that reads the verdict, and the verdict is the sum of a vote that every sound rank takes part in
//! behind its last bucket. A rank that is about to abort is poisoned first, and gives no vote any more.
//!
//! May never: wait for the device between the first and the last operation of a step; report a step before
//! `applied` names it.

mod average;
mod ballot;
mod body;
mod captures;
mod cuda;
mod gpu;
mod host;
mod memory;
mod pending;
mod resident;
mod stepper;
mod trainer;
mod trial;
mod wanted;

pub use cuda::{CudaGpu, Options};
pub use gpu::{Event, Gpu, GpuError, Graph, Place, Stream, Work};
pub use host::HostGpu;
pub use trainer::DeviceTrainer;
