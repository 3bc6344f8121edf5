//! The real thing: libtorch's work on two streams of a CUDA device, sums over NCCL, steps as CUDA graphs.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::CString;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_collective::{Collective, CollectiveError, Lane, Layout, Op, Solo};
use lockstep_cuda::{CudaError, Device, Fused, Graph as Captured, Mark, Queue, Usage};
use lockstep_nccl::NcclMesh;
use lockstep_proto::ids::{Rank, Step};
use lockstep_torch::{Element, TorchError, copy_later, read, write};
use tch::{Kind, Tensor};

use super::gpu::{Event, Gpu, GpuError, Graph, Place, Stream, Work};
use super::trial;

/// Points in streams that are remembered: far more than two steps have.
const MARKS: usize = 8192;
/// How long a wait stays awake before it sleeps between looks, and how long it sleeps.
const AWAKE: Duration = Duration::from_micros(200);
const NAP: Duration = Duration::from_micros(50);

/// How a device is to be used.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Keep to algorithms that give the same bits every time, in place of measuring which is fastest.
    pub deterministic: bool,
    /// Let fp32 products round their factors to TF32.
    pub tf32: bool,
    /// Capture steps as CUDA graphs where they can be.
    pub graphs: bool,
    /// Use our kernels where they are faster; with `deterministic` wherever they are there, since all ranks must decide alike.
    pub kernels: bool,
    /// Number type of activations.
    pub kind: Kind,
    /// How long work of this rank alone may take.
    pub patience: Duration,
}

/// See the module. All of it belongs to the thread that made it.
pub struct CudaGpu {
    device: Device,
    options: Options,
    collective: Arc<dyn Collective>,
    /// Pinned: zero once this rank is poisoned.
    sound: Tensor,
    /// The same memory as the device sees it.
    soundness: Tensor,
    marks: VecDeque<Mark>,
    /// Number of the first mark that is remembered, and of the next one.
    first: u64,
    next: u64,
    /// Pinned rooms on their way to the device, and when each will have been read.
    uploads: Vec<(Tensor, Mark)>,
    graphs: BTreeMap<u64, Captured>,
    num_graphs: u64,
    /// Nodes of the graph that was captured last.
    nodes: Option<u64>,
    fused: Option<Fused>,
    /// Names of work, for profilers.
    names: BTreeMap<&'static str, CString>,
}

impl CudaGpu {
    /// On a device that was opened in this thread.
    ///
    /// # Errors
    /// No memory.
    pub fn new(device: Device, options: Options) -> Result<Self, GpuError> {
        lockstep_torch::device::keep_bits(options.deterministic)?;
        lockstep_torch::device::allow_tf32(options.tf32)?;
        let ordinal = device.ordinal() as usize;
        let ones = Tensor::f_ones([1], (Kind::Double, tch::Device::Cpu)).map_err(TorchError::from)?;
        let sound = ones.f_pin_memory(tch::Device::Cuda(ordinal)).map_err(TorchError::from)?;
        let soundness = lockstep_torch::device::as_seen_by(&sound, ordinal)?;
        let fused = if options.kernels { trial::fused(&device, options) } else { None };
        Ok(Self {
            fused,
            names: BTreeMap::new(),
            device,
            options,
            collective: Arc::new(Solo::new()),
            sound,
            soundness,
            marks: VecDeque::new(),
            first: 0,
            next: 0,
            uploads: Vec::new(),
            graphs: BTreeMap::new(),
            num_graphs: 0,
            nodes: None,
        })
    }

    fn queue(&self, stream: Stream) -> &Queue {
        match stream {
            Stream::Compute => &self.device.compute,
            Stream::Buckets => &self.device.buckets,
        }
    }

    fn mesh(&self) -> Option<&NcclMesh> {
        self.collective.underneath().and_then(|any| any.downcast_ref())
    }

    fn lost(&self, what: impl ToString) -> GpuError {
        GpuError::Lost { device: format!("cuda:{}", self.device.ordinal()), what: what.to_string() }
    }

    fn sure<T>(&self, result: Result<T, CudaError>) -> Result<T, GpuError> {
        result.map_err(|error| self.lost(error))
    }

