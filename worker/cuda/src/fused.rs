//! BatchNorm on tensors by our own kernels: one pass over memory where libtorch's operations take five.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use lockstep_kernels::input::{self, Augment};
use lockstep_kernels::norm::{
    Affine, Apply, Arriving, BackwardCoefficients, Count, ForwardCoefficients, Gate, Gradient, Mask, Stats,
};
use lockstep_kernels::{Activation, Device, Element, KernelError, Launch, Memory, Scratch, Shape};
use lockstep_torch::{self as torch, TorchError};
use tch::{Kind, Tensor};

/// Has kernels run on a device, behind what libtorch enqueued there.
pub trait Launcher: Send + Sync {
    /// What launches are made for.
    fn device(&self) -> Device;

    /// Where tensors must be.
    fn place(&self) -> tch::Device;

    /// Enqueues a launch on the stream to which libtorch enqueues in this thread.
    ///
    /// # Errors
    /// What the driver says.
    fn launch(&self, launch: &Launch) -> Result<(), KernelError>;
}

/// See the module. Shapes: x, y, g, d are NCHW in channels-last memory, f32 or bf16; messages f64 `[2·C]`; γ and β f32
/// `[C]`.
#[derive(Clone)]
pub struct Fused {
    launcher: Arc<dyn Launcher>,
    room: Arc<Mutex<Room>>,
}

/// A data set on the device.
pub struct DataSet {
    /// u8 `[N, h, w, c]`
    pub images: Tensor,
    /// i32 `[N]`
    pub labels: Tensor,
    /// f32: subtracted, one number for each value of an image.
    pub offset: Tensor,
    /// f32: then multiplied by.
    pub scale: Tensor,
}

/// What launches that follow each other share.
struct Room {
    partials: Tensor,
    tickets: Tensor,
    /// Constants on the device, f64, by value.
    numbers: BTreeMap<u64, Tensor>,
}

/// Statistics of a layer between forward and backward.
pub struct Saved {
    /// f32 `[3·C]`: mean, scale, bias.
    coefficients: Tensor,
    /// f64 `[2·C]`: mean, 1 / √(variance + eps).
    saved: Tensor,
    /// f64 `[2·C]`: mean and unbiased variance.
    pub pending: Tensor,
    samples: u64,
    pixels: u64,
}

fn failed(error: KernelError) -> TorchError {
    TorchError::new(error.to_string())
}

fn activation(of: torch::Activation) -> Activation {
    match of {
        torch::Activation::Identity => Activation::Identity,
        torch::Activation::Relu => Activation::Relu,
        torch::Activation::LeakyRelu(slope) => Activation::LeakyRelu(slope),
    }
}

impl Fused {
    /// With these kernels.
    ///
    /// # Errors
    /// No memory.
    pub fn new(launcher: Arc<dyn Launcher>) -> Result<Self, TorchError> {
        let bytes = |len: u64| Tensor::f_zeros([len as i64], (Kind::Uint8, launcher.place()));
        let room = Room { partials: bytes(0)?, tickets: bytes(Scratch::TICKET_BYTES)?, numbers: BTreeMap::new() };
        Ok(Self { room: Arc::new(Mutex::new(room)), launcher })
    }

    /// Whether these kernels can do what a replica of this number type needs.
    pub fn knows(kind: Kind) -> bool {
        matches!(kind, Kind::Float | Kind::BFloat16)
    }

    /// Writes `[n·mean, M2 + n·mean²]` of each channel of `x` into `message`. No rows: zeros.
    ///
    /// # Errors
    /// Another shape, type or memory order; what the driver says.
    pub fn stats(&self, x: &Tensor, message: &Tensor) -> Result<(), TorchError> {
        let shape = shape_of(x)?;
        let scratch = self.scratch(shape)?;
        let message = self.memory(message, Kind::Double)?;
        let stats = Stats { shape, x: self.activation(x)?, scratch, message, then: None };
        self.run(&stats.launch(&self.launcher.device()))
    }

    /// From the sum of messages over `samples` of `pixels` values a channel.
    ///
    /// # Errors
    /// As [`stats`](Self::stats).
    pub fn forward(
        &self,
        sums: &Tensor,
        (samples, pixels): (u64, u64),
        (gamma, beta): (&Tensor, &Tensor),
        eps: f64,
    ) -> Result<Saved, TorchError> {
        let channels = gamma.size1()?;
        let room = |len, kind| Ok::<_, TorchError>(Tensor::f_empty([len], (kind, self.launcher.place()))?);
        let saved = Saved {
            coefficients: room(3 * channels, Kind::Float)?,
            saved: room(2 * channels, Kind::Double)?,
            pending: room(2 * channels, Kind::Double)?,
            samples,
            pixels,
        };
        let forward = ForwardCoefficients {
            count: self.count(&saved)?,
            affine: Affine { gamma: self.memory(gamma, Kind::Float)?, beta: self.memory(beta, Kind::Float)? },
            eps,
            coefficients: self.memory(&saved.coefficients, Kind::Float)?,
            saved: self.memory(&saved.saved, Kind::Double)?,
            pending: Some(self.memory(&saved.pending, Kind::Double)?),
        };
        self.run(&forward.launch(self.memory(sums, Kind::Double)?, channels as u32))?;
        Ok(saved)
    }

