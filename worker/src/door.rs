//! How a replica meets the other ranks of a generation: over TCP, over NCCL, or over what a simulation has in its place.

use std::sync::Arc;
use std::time::Duration;

use lockstep_collective::{Collective, CollectiveError, Listener, TcpMesh};
use lockstep_nccl::{Libraries, Party, Rendezvous, Runtime};
use lockstep_proto::ids::{Generation, Rank};
use lockstep_proto::message::Open;

use crate::exit::Exit;

/// Where the peers of one replica come to, over all its generations.
pub trait Door: Send + Sync {
    /// Meets all other ranks of `open`, and gives what they do together. `deadline` is that of the meeting, and of
    /// every operation afterwards.
    ///
    /// # Errors
    /// Somebody never came; or the meeting was cancelled.
    fn meet(&self, open: &Open, rank: Rank, deadline: Duration) -> Result<Arc<dyn Collective>, CollectiveError>;

    /// From any thread: meetings of `generation` and older ones end at once.
    fn cancel(&self, generation: Generation);
}

/// What carries the sums of a process's replicas.
#[derive(Clone, Debug, Default)]
pub enum Transport {
    /// Sockets: for replicas on CPUs.
    #[default]
    Tcp,
    /// NCCL, for replicas on GPUs. CPU replicas go through staging buffers of device 0: so tests do, on a test double.
    Nccl(Libraries),
}

impl Transport {
    /// The door of the replica that computes on `device`, at `listener`.
    ///
    /// # Errors
    /// NCCL or the driver is missing, too old or refuses (78).
    pub fn door(&self, listener: Listener, device: &str) -> Result<Arc<dyn Door>, Exit> {
        let Self::Nccl(libraries) = self else { return Ok(Arc::new(listener)) };
        let ordinal = device.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse().ok()).unwrap_or(0);
        let runtime = Runtime::open(libraries, ordinal);
        let runtime = runtime.map_err(|error| Exit::new(error.exit_code(), error.to_string()))?;
        Ok(Arc::new(Rendezvous::new(listener, Arc::new(runtime))))
    }
}

impl Door for Listener {
    fn meet(&self, open: &Open, rank: Rank, deadline: Duration) -> Result<Arc<dyn Collective>, CollectiveError> {
        let addresses: Vec<String> = open.members.iter().map(|member| member.address.clone()).collect();
        Ok(Arc::new(TcpMesh::connect(self, open.generation, &open.rendezvous, rank, &addresses, deadline)?))
    }

    fn cancel(&self, generation: Generation) {
        Listener::cancel(self, generation);
    }
}

impl Door for Rendezvous {
    fn meet(&self, open: &Open, rank: Rank, deadline: Duration) -> Result<Arc<dyn Collective>, CollectiveError> {
        let addresses: Vec<String> = open.members.iter().map(|member| member.address.clone()).collect();
        let Open { generation, leader, ref rendezvous, .. } = *open;
        let party = Party { generation, secret: rendezvous, rank, leader, addresses: &addresses };
        Ok(Arc::new(Rendezvous::meet(self, &party, deadline)?))
    }

    fn cancel(&self, generation: Generation) {
        Rendezvous::cancel(self, generation);
    }
}
