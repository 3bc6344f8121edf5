//! Who decides: a pure engine, the one task that owns it, its gRPC service and its store.
//!
//! ```text
//! Coordinator::bind ─► Bound::serve ─► Outcome
//!
//!    service ──Input──► runtime ──Event──► engine        pure: no clock, no I/O
//!       ▲                  │ ◄──Effect───────┘
//!       └── ToWorker ──────┼──► store      run.db, written by one thread under a lease
//!                          └──► artifacts  metrics.jsonl, epochs.csv, tensorboard/, from what the store holds
//! ```
//! May never: link libtorch; in `engine/`: read a clock, do I/O.
#![forbid(unsafe_code)]

mod artifacts;
pub mod clock;
mod coordinator;
pub mod engine;
mod error;
pub mod host;
mod http;
pub mod progress;
pub mod provenance;
pub mod run_dir;
mod runtime;
mod service;
pub mod status_file;
pub mod store;

pub use coordinator::{Bound, Coordinator, CoordinatorConfig, Opened, Outcome, Shutdown};
pub use error::CoordinatorError;
pub use progress::Progress;