    /// `act((x − mean)·scale + bias + add)`, of the type of `x`.
    ///
    /// # Errors
    /// As [`stats`](Self::stats).
    pub fn apply(
        &self,
        x: &Tensor,
        add: Option<&Tensor>,
        act: torch::Activation,
        saved: &Saved,
    ) -> Result<Tensor, TorchError> {
        let y = x.f_empty_like()?;
        let apply = Apply {
            shape: shape_of(x)?,
            x: self.activation(x)?,
            add: add.map(|add| self.like(add, x)).transpose()?,
            y: self.like(&y, x)?,
            activation: activation(act),
            coefficients: self.memory(&saved.coefficients, Kind::Float)?,
        };
        self.run(&apply.launch(&self.launcher.device()))?;
        Ok(y)
    }

    /// First half of a norm's gradient: `g = (d1 + d2)·act'`, told from the output `y`, and `[Σ g, Σ g·(x − mean)]` into
    /// `message`.
    ///
    /// # Errors
    /// As [`stats`](Self::stats).
    pub fn gate(
        &self,
        (d1, d2): (&Tensor, Option<&Tensor>),
        (y, act): (&Tensor, torch::Activation),
        (x, saved): (&Tensor, &Saved),
        message: &Tensor,
    ) -> Result<Tensor, TorchError> {
        let (g, shape) = (x.f_empty_like()?, shape_of(x)?);
        let arriving = Arriving {
            d1: self.like(d1, x)?,
            d2: d2.map(|d2| self.like(d2, x)).transpose()?,
            activation: activation(act),
            mask: Mask::Output(self.like(y, x)?),
            coefficients: self.memory(&saved.coefficients, Kind::Float)?,
        };
        let gate = Gate {
            shape,
            arriving,
            x: self.activation(x)?,
            g: Some(self.like(&g, x)?),
            scratch: self.scratch(shape)?,
            message: self.memory(message, Kind::Double)?,
            then: None,
        };
        self.run(&gate.launch(&self.launcher.device()))?;
        Ok(g)
    }

    /// Coefficients of [`gradient`](Self::gradient) from the sum of messages over the scope, and from this shard's own
    /// message its part of the gradients of γ and β, into `d_gamma` and `d_beta`.
    ///
    /// # Errors
    /// As [`stats`](Self::stats).
    pub fn backward(
        &self,
        (summed, own): (&Tensor, &Tensor),
        gamma: &Tensor,
        saved: &Saved,
        (d_gamma, d_beta): (&Tensor, &Tensor),
    ) -> Result<Tensor, TorchError> {
        let channels = gamma.size1()?;
        let coefficients = Tensor::f_empty([4 * channels], (Kind::Float, self.launcher.place()))?;
        let backward = BackwardCoefficients {
            count: self.count(saved)?,
            gamma: self.memory(gamma, Kind::Float)?,
            saved: self.memory(&saved.saved, Kind::Double)?,
            coefficients: self.memory(&coefficients, Kind::Float)?,
            d_gamma: self.memory(d_gamma, Kind::Float)?,
            d_beta: self.memory(d_beta, Kind::Float)?,
        };
        let (summed, own) = (self.memory(summed, Kind::Double)?, self.memory(own, Kind::Double)?);
        self.run(&backward.launch(summed, own, channels as u32))?;
        Ok(coefficients)
    }

    /// Second half: `scale·g + slope·(x − mean) + offset`, of the type of `x`.
    ///
    /// # Errors
    /// As [`stats`](Self::stats).
    pub fn gradient(
        &self,
        g: &Tensor,
        (x, saved): (&Tensor, &Saved),
        coefficients: &Tensor,
    ) -> Result<Tensor, TorchError> {
        let dx = x.f_empty_like()?;
        let g = self.like(g, x)?;
        let forward = self.memory(&saved.coefficients, Kind::Float)?;
        let arriving =
            Arriving { d1: g, d2: None, activation: Activation::Identity, mask: Mask::Again, coefficients: forward };
        let gradient = Gradient {
            shape: shape_of(x)?,
            arriving,
            x: self.activation(x)?,
            dx: self.like(&dx, x)?,
            coefficients: self.memory(coefficients, Kind::Float)?,
        };
        self.run(&gradient.launch(&self.launcher.device()))?;
        Ok(dx)
    }

