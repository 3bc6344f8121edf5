//! An accelerator that is none: everything happens at once, on CPU tensors. It takes the same course through a step as a
//! GPU does, so that the course can be tried where there is no GPU.

use std::sync::Arc;
use std::time::Duration;

use lockstep_collective::{Collective, Layout, Op, Solo};
use lockstep_cuda::Fused;
use lockstep_proto::ids::Rank;
use lockstep_torch::{TorchError, read, write};
use tch::{Device, Kind, Tensor};

use super::gpu::{Event, Gpu, GpuError, Graph, Place, Stream, Work};

/// See the module.
pub struct HostGpu {
    collective: Arc<dyn Collective>,
    soundness: Tensor,
    fused: Option<Fused>,
    events: u64,
}

impl HostGpu {
    /// Alone in the world.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn new() -> Result<Self, TorchError> {
        let soundness = Tensor::f_ones([1], (Kind::Double, Device::Cpu))?;
        Ok(Self { collective: Arc::new(Solo::new()), soundness, fused: None, events: 0 })
    }

    /// With kernels that run on the host.
    pub fn with_kernels(self, fused: Fused) -> Self {
        Self { fused: Some(fused), ..self }
    }
}

fn numbers(values: &Tensor) -> Result<Vec<f64>, TorchError> {
    let mut out = vec![0.0; values.numel()];
    read(&values.f_to_kind(Kind::Double)?.f_contiguous()?, &mut out)?;
    Ok(out)
}

fn put(values: &mut Tensor, numbers: &[f64]) -> Result<(), TorchError> {
    let mut wide = Tensor::f_empty(values.size().as_slice(), (Kind::Double, Device::Cpu))?;
    write(&mut wide, numbers)?;
    values.f_copy_(&wide)?;
    Ok(())
}

impl Gpu for HostGpu {
    fn device(&self) -> Device {
        Device::Cpu
    }

    fn run(&mut self, _: Stream, _: Work<'_>, f: &mut dyn FnMut() -> Result<(), TorchError>) -> Result<(), GpuError> {
        Ok(f()?)
    }

    fn all_reduce(&mut self, _: Stream, op: &Op, _: Place, values: &Tensor) -> Result<(), GpuError> {
        if self.world() == 1 {
            return Ok(());
        }
        let (mine, mut sum) = (numbers(values)?, vec![0.0; values.numel()]);
        let layout = Layout::by_rank(self.world());
        self.collective.reduce_f64(op, &layout, &[&mine], &mut sum)?;
        Ok(put(&mut values.shallow_clone(), &sum)?)
    }

    fn reduce_in_order(
        &mut self,
        _: Stream,
        op: &Op,
        (layout, partials): (&Layout, &[Tensor]),
        (_, out): (Place, &mut Tensor),
    ) -> Result<(), GpuError> {
        if out.kind() == Kind::Float {
            let all: Vec<Vec<f32>> = partials.iter().map(values).collect::<Result<_, TorchError>>()?;
            let refs: Vec<&[f32]> = all.iter().map(Vec::as_slice).collect();
            let mut sum = vec![0.0_f32; out.numel()];
            self.collective.reduce_f32(op, layout, &refs, &mut sum)?;
            return Ok(write(out, &sum)?);
        }
        let all: Vec<Vec<f64>> = partials.iter().map(values).collect::<Result<_, TorchError>>()?;
        let refs: Vec<&[f64]> = all.iter().map(Vec::as_slice).collect();
        let mut sum = vec![0.0_f64; out.numel()];
        self.collective.reduce_f64(op, layout, &refs, &mut sum)?;
        Ok(write(out, &sum)?)
    }

    fn record(&mut self, _: Stream) -> Result<Event, GpuError> {
        self.events += 1;
        Ok(Event(self.events))
    }

    fn wait(&mut self, _: Stream, _: Event) -> Result<(), GpuError> {
        Ok(())
    }

    fn upload(&mut self, _: Stream, _: Place, to: &mut Tensor, values: &[f64]) -> Result<(), GpuError> {
        Ok(put(to, values)?)
    }

    fn host_room(&self, len: usize, kind: Kind) -> Result<Tensor, GpuError> {
        Ok(Tensor::f_zeros([len as i64], (kind, Device::Cpu)).map_err(TorchError::from)?)
    }

    fn release(&mut self, _: Place, _: Option<Event>) -> Result<(), GpuError> {
        Ok(())
    }

    fn is_done(&mut self, _: Event) -> Result<bool, GpuError> {
        Ok(true)
    }

    fn fetch(&mut self, _: Event, _: Place, room: &Tensor) -> Result<Vec<f64>, GpuError> {
        Ok(numbers(room)?)
    }

    fn fused(&self) -> Option<Fused> {
        self.fused.clone()
    }

    fn soundness(&self) -> Tensor {
        self.soundness.shallow_clone()
    }

    fn capture_refusal(&self) -> Option<String> {
        Some("a CPU has no graphs".into())
    }

    fn capture(&mut self, _: &mut dyn FnMut(&mut dyn Gpu) -> Result<(), GpuError>) -> Result<Graph, GpuError> {
        Err(TorchError::new("a CPU has no graphs").into())
    }

    fn replay(&mut self, graph: Graph) -> Result<(), GpuError> {
        Err(TorchError::new(format!("{graph:?} on a CPU, which has none")).into())
    }

    fn destroy(&mut self, _: Graph) -> Result<(), GpuError> {
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
        self.collective = collective;
        let _ = self.soundness.f_fill_(1.0).map_err(TorchError::from)?;
        Ok(())
    }

    fn poison(&mut self) -> Result<(), GpuError> {
        let _ = self.soundness.f_zero_().map_err(TorchError::from)?;
        Ok(())
    }

    fn begin_abort(&mut self) {
        self.collective.abort();
    }

    fn drain(&mut self, _: Duration) -> Result<(), GpuError> {
        Ok(())
    }

    fn finish_abort(&mut self, _: Duration) -> Result<(), GpuError> {
        self.collective = Arc::new(Solo::new());
        Ok(())
    }
}

/// The numbers of a dense tensor, in memory order.
fn values<T: lockstep_torch::Element>(tensor: &Tensor) -> Result<Vec<T>, TorchError> {
    let mut out = vec![T::default(); tensor.numel()];
    read(tensor, &mut out)?;
    Ok(out)
}

impl From<GpuError> for crate::compute::ComputeError {
    fn from(error: GpuError) -> Self {
        use lockstep_proto::exit::ExitCode;
        match error {
            GpuError::Collective(error) => Self::Collective(error),
            GpuError::Torch(error) => Self::fatal(ExitCode::Software, error.to_string()),
            error @ GpuError::Lost { .. } => Self::fatal(ExitCode::Config, error.to_string()),
        }
    }
}
