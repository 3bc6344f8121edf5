//! What a step asks of an accelerator.

use std::sync::Arc;
use std::time::Duration;

use lockstep_collective::{Collective, CollectiveError, Layout, Op};
use lockstep_cuda::{Fused, Usage};
use lockstep_proto::ids::Rank;
use lockstep_torch::TorchError;
use tch::{Device, Kind, Tensor};

/// A queue of the device. Work of one stream runs in the order in which it was enqueued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stream {
    /// Forward, backward, optimizer, and the small messages of BatchNorm.
    Compute,
    /// Gradient buckets and the vote.
    Buckets,
}

/// A piece of device memory that work reads or writes. Work says so, so that the order of everything can be checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// Rate, nonce and the other numbers of a step that come from the host.
    Control,
    /// Room of the host from which a batch is copied, in a ring.
    Staging(u32),
    /// Images and labels.
    Batch,
    /// Master weights.
    Weights,
    /// What convolutions see.
    Rounded,
    /// The optimizer's buffers.
    Momentum,
    /// Everything between the images and the loss, and its gradients.
    Activations,
    /// A message of a BatchNorm layer.
    Message,
    /// A bucket of the gradient.
    Gradient(u32),
    /// Loss and count.
    Totals,
    /// The vote.
    Vote,
    /// Whether the step counts.
    Verdict,
    /// Running statistics.
    Running,
    /// What they are to take in.
    Taken,
    /// The last step that counted.
    Applied,
    /// The host's copy of a step's outcome, in a ring.
    Outcome(u32),
}

/// Something that is enqueued.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    /// For people, and for profilers.
    pub name: &'static str,
    /// What it reads.
    pub reads: &'a [Place],
    /// What it writes.
    pub writes: &'a [Place],
}

/// A point in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Event(pub u64);

/// A captured step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Graph(pub u64);

/// Why the device did not do something.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// A collective failed: the generation is over, the device is not.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// libtorch.
    #[error(transparent)]
    Torch(#[from] TorchError),
    /// The device cannot be used any more by this process.
    #[error("{device}: {what}; this process must end, others go on without it")]
    Lost {
        /// `cuda:0`
        device: String,
        /// What it said, or what it did not do in time.
        what: String,
    },
}

/// A device, its streams, and what it does together with other ranks in the open generation. Everything but
/// [`fetch`](Self::fetch), [`gather`](Self::gather) and the end of a generation only enqueues.
pub trait Gpu: Send {
    /// Where its tensors live.
    fn device(&self) -> Device;

    /// Enqueues what `f` does. `f` may be called now, or again whenever a captured graph is replayed.
    ///
    /// # Errors
    /// What libtorch says.
    fn run(
        &mut self,
        stream: Stream,
        work: Work<'_>,
        f: &mut dyn FnMut() -> Result<(), TorchError>,
    ) -> Result<(), GpuError>;

    /// Enqueues the sum over ranks of `values`, in place and in no promised order.
    ///
    /// # Errors
    /// The communicator has failed.
    fn all_reduce(&mut self, stream: Stream, op: &Op, place: Place, values: &Tensor) -> Result<(), GpuError>;

    /// The sum over all chunks of a layout into `out`, in tree order: the same bits whoever holds which. `parts` are this
    /// rank's partial sums, with the layout. Waits for the device: for exactness, not for speed.
    ///
    /// # Errors
    /// A collective that failed.
    fn reduce_in_order(
        &mut self,
        stream: Stream,
        op: &Op,
        parts: (&Layout, &[Tensor]),
        out: (Place, &mut Tensor),
    ) -> Result<(), GpuError>;

    /// Marks a point in a stream.
    ///
    /// # Errors
    /// The device is lost.
    fn record(&mut self, stream: Stream) -> Result<Event, GpuError>;

    /// What is enqueued on `stream` from now on waits for `event`.
    ///
    /// # Errors
    /// The device is lost.
    fn wait(&mut self, stream: Stream, event: Event) -> Result<(), GpuError>;

