//! Who decides: a pure engine, the one task that owns it, its gRPC service and its store.
#![forbid(unsafe_code)]

pub mod engine;