    fn mark(&self, event: Event) -> Result<&Mark, GpuError> {
        let at = event.0.checked_sub(self.first).and_then(|at| self.marks.get(at as usize));
        at.ok_or_else(|| TorchError::new(format!("{event:?} is too old to be waited for")).into())
    }

    /// Waits for a mark: with others at most as long as a collective may take.
    fn attend(&self, mark: &Mark, what: &str) -> Result<(), GpuError> {
        if let Some(mesh) = self.mesh() {
            return Ok(mesh.wait_for(Lane::Buckets, what, mark)?);
        }
        let began = Instant::now();
        while !mark.is_reached().map_err(|error| self.lost(error))? {
            let waited = began.elapsed();
            if waited > self.options.patience {
                return Err(self.lost(format!("{what} did not end within {waited:.0?}")));
            }
            if waited > AWAKE {
                std::thread::sleep(NAP);
            }
        }
        Ok(())
    }

    /// A tensor's numbers, behind what is on the stream.
    fn pull<T: Element>(&mut self, stream: Stream, values: &Tensor, what: &str) -> Result<Vec<T>, GpuError> {
        let mut room = self.host_room(values.numel(), values.kind())?;
        let flat = values.f_contiguous().and_then(|dense| dense.f_view([-1])).map_err(TorchError::from)?;
        // What made them dense, and maybe the numbers themselves, was enqueued for compute.
        let made = self.sure(self.device.mark())?;
        self.sure(self.device.compute.record(&made))?;
        self.sure(self.queue(stream).wait_for(&made))?;
        self.within(stream, || copy_later(&mut room, &flat))?;
        let mark = self.sure(self.device.mark())?;
        self.sure(self.queue(stream).record(&mark))?;
        self.attend(&mark, what)?;
        let mut out = vec![T::default(); room.numel()];
        read(&room, &mut out)?;
        Ok(out)
    }

    /// Numbers into a tensor, behind what is on the stream.
    fn push<T: Element>(&mut self, stream: Stream, to: &mut Tensor, values: &[T]) -> Result<(), GpuError> {
        let mut room = self.host_room(values.len(), T::KIND)?;
        write(&mut room, values)?;
        let room = room.f_view(to.size().as_slice()).map_err(TorchError::from)?;
        self.within(stream, || copy_later(to, &room))
    }

    /// What libtorch enqueues within `f` goes to `stream`; afterwards to the compute stream again, as everything that says
    /// nothing of a stream.
    fn within(&self, stream: Stream, f: impl FnOnce() -> Result<(), TorchError>) -> Result<(), GpuError> {
        self.queue(stream).enter()?;
        let done = f();
        self.device.compute.enter()?;
        Ok(done?)
    }

    /// A sum over each communicator on scratch memory: connections are made now, and not within the first step. What fails
    /// here, the first step is told.
    fn warm_up(&self) -> Result<(), GpuError> {
        let Some(mesh) = self.mesh() else { return Ok(()) };
        for (stream, lane, kind) in
            [(Stream::Compute, Lane::Norm, Kind::Double), (Stream::Buckets, Lane::Buckets, Kind::Float)]
        {
            let op = Op { lane, step: Step(0), name: "warm-up", index: 0 };
            self.queue(stream).enter()?;
            let scratch = Tensor::f_zeros([1], (kind, self.device())).map_err(TorchError::from);
            self.device.compute.enter()?;
            let _ = self.queue(stream).all_reduce(mesh, &op, &scratch?);
        }
        Ok(())
    }

    fn reduce<T: Element>(
        &mut self,
        stream: Stream,
        partials: &[Tensor],
        out: &mut Tensor,
        sum: impl FnOnce(&dyn Collective, &[&[T]], &mut [T]) -> Result<(), CollectiveError>,
    ) -> Result<(), GpuError> {
        let mut all: Vec<Vec<T>> = Vec::new();
        for partial in partials {
            all.push(self.pull(stream, partial, "sums on their way to the host")?);
        }
        let refs: Vec<&[T]> = all.iter().map(Vec::as_slice).collect();
        let mut total = vec![T::default(); out.numel()];
        sum(&*Arc::clone(&self.collective), &refs, &mut total)?;
        self.push(stream, out, &total)
    }
}

