//! How the ranks of a generation come to have communicators.
//!
//! ```text
//! TcpMesh                 everyone with everyone, by generation and secret: the control plane
//! sentinel                from now on whoever is gone is noticed at once
//! leader: two unique ids ─► broadcast over the control plane
//! init of both, polled    then one operation on each, which makes the connections that NCCL puts off
//! ```
//! The ids go over the control plane rather than through the coordinator: they come to exactly those who proved that they
//! are of this generation, without a round trip more, and whoever fails meanwhile is known by name.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lockstep_collective::{Collective as _, CollectiveError, Lane, Listener, Op, TcpMesh};
use lockstep_proto::ids::{Generation, Rank, Step};

use crate::communicator::{Communicator, Place};
use crate::error::NcclError;
use crate::ffi::UniqueId;
use crate::mesh::{Core, NcclMesh};
use crate::ring::Progress;
use crate::runtime::Runtime;
use crate::staged::Staging;

/// Blocks of the small messages' kernels: few, so that there is room for both lanes' on any device.
const NORM_CTAS: u32 = 4;

/// Where the peers of one replica come to, over all its generations.
#[derive(Debug)]
pub struct Rendezvous {
    listener: Listener,
    runtime: Arc<Runtime>,
    /// The mesh that is coming to be.
    forming: Mutex<Option<Arc<Core>>>,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of generation {}", self.rank(), self.generation)
    }
}

/// Who meets.
#[derive(Clone, Copy, Debug)]
pub struct Party<'a> {
    /// Its number.
    pub generation: Generation,
    /// Its secret.
    pub secret: &'a str,
    /// This rank.
    pub rank: Rank,
    /// Who makes the ids.
    pub leader: Rank,
    /// `host:port` of everyone's listener, by rank.
    pub addresses: &'a [String],
}

impl Rendezvous {
    /// Of a replica with this listener and device.
    pub fn new(listener: Listener, runtime: Arc<Runtime>) -> Self {
        Self { listener, runtime, forming: Mutex::default() }
    }

    /// `host:port` for peers.
    pub fn address(&self) -> String {
        self.listener.address()
    }

    /// Meets the other ranks of a generation. `deadline` is also that of every later operation.
    ///
    /// # Errors
    /// Somebody never came, went, or its communicator did not come to be in time; it was cancelled; or
    /// [`CollectiveError::Unusable`]: the device, its driver or NCCL refuse, and will again.
    pub fn meet(&self, party: &Party<'_>, deadline: Duration) -> Result<NcclMesh, CollectiveError> {
        if let Some(what) = self.runtime.spoiled() {
            return Err(CollectiveError::Unusable { what });
        }
        let &Party { generation, secret, rank, leader, addresses } = party;
        let tcp = TcpMesh::connect(&self.listener, generation, secret, rank, addresses, deadline)?;
        let core = Arc::new(Core::new(Arc::clone(&self.runtime), tcp, deadline)?);
        *self.forming() = Some(Arc::clone(&core));
        let mesh = form(core, leader);
        *self.forming() = None;
        mesh
    }

    /// From any thread: meetings of `generation` and older ones end at once.
    pub fn cancel(&self, generation: Generation) {
        self.listener.cancel(generation);
        if let Some(core) = self.forming().as_ref().filter(|core| core.generation <= generation) {
            core.fail(CollectiveError::Aborted);
        }
    }

    fn forming(&self) -> std::sync::MutexGuard<'_, Option<Arc<Core>>> {
        self.forming.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn form(core: Arc<Core>, leader: Rank) -> Result<NcclMesh, CollectiveError> {
    let unusable = |what: String| core.fail(CollectiveError::Unusable { what });
    let staging = || Staging::new(&core.runtime.context).map_err(|error| unusable(error.to_string()));
    let lanes = [Mutex::new(staging()?), Mutex::new(staging()?)];
    let sentinel = crate::sentinel::start(&core).map_err(|error| unusable(format!("no thread: {error}")))?;
    // From here on dropping the mesh ends whatever has begun.
    let mesh = NcclMesh { core: Arc::clone(&core), lanes, sentinel: Some(sentinel) };

    let mut ids = [0; 256];
    if core.rank() == leader {
        for id in ids.chunks_mut(128) {
            let made = core.runtime.nccl.unique_id();
            let made = made.map_err(|error| core.fail(core.error(|| "the unique id".into(), error)))?;
            id.copy_from_slice(&made.0);
        }
    }
    let op = |lane, name| Op { lane, step: Step(0), name, index: 0 };
    core.tcp.broadcast(&op(Lane::Norm, "unique ids"), leader, &mut ids).map_err(|error| core.fail(error))?;
    let place = Place { rank: core.rank().0, world: core.world() as u32 };
    for (lane, id) in Lane::ALL.into_iter().zip(ids.chunks(128)) {
        let op = op(lane, "initialisation");
        let number = core.begin(&op, 0, 0);
        let mut name = [0; 128];
        name.copy_from_slice(id);
        let max_ctas = (lane == Lane::Norm).then_some(NORM_CTAS);
        let operation = || format!("initialisation of the {lane} lane's communicator");
        let failed = |error: NcclError| core.fail(core.error(operation, error));
        let begun = Communicator::begin_on(&core.runtime, &UniqueId(name), place, (max_ctas, core.deadline));
        let comm = core.adopt(begun.map_err(failed)?);
        core.ring(lane).reach(number, Progress::Enqueued);
        core.wait(lane, &operation, || comm.is_ready())?;
        core.ring(lane).reach(number, Progress::Finished);
    }
    for lane in Lane::ALL {
        lockstep_collective::Collective::barrier(&mesh, &op(lane, "first meeting"))?;
    }
    Ok(mesh)
}
