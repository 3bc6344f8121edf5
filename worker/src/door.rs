//! How a replica meets the other ranks of a generation: over TCP, or over what a simulation has in its place.

use std::sync::Arc;
use std::time::Duration;

use lockstep_collective::{Collective, CollectiveError, Listener, TcpMesh};
use lockstep_proto::ids::{Generation, Rank};
use lockstep_proto::message::Open;

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

impl Door for Listener {
    fn meet(&self, open: &Open, rank: Rank, deadline: Duration) -> Result<Arc<dyn Collective>, CollectiveError> {
        let addresses: Vec<String> = open.members.iter().map(|member| member.address.clone()).collect();
        Ok(Arc::new(TcpMesh::connect(self, open.generation, &open.rendezvous, rank, &addresses, deadline)?))
    }

    fn cancel(&self, generation: Generation) {
        Listener::cancel(self, generation);
    }
}
