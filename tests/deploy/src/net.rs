//! The network of Pods: a bridge in a namespace of its own. Each Pod brings a namespace and gets a cable to the bridge.
//!
//! ```text
//! namespace lkd<pid>x<n>           the Pod's, without a name
//!   br0 10.98.0.1 ── p2 ═══════════ eth0 10.98.0.2
//!                └── p3 ═══════════ eth0 10.98.0.3
//! ```
//! The machine's own network is not touched. Removing the namespace removes all.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};

use crate::process::run;

static COUNT: AtomicU32 = AtomicU32::new(0);

/// The bridge. Dropping it removes it.
#[derive(Debug)]
pub struct Net {
    namespace: String,
    next: AtomicU32,
    is_owner: bool,
}

impl Net {
    /// Needs root.
    pub fn new() -> Result<Self> {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let net =
            Self { namespace: format!("lkd{}x{number}", std::process::id()), next: AtomicU32::new(2), is_owner: true };
        let hub = net.namespace.as_str();
        run("ip", &["netns", "add", hub]).context("namespaces need root")?;
        run("ip", &["-n", hub, "link", "set", "lo", "up"])?;
        run("ip", &["-n", hub, "link", "add", "br0", "type", "bridge"])?;
        run("ip", &["-n", hub, "addr", "add", "10.98.0.1/16", "dev", "br0"])?;
        run("ip", &["-n", hub, "link", "set", "br0", "up"])?;
        Ok(net)
    }

    /// One that another process made, beside whose bridge this one runs.
    pub fn beside(namespace: &str) -> Self {
        Self { namespace: namespace.into(), next: AtomicU32::new(2), is_owner: false }
    }

    /// The bridge's namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// An address that no Pod had before.
    pub fn address(&self) -> String {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        format!("10.98.{}.{}", number / 256, number % 256)
    }

    /// A command beside the bridge. It keeps its process id.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, program]);
        command
    }

    /// Lays a cable from the bridge to the namespace of a process, where it is called eth0.
    pub fn connect(&self, address: &str, pid: u32) -> Result<()> {
        let hub = self.namespace.as_str();
        // An interface goes with its namespace, so the name is free again when a Pod is gone.
        let name = format!("p{}", address.trim_start_matches("10.98.").replace('.', "-"));
        let pid = pid.to_string();
        run("ip", &["-n", hub, "link", "add", &name, "type", "veth", "peer", "name", "eth0", "netns", &pid])?;
        run("ip", &["-n", hub, "link", "set", &name, "master", "br0", "up"])?;
        Ok(())
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if self.is_owner {
            let _ = run("ip", &["netns", "del", &self.namespace]);
        }
    }
}