    /// Fills `images` (f32 `[n, h, w, c]`) with samples of a set, shifted with zero fill, flipped and normalised. `samples`:
    /// i64 `[n]`, of which the caller answers that they are below N; `draws`: [`Draw`] by [`Draw::to_bytes`], u8 `[n·8]`.
    ///
    /// # Errors
    /// As [`stats`](Self::stats).
    pub fn augment(
        &self,
        data: &DataSet,
        (samples, draws): (&Tensor, &Tensor),
        images: &Tensor,
    ) -> Result<(), TorchError> {
        let (num, h, w, c) = images.size4()?;
        let labels = Tensor::f_empty([num], (Kind::Int, self.launcher.place()))?;
        let augment = Augment {
            data: input::DataSet {
                images: self.memory(&data.images, Kind::Uint8)?,
                labels: self.memory(&data.labels, Kind::Int)?,
                num: data.labels.size1()? as u64,
                shape: [h as u32, w as u32, c as u32],
                offset: self.memory(&data.offset, Kind::Float)?,
                scale: self.memory(&data.scale, Kind::Float)?,
            },
            num: num as u32,
            samples: self.memory(samples, Kind::Int64)?,
            draws: self.memory(draws, Kind::Uint8)?,
            element: Element::F32,
            images: self.memory(images, Kind::Float)?,
            labels: self.memory(&labels, Kind::Int)?,
        };
        match augment.launch().map_err(failed)? {
            Some(launch) => self.launcher.launch(&launch).map_err(failed),
            None => Ok(()),
        }
    }

    fn run(&self, launch: &Result<Launch, KernelError>) -> Result<(), TorchError> {
        let launch = launch.as_ref().map_err(|error| TorchError::new(error.to_string()))?;
        self.launcher.launch(launch).map_err(failed)
    }

    fn count(&self, saved: &Saved) -> Result<Count, TorchError> {
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        let samples = match room.numbers.get(&saved.samples) {
            Some(number) => number.shallow_clone(),
            None => {
                let number = Tensor::f_full([1], saved.samples as f64, (Kind::Double, self.launcher.place()))?;
                room.numbers.insert(saved.samples, number.shallow_clone());
                number
            }
        };
        Ok(Count { samples: self.memory(&samples, Kind::Double)?, pixels: saved.pixels })
    }

    fn scratch(&self, shape: Shape) -> Result<Scratch, TorchError> {
        let bytes = Scratch::partial_bytes(shape, &self.launcher.device()) as i64;
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        if room.partials.size1()? < bytes {
            room.partials = Tensor::f_empty([bytes], (Kind::Uint8, self.launcher.place()))?;
        }
        let partials = self.memory(&room.partials, Kind::Uint8)?;
        Ok(Scratch { partials, tickets: self.memory(&room.tickets, Kind::Uint8)? })
    }

    /// The memory of an activation.
    fn activation(&self, x: &Tensor) -> Result<Memory, TorchError> {
        self.memory(x, x.kind())
    }

    /// The memory of a tensor that must be as `x` is.
    fn like(&self, tensor: &Tensor, x: &Tensor) -> Result<Memory, TorchError> {
        if shape_of(tensor)? != shape_of(x)? || tensor.size() != x.size() {
            return Err(TorchError::new(format!("{:?} beside {:?}", tensor.size(), x.size())));
        }
        self.memory(tensor, x.kind())
    }

    fn memory(&self, tensor: &Tensor, kind: Kind) -> Result<Memory, TorchError> {
        if tensor.kind() != kind || tensor.device() != self.launcher.place() {
            let (is, on) = (tensor.kind(), tensor.device());
            return Err(TorchError::new(format!(
                "a kernel wants {kind:?} on {:?}: {is:?} on {on:?}",
                self.launcher.place()
            )));
        }
        let (address, bytes) = torch::device::memory(tensor)?;
        // SAFETY: memory of a tensor on the launcher's device. Launches go to the stream to which libtorch enqueues in this
        // thread, and its allocator gives memory that was let go of to nobody but work behind them on that stream.
        Ok(unsafe { Memory::new(address, bytes) })
    }
}

/// Of an activation in channels-last memory.
fn shape_of(x: &Tensor) -> Result<Shape, TorchError> {
    let (n, c, h, w) = x.size4()?;
    if !x.f_permute([0, 2, 3, 1])?.is_contiguous() {
        return Err(TorchError::new(format!("{:?} is not in channels-last memory", x.size())));
    }
    let element = match x.kind() {
        Kind::Float => Element::F32,
        Kind::BFloat16 => Element::Bf16,
        other => return Err(TorchError::new(format!("no kernels for {other:?}"))),
    };
    Ok(Shape { rows: (n * h * w) as u64, channels: c as u32, element })
}
