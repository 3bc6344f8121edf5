//! Where peers come to.

use std::net::{TcpListener, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use lockstep_proto::ids::Generation;
use rustix::event::{EventfdFlags, eventfd};
use socket2::{Domain, Protocol, Socket, Type};

use crate::error::CollectiveError;

/// Connections that the system keeps until someone looks: several for each peer of a large world.
const BACKLOG: i32 = 1024;

/// A listening socket that lives as long as a replica, over all its generations.
#[derive(Debug)]
pub struct Listener {
    pub(crate) socket: TcpListener,
    /// Readable once something was cancelled.
    pub(crate) wake: OwnedFd,
    cancelled: AtomicU64,
    host: String,
    port: u16,
}

impl Listener {
    /// Listens on a port of the system's choice. `host` is a name or an address of this machine, and what peers will
    /// be told.
    pub fn bind(host: &str) -> Result<Self, CollectiveError> {
        Self::try_bind(host)
            .map_err(|error| CollectiveError::Listen { address: host.to_string(), cause: error.to_string() })
    }

    fn try_bind(host: &str) -> std::io::Result<Self> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
        for address in (bare, 0).to_socket_addrs()? {
            let bound =
                Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).and_then(|socket| {
                    socket.bind(&address.into())?;
                    socket.listen(BACKLOG)?;
                    socket.set_nonblocking(true)?;
                    Ok(socket)
                });
            match bound {
                Ok(socket) => {
                    let socket = TcpListener::from(socket);
                    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
                    let port = socket.local_addr()?.port();
                    return Ok(Self { socket, wake, cancelled: AtomicU64::new(0), host: bare.to_string(), port });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// `host:port` for peers.
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// From any thread: meetings of `generation` and older ones end at once with [`CollectiveError::Aborted`].
    pub fn cancel(&self, generation: Generation) {
        self.cancelled.fetch_max(generation.0, Ordering::AcqRel);
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    pub(crate) fn is_cancelled(&self, generation: Generation) -> bool {
        generation.0 <= self.cancelled.load(Ordering::Acquire)
    }

    /// Makes `wake` quiet until the next cancellation.
    pub(crate) fn hush(&self) {
        let _ = rustix::io::read(&self.wake, &mut [0; 8][..]);
    }
}
