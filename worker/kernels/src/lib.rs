//! CUDA kernels of a training step: their source, compiled at run time by NVRTC, and a typed way to launch them.
//!
//! ```text
//! src/cuda/*.cu ─► Nvrtc ─► cubin, kept on disk ─► Driver ─► Module
//!                                                              │ launch(&Launch, Stream)
//! norm::Stats { shape, x, … }.launch(&device) ─► Launch ───────┘
//!      grid, block, shared memory, arguments: pure, checked against the sizes of the memory
//! ```
//!
//! | kernels | what |
//! |---|---|
//! | [`norm`] | BatchNorm: messages of statistics, coefficients, apply with addition and activation; backwards |
//! | [`update`] | the vote, the gate, SGD, running statistics: nothing behind the gate changes a byte while it is closed |
//! | [`input`] | CIFAR's augmentation out of a data set in device memory |
//! | [`loss`] | softmax cross-entropy with label smoothing |
//!
//! NVRTC and the driver are opened at run time. Where one is missing, every error says so ([`KernelError::is_unusable`])
//! and the caller goes on without these kernels, or ends with exit code 78.
//!
//! The same source runs on the host (feature `host`, for tests): `host/device.h` supplies threads, barriers and shuffles,
//! `host/driver.cpp` the driver's ABI. What a kernel computes is told in `docs/kernels.md`.
//!
//! May never: know a tensor library, allocate device memory, wait for a device.

mod driver;
mod error;
#[cfg(feature = "host")]
pub mod host;
pub mod input;
mod launch;
mod library;
pub mod loss;
mod memory;
mod module;
pub mod norm;
mod nvrtc;
mod source;
mod step;
pub mod update;
mod usage;

pub use driver::{Device, Driver, Stream};
pub use error::KernelError;
pub use launch::{Activation, Element, Launch, Scratch, Shape};
pub use memory::Memory;
pub use module::Module;
pub use nvrtc::{Compiled, Nvrtc, Target, folders_beside};
pub use source::{KERNELS, source_sha256};
pub use step::StepWords;
pub use usage::{Usage, usage};
