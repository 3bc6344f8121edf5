//! Where am I? Launchers put a process somewhere and tell it by variables. The first of these rules decides:
//!
//! | rule | it is there | where the coordinator is |
//! |---|---|---|
//! | flags | `--coordinator`, `--workers` | as they say |
//! | Lockstep | `LOCKSTEP_COORDINATOR`, `LOCKSTEP_WORKERS` | as they say |
//! | torchrun | `RANK`, `WORLD_SIZE`, `MASTER_ADDR` | there, at `MASTER_PORT`; at the next port where torchrun's own store has that |
//! | Kubeflow | `PET_NNODES`, `PET_NODE_RANK`, `PET_MASTER_ADDR` | there, at `PET_MASTER_PORT` |
//! | Slurm | a step of `srun` with several tasks | task 0, by a ticket |
//! | Indexed Job | `JOB_COMPLETION_INDEX`, in a headless Service | index 0, by its host name |
//! | alone | | in this process |
//!
//! May never: guess. What contradicts itself is an error that names the variable.

mod nodelist;
mod place;
mod ticket;
mod vars;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::time::Duration;

pub use place::{Meeting, Place, Told};
pub use ticket::Ticket;
pub use vars::Vars;

use crate::failure::Failure;
use crate::{exec, output};

/// How long tasks wait for what task 0 says: it may be the last that the scheduler starts, and prove checkpoints first.
const TICKET_PATIENCE: Duration = Duration::from_secs(600);
/// The token, in every process.
pub const TOKEN: &str = "LOCKSTEP_TOKEN";

/// What a worker needs to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// `http://HOST:PORT`
    pub url: String,
    /// `None`: as the environment says.
    pub token: Option<String>,
}

impl Place {
    /// Says which rule fired, where it is worth a line.
    pub fn announce(&self) {
        if let Some(line) = self.describe() {
            output::note(line);
        }
        self.warnings.iter().for_each(|warning| output::note(format!("warning: {warning}")));
    }

    /// For a task that is not the first: how to join.
    ///
    /// # Errors
    /// The first task failed, or said nothing in time.
    pub fn invitation(&self) -> Result<Option<Invitation>, Failure> {
        match &self.meeting {
            Meeting::Told | Meeting::Here => Ok(None),
            Meeting::At { host, port } => {
                let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                Ok(Some(Invitation { url: format!("http://{host}:{port}"), token: None }))
            }
            Meeting::ByTicket(file) => {
                let ticket = file.wait(TICKET_PATIENCE)?;
                Ok(Some(Invitation { url: ticket.url, token: Some(ticket.token) }))
            }
        }
    }

    /// For the first task: it cannot begin, so nobody is to wait for it.
    pub fn tell(&self, failure: &Failure) {
        if let Meeting::ByTicket(file) = &self.meeting {
            file.post_failure(failure);
        }
    }

    /// For the first task: where to listen, by preference; loopback where nobody else needs to come.
    pub fn listen(&self) -> SocketAddr {
        let (is_local, port) = match &self.meeting {
            Meeting::Told | Meeting::Here => (true, 0),
            Meeting::At { host, port } => (is_only_loopback(host), *port),
            Meeting::ByTicket(file) => (file.is_one_node, file.port()),
        };
        SocketAddr::new(if is_local { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED }.into(), port)
    }

    /// For the first task: how the others reach the address that it got.
    pub fn url(&self, bound: SocketAddr) -> String {
        let host = match &self.meeting {
            _ if bound.ip().is_loopback() => bound.ip().to_string(),
            Meeting::At { host, .. } => host.clone(),
            _ => self.own_name(),
        };
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        format!("http://{host}:{}", bound.port())
    }

    /// A name of this host that others can use: the scheduler's, the system's, or the address that faces the launcher.
    fn own_name(&self) -> String {
        let named = self.names.iter().find(|name| !is_only_loopback(name));
        let facing = || {
            let towards = self.launcher.as_deref()?;
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
            socket.connect((towards, 9)).ok()?; // no packet is sent
            Some(socket.local_addr().ok()?.ip().to_string())
        };
        let last = || self.names.last().cloned().unwrap_or_else(|| "localhost".to_owned());
        named.cloned().or_else(facing).unwrap_or_else(last)
    }
}

/// Whether a name means only this host, or nothing at all.
fn is_only_loopback(host: &str) -> bool {
    if let Ok(address) = host.parse::<IpAddr>() {
        return address.is_loopback();
    }
    match (host, 0).to_socket_addrs() {
        Ok(mut addresses) => addresses.all(|address| address.ip().is_loopback()),
        Err(_) => true,
    }
}

/// Whether one of these flags is there, as `--flag` or `--flag=value`.
fn is_given(args: &[OsString], flags: &[&str]) -> bool {
    args.iter().any(|arg| {
        let arg = arg.to_string_lossy();
        flags.contains(&arg.split_once('=').map_or(&*arg, |(flag, _)| flag))
    })
}

/// Becomes a worker of a run that another task coordinates; returns only when that fails.
pub fn join(place: &Place, args: Vec<OsString>) -> Failure {
    let invitation = match place.invitation() {
        Ok(invitation) => invitation,
        Err(failure) => return failure,
    };
    let mut args = args;
    let mut token = None;
    if let Some(invitation) = invitation {
        args.extend(["--coordinator".into(), invitation.url.into()]);
        token = invitation.token.filter(|_| !is_given(&args, &["--token"]));
    }
    if let Some(threads) = place.threads.filter(|_| !is_given(&args, &["--threads"])) {
        args.extend(["--threads".into(), threads.to_string().into()]);
    }
    exec::worker_with("worker", &args, token.map(|token| (TOKEN, token)))
}

/// `lockstep worker ARGS`: joins whatever the launcher says, unless the arguments or the environment say.
pub fn worker(args: Vec<OsString>) -> Failure {
    if is_given(&args, &["--help", "-h", "--version", "-V"]) {
        return exec::worker("worker", &args);
    }
    let place = match Place::find(&Vars::of_process(), Told::worker(is_given(&args, &["--coordinator"]))) {
        Ok(place) => place,
        Err(failure) => return failure,
    };
    place.announce();
    join(&place, args)
}

/// What makes a token, for a person whose cluster has none yet.
pub fn token_remedy(vars: &Vars) -> Option<String> {
    vars.has("KUBERNETES_SERVICE_HOST").then(|| {
        "in Kubernetes: kubectl create secret generic lockstep-token --from-literal=token=$(openssl rand -hex 32)"
            .to_owned()
    })
}
