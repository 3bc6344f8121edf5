//! The interface that the trainer sees.

use std::any::Any;
use std::fmt;

use lockstep_proto::ids::{Rank, Step};

use crate::error::CollectiveError;
use crate::layout::Layout;

/// A stream of operations of its own, which never queues behind another. Different lanes may be used by different
/// threads at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Small messages on the critical path: BatchNorm sums, losses. Waits spinning for a moment.
    Norm,
    /// Gradient buckets, healing. Waits asleep, since others compute meanwhile.
    Buckets,
}

impl Lane {
    /// All lanes.
    pub const ALL: [Lane; 2] = [Lane::Norm, Lane::Buckets];

    pub(crate) fn index(self) -> usize {
        match self {
            Lane::Norm => 0,
            Lane::Buckets => 1,
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Lane::Norm => "norm",
            Lane::Buckets => "buckets",
        })
    }
}

/// Names one operation. All ranks must give the same, in the same order on a lane: a difference is an error that names
/// both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Op {
    /// On which lane.
    pub lane: Lane,
    /// While working on which step.
    pub step: Step,
    /// What for, such as `gradient bucket`.
    pub name: &'static str,
    /// Which of its name: a layer, a bucket.
    pub index: u32,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} of step {}", self.name, self.index, self.step)
    }
}

/// What ranks do together. One operation at a time on a lane; a second thread on the same lane waits for its turn.
///
/// Errors of all operations: [`CollectiveError`]. After one, everything later fails with the first cause, and the
/// contents of output buffers are unspecified.
pub trait Collective: Send + Sync {
    /// This rank.
    fn rank(&self) -> Rank;

    /// Number of ranks.
    fn world(&self) -> u32;

    /// Sums over all chunks of `layout`, in tree order, into `out` on every rank: the same bits everywhere, whoever
    /// holds which chunks. `partials` are this rank's [maximal nodes](Layout::nodes), ascending, each as long as `out`;
    /// none for a rank without chunks. If nobody has chunks the result is zeros.
    fn reduce_f32(&self, op: &Op, layout: &Layout, partials: &[&[f32]], out: &mut [f32])
    -> Result<(), CollectiveError>;

    /// As [`reduce_f32`](Self::reduce_f32), in double precision.
    fn reduce_f64(&self, op: &Op, layout: &Layout, partials: &[&[f64]], out: &mut [f64])
    -> Result<(), CollectiveError>;

    /// Copies `bytes` of `root` over those of every other rank. Lengths must be equal.
    fn broadcast(&self, op: &Op, root: Rank, bytes: &mut [u8]) -> Result<(), CollectiveError>;

    /// Everybody's bytes, by rank. Lengths may differ and be zero; meant for small messages.
    fn all_gather(&self, op: &Op, mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError>;

    /// From any thread: everything in flight and later fails at once, here and on the peers.
    fn abort(&self);

    /// What is underneath, for who knows it and asks for more than this interface has, such as sums of device memory.
    fn underneath(&self) -> Option<&(dyn Any + Send + Sync)> {
        None
    }

    /// Returns once every rank has called it.
    fn barrier(&self, op: &Op) -> Result<(), CollectiveError> {
        self.all_gather(op, &[]).map(|_| ())
    }
}
