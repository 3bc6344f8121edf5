//! What is said: the wire contract and the vocabulary that coordinator and worker share.
//!
//! ```text
//! recipe ──► plan ──► StepPlan ──► message · status · transfer ──► wire (protobuf)
//!    │        ├─ schedule   learning rate of a step             warmup  a warm-up that waits for results
//!    │        ├─ order      sample at a position       draws   augmentation at a position
//!    │        └─ split      chunks of a batch, ranges of ranks     tree   order of addition
//!    └─► isa · gpu · exit · manifest · digest
//! ```
//! May never: read a clock, open a socket or a file outside `manifest` and `recipe::load`, know a tensor.
#![forbid(unsafe_code)]

pub mod digest;
pub mod draws;
pub mod exit;
pub mod gpu;
pub mod ids;
pub mod isa;
pub mod manifest;
pub mod message;
mod mix;
pub mod mixing;
pub mod order;
pub mod plan;
pub mod recipe;
pub mod schedule;
pub mod split;
pub mod status;
pub mod transfer;
pub mod tree;
pub mod warmup;
pub mod wire;
