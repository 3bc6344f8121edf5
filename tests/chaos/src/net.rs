//! Hosts that are namespaces: a hub with a bridge, and a cable (a veth pair) to each worker. Needs root.
//!
//! ```text
//! namespace lkc<pid>x<n>h          namespace lkc<pid>x<n>-w1
//!   br0 10.99.0.1 ── w1 ═══════════ eth0 10.99.0.2
//!                └── w2 ═══════════ eth0 10.99.0.3
//! ```
//! The machine's own network is not touched: even the bridge is inside. Removing the namespaces removes all.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};

use crate::process::{is_alive, run};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A hub and its hosts. Dropping it removes them.
#[derive(Debug)]
pub struct Net {
    prefix: String,
    hosts: BTreeMap<String, String>,
}

impl Net {
    /// Makes the hub.
    pub fn new() -> Result<Self> {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let net = Self { prefix: format!("lkc{}x{number}", std::process::id()), hosts: BTreeMap::new() };
        let hub = net.hub();
        run("ip", &["netns", "add", &hub]).context("namespaces need root")?;
        run("ip", &["-n", &hub, "link", "set", "lo", "up"])?;
        run("ip", &["-n", &hub, "link", "add", "br0", "type", "bridge"])?;
        run("ip", &["-n", &hub, "addr", "add", "10.99.0.1/24", "dev", "br0"])?;
        run("ip", &["-n", &hub, "link", "set", "br0", "up"])?;
        Ok(net)
    }

    fn hub(&self) -> String {
        format!("{}h", self.prefix)
    }

    fn host(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// The hub's own address.
    pub fn hub_address(&self) -> &str {
        "10.99.0.1"
    }

    /// Makes a host with a cable to the hub; one that there is already is kept.
    pub fn add_host(&mut self, name: &str) -> Result<()> {
        if self.hosts.contains_key(name) {
            return Ok(());
        }
        let (hub, host) = (self.hub(), self.host(name));
        let address = format!("10.99.0.{}", self.hosts.len() + 2);
        run("ip", &["netns", "add", &host])?;
        self.hosts.insert(name.into(), address.clone());
        run("ip", &["-n", &hub, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", &host])?;
        run("ip", &["-n", &hub, "link", "set", name, "master", "br0", "up"])?;
        run("ip", &["-n", &host, "link", "set", "lo", "up"])?;
        run("ip", &["-n", &host, "addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
        run("ip", &["-n", &host, "link", "set", "eth0", "up"])?;
        Ok(())
    }

    /// A command in the hub. It keeps its process id.
    pub fn in_hub(&self, program: &Path) -> Command {
        enter(&self.hub(), program)
    }

    /// A command in a host.
    pub fn in_host(&self, name: &str, program: &Path) -> Command {
        enter(&self.host(name), program)
    }

    /// Pulls a host's cable, or puts it in again.
    pub fn cable(&self, name: &str, is_in: bool) -> Result<()> {
        run("ip", &["-n", &self.hub(), "link", "set", name, if is_in { "up" } else { "down" }]).map(drop)
    }

    /// Swallows everything that a host sends, without telling it; what others send still arrives.
    pub fn mute(&self, name: &str, is_so: bool) -> Result<()> {
        // A bridge that learns nothing of a port and forwards nothing from it: one-way loss.
        let state = if is_so { "0" } else { "3" };
        run("ip", &["netns", "exec", &self.hub(), "bridge", "link", "set", "dev", name, "state", state]).map(drop)
    }

    /// Loses what a host sends to other hosts, without telling it; the hub still hears it, and it hears everyone.
    pub fn estrange(&self, name: &str, is_so: bool) -> Result<()> {
        let host = self.host(name);
        for (_, address) in self.hosts.iter().filter(|(other, _)| *other != name) {
            // An address of hardware that nobody has.
            let (verb, rest) = if is_so { ("replace", "lladdr 02:00:00:00:00:01 nud permanent") } else { ("del", "") };
            let mut args = vec!["-n", &host, "neigh", verb, address, "dev", "eth0"];
            args.extend(rest.split_whitespace());
            run("ip", &args)?;
        }
        Ok(())
    }

    /// Limits a host's cable in both directions, `1mbit`; `None` takes the limit away.
    pub fn rate(&self, name: &str, rate: Option<&str>) -> Result<()> {
        let ends = [(self.hub(), name.to_owned()), (self.host(name), "eth0".to_owned())];
        for (namespace, device) in ends {
            let _ = run("tc", &["-n", &namespace, "qdisc", "del", "dev", &device, "root"]);
            if let Some(rate) = rate {
                let limit = ["rate", rate, "burst", "16kb", "latency", "400ms"];
                let mut args = vec!["-n", &namespace, "qdisc", "add", "dev", &device, "root", "tbf"];
                args.extend(limit);
                run("tc", &args)?;
            }
        }
        Ok(())
    }
}

fn enter(namespace: &str, program: &Path) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).arg(program);
    command
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in self.hosts.keys() {
            let _ = run("ip", &["netns", "del", &self.host(name)]);
        }
        let _ = run("ip", &["netns", "del", &self.hub()]);
    }
}

/// Removes what calls that were killed left behind: namespaces and mounts.
pub fn sweep() {
    let is_left = |pid: &str| pid.parse().is_ok_and(|pid| !is_alive(pid));
    for line in run("ip", &["netns", "list"]).unwrap_or_default().lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let pid = name.strip_prefix("lkc").and_then(|rest| rest.split_once('x')).map(|(pid, _)| pid);
        if pid.is_some_and(is_left) {
            let _ = run("ip", &["netns", "del", name]);
        }
    }
    for line in std::fs::read_to_string("/proc/self/mounts").unwrap_or_default().lines() {
        let path = line.split_whitespace().nth(1).unwrap_or_default();
        let rest = path.split_once(crate::lab::PREFIX).map(|(_, rest)| rest);
        if rest.and_then(|rest| rest.split_once('-')).is_some_and(|(pid, _)| is_left(pid)) {
            let _ = run("umount", &["-l", path]);
        }
    }
}
