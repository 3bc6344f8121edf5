//! Scripts of events and effects, and a simulated cluster with integer parameters: no async, no sleep, no clock.

mod admission;
mod balance;
mod blame;
mod cluster;
mod commit;
mod deadlines;
mod ending;
mod invariants;
mod liveness;
mod purity;
mod script;
mod store;
mod warmup;
mod worker;
