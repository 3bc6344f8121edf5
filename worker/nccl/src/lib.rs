//! Collectives between GPUs over NCCL, which is opened at run time, as is the CUDA driver.
//!
//! ```text
//! find ─► Nccl, Driver      symbols, bound once; NCCL 2.18 or later                        `unsafe`: ffi, sys
//!           │
//!         Communicator      non-blocking: every call polled, with a deadline; abort on a thread of its own
//!         Stream, Event, DeviceBuffer, HostBuffer                                          `unsafe`: device
//!           │
//! Rendezvous ─► NcclMesh    the ranks of one generation: two communicators, a TcpMesh as control plane
//!                 ├ staged    `Collective` for host slices, in the canonical order, through device buffers
//!                 ├ enqueue   all-reduce of device memory that only enqueues
//!                 └ sentinel  a thread that hears who is gone and tells what this rank is doing
//! Ring ─► compare           the last calls of every rank; who is behind, who calls something else
//! ```
//! NCCL names no culprit, and a call of its own can hang. So every wait here is a poll with a deadline; the control plane
//! tells at once of a rank that is gone, and at the deadline who is behind. An aborted rank may make its neighbours
//! complete with junk: what goes through [`NcclMesh`]'s `Collective` carries what tells junk from data; what is enqueued
//! on device memory does not, and needs a gate of its caller.
//!
//! May never: know a tensor, wait without a deadline, panic or block for ever in `Drop`.

#[allow(unsafe_code, reason = "calls into C")]
mod communicator;
#[allow(unsafe_code, reason = "calls into C")]
mod device;
mod error;
#[allow(unsafe_code, reason = "calls into C")]
mod ffi;
mod find;
mod frame;
mod mesh;
mod rendezvous;
mod ring;
mod runtime;
mod sentinel;
mod staged;
mod sys;

pub use communicator::{Communicator, DataType, Place};
pub use device::{Context, DeviceBuffer, DevicePtr, Event, HostBuffer, Stream};
pub use error::NcclError;
pub use ffi::{About, Driver, Nccl, UniqueId};
pub use find::{Candidate, candidates, installed_packages};
pub use mesh::NcclMesh;
pub use rendezvous::{Party, Rendezvous};
pub use ring::{Call, Finding, Progress, Ring, compare};
pub use runtime::{Libraries, Runtime};
