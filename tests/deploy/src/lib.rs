//! `deploy/kubernetes/`, held to what it promises.
//!
//! ```text
//! kubectl kustomize ──► render ──► policy   probes, limits, security, exit codes, names
//!                          │   └─► schema   Kubernetes' own kinds (kubernetes-validate), CRDs' fields (crd)
//!                          └─────► pod ──► sandbox   a Pod's command as a process: namespaces, uid, read-only root
//!                                 cluster   a real control plane, whose Pods those are
//! ```
//! May never: link libtorch, or know more of a manifest than a cluster is told.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))] // a panic is how a test fails

pub mod cluster;
pub mod codes;
pub mod crd;
pub mod net;
pub mod pod;
pub mod policy;
pub mod process;
pub mod render;
pub mod sandbox;
pub mod schema;
pub mod tools;
