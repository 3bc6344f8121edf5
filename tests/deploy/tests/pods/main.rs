//! Pods as processes: the commands and the environment of the overlay `cpu`, as its manifests give them, in network
//! namespaces, as user 65532, on a root that cannot be written.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod alone;
mod site;
mod tls;
mod whole;
