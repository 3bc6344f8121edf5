//! `coordinator.json`: how to reach the coordinator of a run directory. There while it runs.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::artifacts::replace;
use crate::clock;
use crate::host;
use crate::store::StoreError;

const FILE_NAME: &str = "coordinator.json";

/// Where a run is served from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusFile {
    /// `http://host:port`, or `https://`; loopback when it listens on every address.
    pub address: String,
    /// Its process.
    pub pid: u32,
    /// Its host.
    pub host: String,
    /// The run.
    pub run_id: String,
    /// Seconds since 1970.
    pub started_unix_s: f64,
}

impl StatusFile {
    /// Reads the one of a run directory. That it is there does not prove that the process still is.
    ///
    /// # Errors
    /// What the system says; `InvalidData` when it is something else.
    pub fn read(run_dir: &Path) -> io::Result<Self> {
        let text = fs::read(run_dir.join(FILE_NAME))?;
        serde_json::from_slice(&text).map_err(io::Error::from)
    }

    /// Writes it; it goes when the guard does.
    pub(crate) fn publish(
        run_dir: &Path,
        (scheme, address): (&str, SocketAddr),
        run_id: &str,
    ) -> Result<Published, StoreError> {
        let file = Self {
            address: format!("{scheme}://{}", reachable(address)),
            pid: std::process::id(),
            host: host::name(),
            run_id: run_id.to_owned(),
            started_unix_s: clock::unix_s(),
        };
        // invariant: strings and numbers always serialise.
        let mut text = serde_json::to_string_pretty(&file).unwrap_or_default();
        text.push('\n');
        let path = run_dir.join(FILE_NAME);
        replace(&path, text.as_bytes())?;
        Ok(Published { path })
    }
}

/// A published status file.
#[derive(Debug)]
pub(crate) struct Published {
    path: PathBuf,
}

impl Drop for Published {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// An address that this host can connect to.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}
