//! A CUDA device as a step needs it: what libtorch, NCCL and the driver each have of it, brought together.
//!
//! ```text
//! find ─► library    CUDA's half of libtorch, opened at run time; the version must be the one linked against
//!           │
//!         Device     the primary context, which all three use
//!         Queue      one stream: libtorch enqueues on it, NCCL sums tensors on it, the driver marks points of it
//!         Fused      BatchNorm on tensors by lockstep-kernels
//!         Graphs     CUDA graphs of what libtorch and NCCL enqueue; a library that the executable carries
//! report             what is here and what is missing, for `lockstep doctor`
//! ```
//! Nothing here needs CUDA to be built or linked, and nothing asks a device for anything before [`open`] was called:
//! libtorch would conclude for good that there is none.
//!
//! May never: wait for a device, know a model or a step.

mod device;
mod error;
mod find;
mod fused;
mod graph;
mod library;
mod report;

pub use device::{Device, Queue};
pub use error::CudaError;
pub use find::candidates;
pub use fused::{DataSet, Fused, Launcher, Saved};
pub use graph::{Graph, Graphs, Usage};
pub use library::{Found, open};
pub use lockstep_kernels::input::Draw;
pub use lockstep_nccl::Event as Mark;
pub use report::{Report, report};