    /// Numbers from the host into `to` (f64), behind everything enqueued before.
    ///
    /// # Errors
    /// The device is lost.
    fn upload(&mut self, stream: Stream, place: Place, to: &mut Tensor, values: &[f64]) -> Result<(), GpuError>;

    /// Room on the host that the device can read and write while others compute.
    ///
    /// # Errors
    /// What libtorch says.
    fn host_room(&self, len: usize, kind: Kind) -> Result<Tensor, GpuError>;

    /// Waits until the host may write `place`, which work reads that was enqueued before `read`.
    ///
    /// # Errors
    /// The device is lost, or does not come to it in time.
    fn release(&mut self, place: Place, read: Option<Event>) -> Result<(), GpuError>;

    /// Whether an event has happened.
    ///
    /// # Errors
    /// The device is lost, or a collective has failed meanwhile.
    fn is_done(&mut self, event: Event) -> Result<bool, GpuError>;

    /// Waits for an event, at most as long as a collective may take, and reads room of the host.
    ///
    /// # Errors
    /// A collective that failed or came to no end, with its culprit; the device is lost.
    fn fetch(&mut self, event: Event, place: Place, room: &Tensor) -> Result<Vec<f64>, GpuError>;

    /// Kernels of ours that the device has, and is to use.
    fn fused(&self) -> Option<Fused> {
        None
    }

    /// Kernels, copies and waits of the step that was captured last.
    fn nodes(&self) -> Option<u64> {
        None
    }

    /// Memory that tensors take, where it is the device's own.
    fn usage(&self) -> Option<Usage> {
        None
    }

    /// One where this rank is sound, zero once it is poisoned (f64, 1 number, on the device).
    fn soundness(&self) -> Tensor;

    /// Why steps cannot be captured; `None` if they can.
    fn capture_refusal(&self) -> Option<String>;

    /// Captures what `f` enqueues, without running it.
    ///
    /// # Errors
    /// The device refuses: nothing has happened then.
    fn capture(&mut self, f: &mut dyn FnMut(&mut dyn Gpu) -> Result<(), GpuError>) -> Result<Graph, GpuError>;

    /// Enqueues a captured graph.
    ///
    /// # Errors
    /// The device is lost.
    fn replay(&mut self, graph: Graph) -> Result<(), GpuError>;

    /// Forgets a graph. Nothing may be running it.
    ///
    /// # Errors
    /// The device is lost.
    fn destroy(&mut self, graph: Graph) -> Result<(), GpuError>;

    /// This rank.
    fn rank(&self) -> Rank;

    /// Number of ranks.
    fn world(&self) -> u32;

    /// What every rank says, by rank. Waits for them; not for the hot path.
    ///
    /// # Errors
    /// A collective that failed.
    fn gather(&mut self, op: &Op, mine: &[u8]) -> Result<Vec<Vec<u8>>, GpuError>;

    /// Whether all ranks say yes. Waits for them.
    ///
    /// # Errors
    /// A collective that failed.
    fn agree(&mut self, op: &Op, yes: bool) -> Result<bool, GpuError> {
        Ok(self.gather(op, &[u8::from(yes)])?.iter().all(|bytes| bytes == &[1]))
    }

    /// Uses this collective, and says that this rank is sound.
    ///
    /// # Errors
    /// No communicator, or the device is lost.
    fn open(&mut self, collective: Arc<dyn Collective>) -> Result<(), GpuError>;

    /// From now on this rank gives no vote: before anything is aborted.
    ///
    /// # Errors
    /// The device is lost.
    fn poison(&mut self) -> Result<(), GpuError>;

    /// Starts to abort the communicator, in a thread of its own: it may wait for graphs that hold it.
    fn begin_abort(&mut self);

    /// Waits until nothing is enqueued any more.
    ///
    /// # Errors
    /// [`GpuError::Lost`] after `deadline`, or what the device says.
    fn drain(&mut self, deadline: Duration) -> Result<(), GpuError>;

    /// Waits for the abort, when no graph holds the communicator any more.
    ///
    /// # Errors
    /// [`GpuError::Lost`] after `deadline`.
    fn finish_abort(&mut self, deadline: Duration) -> Result<(), GpuError>;
}