impl Gpu for CudaGpu {
    fn device(&self) -> tch::Device {
        tch::Device::Cuda(self.device.ordinal() as usize)
    }

    fn run(
        &mut self,
        stream: Stream,
        work: Work<'_>,
        f: &mut dyn FnMut() -> Result<(), TorchError>,
    ) -> Result<(), GpuError> {
        let Ok(graphs) = &self.device.graphs else { return self.within(stream, f) };
        let name = self.names.entry(work.name).or_insert_with(|| CString::new(work.name).unwrap_or_default()).clone();
        graphs.clone().range(&name, || self.within(stream, f))
    }

    fn all_reduce(&mut self, stream: Stream, op: &Op, _: Place, values: &Tensor) -> Result<(), GpuError> {
        if self.world() == 1 {
            return Ok(());
        }
        if let Some(mesh) = self.mesh() {
            self.queue(stream).all_reduce(mesh, op, values)?;
            return Ok(());
        }
        // Another transport: through the host.
        let layout = Layout::by_rank(self.world());
        let wide = values.f_to_kind(Kind::Double).map_err(TorchError::from)?;
        let mut sum = wide.f_empty_like().map_err(TorchError::from)?;
        self.reduce_in_order(stream, op, (&layout, &[wide]), (Place::Message, &mut sum))?;
        let mut values = values.shallow_clone();
        self.within(stream, || Ok(values.f_copy_(&sum)?))
    }

    fn reduce_in_order(
        &mut self,
        stream: Stream,
        op: &Op,
        (layout, partials): (&Layout, &[Tensor]),
        (_, out): (Place, &mut Tensor),
    ) -> Result<(), GpuError> {
        if out.kind() == Kind::Float {
            return self.reduce::<f32>(stream, partials, out, |collective, parts, sum| {
                collective.reduce_f32(op, layout, parts, sum)
            });
        }
        self.reduce::<f64>(stream, partials, out, |collective, parts, sum| {
            collective.reduce_f64(op, layout, parts, sum)
        })
    }

    fn record(&mut self, stream: Stream) -> Result<Event, GpuError> {
        // The driver keeps what a mark stands for until it has happened, so the oldest may be used again.
        let mark = if self.marks.len() < MARKS { None } else { self.marks.pop_front() };
        let mark = match mark {
            Some(mark) => {
                self.first += 1;
                mark
            }
            None => self.sure(self.device.mark())?,
        };
        self.sure(self.queue(stream).record(&mark))?;
        self.marks.push_back(mark);
        let event = Event(self.next);
        self.next += 1;
        Ok(event)
    }

    fn wait(&mut self, stream: Stream, event: Event) -> Result<(), GpuError> {
        let mark = self.mark(event)?;
        self.sure(self.queue(stream).wait_for(mark))
    }

    fn upload(&mut self, stream: Stream, _: Place, to: &mut Tensor, values: &[f64]) -> Result<(), GpuError> {
        let is_free =
            |(room, mark): &(Tensor, Mark)| room.numel() == values.len() && mark.is_reached().unwrap_or(false);
        let at = match self.uploads.iter().position(is_free) {
            Some(at) => at,
            None => {
                let room = self.host_room(values.len(), Kind::Double)?;
                let mark = self.sure(self.device.mark())?;
                self.uploads.push((room, mark));
                self.uploads.len() - 1
            }
        };
        let mut room = self.uploads[at].0.shallow_clone();
        write(&mut room, values)?;
        self.within(stream, || copy_later(to, &room))?;
        self.sure(self.queue(stream).record(&self.uploads[at].1))
    }

    fn host_room(&self, len: usize, kind: Kind) -> Result<Tensor, GpuError> {
        let plain = Tensor::f_zeros([len as i64], (kind, tch::Device::Cpu)).map_err(TorchError::from)?;
        Ok(plain.f_pin_memory(self.device()).map_err(TorchError::from)?)
    }

    fn release(&mut self, _: Place, read: Option<Event>) -> Result<(), GpuError> {
        // One that is forgotten lies thousands of points back.
        match read.filter(|event| event.0 >= self.first) {
            Some(event) => self.attend(self.mark(event)?, "the copy of a batch"),
            None => Ok(()),
        }
    }

