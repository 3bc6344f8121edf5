//! The engine: events in, effects out. No clock, no socket, no file, no libtorch.
//!
//! ```text
//!            Connected/Ready                 all Synced              report of every rank
//! Gathering ─────────────────► Opening ─────────────────► Training ─────────────────────► commit
//!     ▲                          │                           │  │
//!     │        all Halted        │ lost, complaint, deadline │  └─ last step, evaluated, saved ─► Ended
//!     └───────────────────── Closing ◄───────────────────────┘
//! ```
mod effect;
mod event;

pub use effect::*;
pub use event::*;
