//! A device and its streams.

use std::ffi::c_void;
use std::path::Path;
use std::sync::Arc;

use lockstep_collective::{CollectiveError, Op};
use lockstep_kernels::{KernelError, Launch, Module, Nvrtc, folders_beside};
use lockstep_nccl::{Context, DataType, DevicePtr, Driver, Event, NcclMesh, Stream as Driven};
use lockstep_torch::TorchError;
use lockstep_torch::device::{self, Stream};
use tch::{Kind, Tensor};

use crate::{CudaError, Fused, Graphs, Launcher, open};

/// A device with the two streams of a step.
pub struct Device {
    ordinal: u32,
    context: Arc<Context>,
    /// Forward, backward, optimizer, and the small messages of BatchNorm.
    pub compute: Queue,
    /// Gradient buckets and the vote; goes before others.
    pub buckets: Queue,
    /// Or why there are none.
    pub graphs: Result<Graphs, String>,
}

impl Device {
    /// Device `ordinal` of those that this process sees; its libraries as [`open`] finds them. Makes the compute stream
    /// this thread's current one.
    ///
    /// # Errors
    /// A library is missing, there is no driver, or no such device.
    pub fn new(ordinal: u32, libtorch: Option<&Path>, driver: Option<&Path>) -> Result<Self, CudaError> {
        open(libtorch)?;
        let driver = Driver::open(driver.unwrap_or(Path::new("libcuda.so.1")))?;
        let context = Arc::new(Context::new(Arc::new(driver), ordinal)?);
        let compute = Queue::new(&context, ordinal, false)?;
        let buckets = Queue::new(&context, ordinal, true)?;
        compute.enter()?;
        Ok(Self { ordinal, context, compute, buckets, graphs: Graphs::open() })
    }

    /// Its number among those that this process sees.
    pub fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// BatchNorm's kernels for this device, for work on the compute stream. Compiled the first time, which takes seconds,
    /// and kept in the folder `cache`.
    ///
    /// # Errors
    /// NVRTC is missing, or the device is older than the kernels.
    pub fn kernels(&self, cache: Option<&Path>) -> Result<Fused, CudaError> {
        self.context.enter()?;
        let driver = lockstep_kernels::Driver::open()?;
        let folder = open(None)?.folder;
        let nvrtc = Nvrtc::find(&folders_beside(&folder))?;
        let module = Module::load(&driver, &nvrtc, cache)?;
        // SAFETY: of the primary context, and it lives as long as the process.
        let stream = unsafe { lockstep_kernels::Stream::from_raw(self.compute.torch.handle()?) };
        let place = tch::Device::Cuda(self.ordinal as usize);
        Ok(Fused::new(Arc::new(OnCompute { module, stream, place }))?)
    }

    /// A point in no stream yet.
    ///
    /// # Errors
    /// The device refuses.
    pub fn mark(&self) -> Result<Event, CudaError> {
        Ok(Event::new(&self.context)?)
    }
}

/// Kernels on a device's compute stream.
struct OnCompute {
    module: Module,
    stream: lockstep_kernels::Stream,
    place: tch::Device,
}

impl Launcher for OnCompute {
    fn device(&self) -> lockstep_kernels::Device {
        *self.module.device()
    }

    fn place(&self) -> tch::Device {
        self.place
    }

    fn launch(&self, launch: &Launch) -> Result<(), KernelError> {
        self.module.launch(launch, self.stream)
    }
}

/// A stream, as libtorch, the driver and NCCL each name it.
pub struct Queue {
    torch: Stream,
    driven: Driven,
}

impl Queue {
    fn new(context: &Arc<Context>, ordinal: u32, high: bool) -> Result<Self, CudaError> {
        let torch = Stream::new(ordinal as usize, high)?;
        let raw: *mut c_void = torch.handle()?;
        // SAFETY: libtorch's streams are of the device's primary context, which `context` holds, and live as long as the
        // process.
        let driven = unsafe { Driven::foreign(context, raw) };
        Ok(Self { torch, driven })
    }

    /// What libtorch enqueues in this thread goes here from now on.
    ///
    /// # Errors
    /// What the device says.
    pub fn enter(&self) -> Result<(), TorchError> {
        self.torch.enter()
    }

    /// Puts `mark` behind what is enqueued now.
    ///
    /// # Errors
    /// What the device says.
    pub fn record(&self, mark: &Event) -> Result<(), CudaError> {
        Ok(mark.record(&self.driven)?)
    }

    /// What is enqueued from now on waits for `mark`.
    ///
    /// # Errors
    /// What the device says.
    pub fn wait_for(&self, mark: &Event) -> Result<(), CudaError> {
        Ok(self.driven.wait_for(mark)?)
    }

    /// Whether all that was enqueued has happened.
    ///
    /// # Errors
    /// What went wrong on the device meanwhile.
    pub fn is_idle(&self) -> Result<bool, CudaError> {
        Ok(self.driven.is_idle()?)
    }

    /// Enqueues the sum over all ranks of `values`, dense, f32, f64 or bf16, in their place. Gives its number for
    /// [`NcclMesh::reached`].
    ///
    /// # Errors
    /// NCCL refuses, the mesh has failed, or a tensor that cannot be summed.
    pub fn all_reduce(&self, mesh: &NcclMesh, op: &Op, values: &Tensor) -> Result<u64, CollectiveError> {
        let misuse = |error: TorchError| CollectiveError::Unusable { what: format!("{op}: {}", error.message) };
        let dtype = data_type(values.kind()).map_err(misuse)?;
        let (address, bytes) = device::memory(values).map_err(misuse)?;
        self.torch.uses(values).map_err(misuse)?;
        // SAFETY: the tensor's memory, on the device of this stream (`uses` refuses any other). libtorch gives it to nobody
        // else before what is enqueued here has happened, and who writes it in between does so in the order of streams.
        let at = unsafe { DevicePtr::foreign(address, bytes as usize) };
        mesh.enqueue_all_reduce(op, at, (values.numel(), dtype), &self.driven)
    }
}

fn data_type(kind: Kind) -> Result<DataType, TorchError> {
    match kind {
        Kind::Float => Ok(DataType::F32),
        Kind::Double => Ok(DataType::F64),
        Kind::BFloat16 => Ok(DataType::Bf16),
        other => Err(TorchError::new(format!("no sums of {other:?}"))),
    }
}
