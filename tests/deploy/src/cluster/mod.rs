//! A real Kubernetes on one machine: its own control plane, and Pods as processes.
//!
//! ```text
//! show ──► kubectl ──► control_plane   etcd, API server, controllers, scheduler: Kubernetes' own programs
//!   └────► agent  ◄──► api             nodes: ours, since a kubelet needs a container runtime
//! ```
//! All of it lives in a network namespace, so ports and addresses are nobody else's.

mod agent;
mod api;
mod clock;
mod control_plane;
mod probe;
mod scenario;
mod show;

use std::path::PathBuf;

use anyhow::Result;

pub use self::show::Line;
use crate::net::Net;

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Places {
    /// etcd, kube-apiserver, kube-controller-manager, kube-scheduler.
    pub control_plane: PathBuf,
    /// kubectl and definitions.
    pub tools: PathBuf,
    /// lockstep, lockstep-worker.
    pub executables: PathBuf,
}

/// Starts a cluster beside the bridge that this process runs at, shows what is promised, and gives a table of it.
///
/// # Errors
/// When the cluster cannot be started.
pub fn show(places: &Places, net: Net) -> Result<Vec<Line>> {
    show::run(places, net)
}