    fn is_done(&mut self, event: Event) -> Result<bool, GpuError> {
        if let Some(mesh) = self.mesh() {
            mesh.check()?;
        }
        self.mark(event)?.is_reached().map_err(|error| self.lost(error))
    }

    fn fetch(&mut self, event: Event, _: Place, room: &Tensor) -> Result<Vec<f64>, GpuError> {
        self.attend(self.mark(event)?, "a step on the device")?;
        let mut out = vec![0.0; room.numel()];
        read(room, &mut out)?;
        Ok(out)
    }

    fn fused(&self) -> Option<Fused> {
        self.fused.clone()
    }

    fn nodes(&self) -> Option<u64> {
        self.nodes
    }

    fn usage(&self) -> Option<Usage> {
        self.device.graphs.as_ref().ok()?.usage(self.device.ordinal()).ok()
    }

    fn soundness(&self) -> Tensor {
        self.soundness.shallow_clone()
    }

    fn capture_refusal(&self) -> Option<String> {
        if !self.options.graphs {
            return Some("LOCKSTEP_GRAPHS is off".into());
        }
        if let Err(why) = &self.device.graphs {
            return Some(why.clone());
        }
        (self.world() > 1 && self.mesh().is_none()).then(|| "sums go through the host".into())
    }

    fn capture(&mut self, f: &mut dyn FnMut(&mut dyn Gpu) -> Result<(), GpuError>) -> Result<Graph, GpuError> {
        let graphs = self.device.graphs.clone().map_err(TorchError::new)?;
        self.device.compute.enter()?;
        let captured = graphs.capture(|| f(self))?;
        self.nodes = captured.num_nodes().ok();
        tracing::info!("a step is captured: {} nodes", self.nodes.map_or("unknown".into(), |nodes| nodes.to_string()));
        self.num_graphs += 1;
        self.graphs.insert(self.num_graphs, captured);
        Ok(Graph(self.num_graphs))
    }

    fn replay(&mut self, graph: Graph) -> Result<(), GpuError> {
        self.device.compute.enter()?;
        let captured = self.graphs.get_mut(&graph.0);
        let captured = captured.ok_or_else(|| TorchError::new(format!("{graph:?} was destroyed")))?;
        Ok(captured.replay()?)
    }

    fn destroy(&mut self, graph: Graph) -> Result<(), GpuError> {
        self.graphs.remove(&graph.0);
        Ok(())
    }

    fn rank(&self) -> Rank {
        self.collective.rank()
    }

    fn world(&self) -> u32 {
        self.collective.world()
    }

    fn gather(&mut self, op: &Op, mine: &[u8]) -> Result<Vec<Vec<u8>>, GpuError> {
        Ok(self.collective.all_gather(op, mine)?)
    }

    fn open(&mut self, collective: Arc<dyn Collective>) -> Result<(), GpuError> {
        self.device.compute.enter()?;
        self.collective = collective;
        let _ = self.sound.f_fill_(1.0).map_err(TorchError::from)?;
        self.warm_up()
    }

    fn poison(&mut self) -> Result<(), GpuError> {
        let _ = self.sound.f_zero_().map_err(TorchError::from)?;
        Ok(())
    }

    fn begin_abort(&mut self) {
        self.collective.abort();
    }

    fn drain(&mut self, deadline: Duration) -> Result<(), GpuError> {
        let began = Instant::now();
        for stream in [Stream::Compute, Stream::Buckets] {
            while !self.sure(self.queue(stream).is_idle())? {
                if began.elapsed() > deadline {
                    return Err(self.lost(format!("the {stream:?} stream did not drain within {deadline:.0?}")));
                }
                std::thread::sleep(NAP);
            }
        }
        Ok(())
    }

    fn finish_abort(&mut self, deadline: Duration) -> Result<(), GpuError> {
        let ended = self.mesh().map_or(Ok(()), |mesh| mesh.join_abort(deadline));
        ended.map_err(|error| self.lost(error))?;
        self.collective = Arc::new(Solo::new());
        Ok(())
    }
}
