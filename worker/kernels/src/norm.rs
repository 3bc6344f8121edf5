//! BatchNorm over NHWC rows: statistics, coefficients, apply; gated sums and dx.
//!
//! ```text
//! forwards    Stats ─► message ─► (sum over ranks) ─► ForwardCoefficients ─► Apply
//! backwards   Gate  ─► message ─► (sum over ranks) ─► BackwardCoefficients ─► Gradient
//! ```
//! Where no other rank's message is added, `then` makes the coefficients in the same launch. Messages, in f64, are
//! `[n·mean, M2 + n·mean²]` and `[Σ g, Σ g·(x − mean)]`, as on the CPU; scopes may be mixed between devices.

use crate::launch::{Cell, Sizes, Tiling, variant};
use crate::{Activation, Device, KernelError, Launch, Memory, Scratch, Shape};

/// Over how many values a sum was taken: samples, from device memory, times pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Count {
    /// f64: samples in the scope of the sums; part of [`StepWords`](crate::StepWords) for the global batch.
    pub samples: Memory,
    /// Pixels of the layer.
    pub pixels: u64,
}

/// γ and β of a layer, f32 × c.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    /// γ
    pub gamma: Memory,
    /// β
    pub beta: Memory,
}

/// From summed messages to the coefficients of [`Apply`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ForwardCoefficients {
    /// Over how many values.
    pub count: Count,
    /// γ, β
    pub affine: Affine,
    /// Added to the variance.
    pub eps: f64,
    /// Out: f32 × 3c, `[mean, scale, bias]`.
    pub coefficients: Memory,
    /// Out: f64 × 2c, `[mean, 1 / √(variance + eps)]`, for backward.
    pub saved: Memory,
    /// Out: f64 × 2c, `[mean, unbiased variance]`, for [`RunningUpdate`](crate::update::RunningUpdate).
    pub pending: Option<Memory>,
}

impl ForwardCoefficients {
    fn cells(then: Option<&Self>, sizes: &Sizes, channels: u32) -> Result<[Cell; 8], KernelError> {
        let Some(f) = then else { return Ok([Cell::from(0_u64); 8]) };
        let c = u64::from(channels);
        sizes.need("samples", f.count.samples, 8)?;
        sizes.need("gamma", f.affine.gamma, 4 * c)?;
        sizes.need("beta", f.affine.beta, 4 * c)?;
        sizes.need("coefficients", f.coefficients, 12 * c)?;
        sizes.need("saved statistics", f.saved, 16 * c)?;
        if let Some(pending) = f.pending {
            sizes.need("pending statistics", pending, 16 * c)?;
        }
        Ok([
            f.count.samples.into(),
            (f.count.pixels as f64).into(),
            f.affine.gamma.into(),
            f.affine.beta.into(),
            f.eps.into(),
            f.coefficients.into(),
            f.saved.into(),
            f.pending.into(),
        ])
    }

    /// From `message` (f64 × 2c), summed over the scope.
    ///
    /// # Errors
    /// Memory that is too small.
    pub fn launch(&self, message: Memory, channels: u32) -> Result<Launch, KernelError> {
        let sizes = Sizes("bn_forward");
        sizes.need("message", message, 16 * u64::from(channels))?;
        let cells = Self::cells(Some(self), &sizes, channels)?;
        Ok(each_channel("bn_forward", channels).arg(message).structure(cells).arg(channels))
    }
}

fn each_channel(kernel: &'static str, channels: u32) -> Launch {
    Launch::new(kernel, [channels.div_ceil(crate::launch::THREADS).max(1), 1], 0)
}

/// The coefficients of [`Apply`] from running statistics, for evaluation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FixedCoefficients {
    /// f32 × 2c: mean, variance.
    pub running: Memory,
    /// γ, β
    pub affine: Affine,
    /// Added to the variance.
    pub eps: f64,
    /// Out: f32 × 3c.
    pub coefficients: Memory,
}

impl FixedCoefficients {
    /// # Errors
    /// Memory that is too small.
    pub fn launch(&self, channels: u32) -> Result<Launch, KernelError> {
        let (sizes, c, none) = (Sizes("bn_fixed"), u64::from(channels), Cell::from(0_u64));
        sizes.need("running statistics", self.running, 8 * c)?;
        sizes.need("gamma", self.affine.gamma, 4 * c)?;
        sizes.need("beta", self.affine.beta, 4 * c)?;
        sizes.need("coefficients", self.coefficients, 12 * c)?;
        let Affine { gamma, beta } = self.affine;
        let cells = [none, none, gamma.into(), beta.into(), self.eps.into(), self.coefficients.into(), none, none];
        Ok(each_channel("bn_fixed", channels).arg(self.running).structure(cells).arg(channels))
    }
}

/// The message of a rank's own rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stats {
    /// Of `x`.
    pub shape: Shape,
    /// The activation.
    pub x: Memory,
    /// Room.
    pub scratch: Scratch,
    /// Out: f64 × 2c, `[n·mean, M2 + n·mean²]`; zeros without rows.
    pub message: Memory,
    /// Coefficients in the same launch, where this message is the whole sum.
    pub then: Option<ForwardCoefficients>,
}

impl Stats {
    /// # Errors
    /// Memory that is too small.
    pub fn launch(&self, device: &Device) -> Result<Launch, KernelError> {
        let (shape, sizes) = (self.shape, Sizes("bn_stats"));
        shape.check("bn_stats")?;
        sizes.need("x", self.x, shape.bytes())?;
        let tiling = Tiling::new(shape, &[self.x]);
        let grid = summing(&sizes, (shape, tiling), self.scratch, self.message, device)?;
        let kernel = variant!("bn_stats", shape.element, tiling.wide);
        Ok(Launch::new(kernel, grid, tiling.fold_bytes(shape.element))
            .arg(self.x)
            .arg(shape.rows)
            .arg(shape.channels)
            .arg(tiling.lanes)
            .arg(self.scratch.partials)
            .arg(self.scratch.tickets)
            .arg(self.message)
            .arg(u32::from(self.then.is_some()))
            .structure(ForwardCoefficients::cells(self.then.as_ref(), &sizes, shape.channels)?))
    }
}

/// The grid of a kernel that sums two numbers a channel.
fn summing(
    sizes: &Sizes,
    (shape, tiling): (Shape, Tiling),
    scratch: Scratch,
    message: Memory,
    device: &Device,
) -> Result<[u32; 2], KernelError> {
    let blocks = tiling.summing(shape.rows, device);
    let c = u64::from(shape.channels);
    sizes.need("partials", scratch.partials, u64::from(blocks) * 16 * c)?;
    sizes.need("tickets", scratch.tickets, 4 * u64::from(tiling.tiles))?;
    sizes.need("message", message, 16 * c)?;
    Ok([blocks, tiling.tiles])
}

/// `y = act((x − mean)·scale + bias + add)`
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Apply {
    /// Of `x`, `add` and `y`.
    pub shape: Shape,
    /// In.
    pub x: Memory,
    /// A residual.
    pub add: Option<Memory>,
    /// Out; may be `x` or `add`.
    pub y: Memory,
    /// Behind the sum.
    pub activation: Activation,
    /// f32 × 3c.
    pub coefficients: Memory,
}

impl Apply {
    /// # Errors
    /// Memory that is too small.
    pub fn launch(&self, device: &Device) -> Result<Launch, KernelError> {
        let (shape, sizes) = (self.shape, Sizes("bn_apply"));
        shape.check("bn_apply")?;
        let tensors = [self.x, self.add.unwrap_or(self.x), self.y];
        for (what, tensor) in ["x", "add", "y"].into_iter().zip(tensors) {
            sizes.need(what, tensor, shape.bytes())?;
        }
        sizes.need("coefficients", self.coefficients, 12 * u64::from(shape.channels))?;
        let tiling = Tiling::new(shape, &[&tensors[..], &[self.coefficients]].concat());
        let (act, slope) = self.activation.code();
        let kernel = variant!("bn_apply", shape.element, tiling.wide);
        Ok(Launch::new(kernel, [tiling.mapping(shape.rows, device), tiling.tiles], 0)
            .arg(self.x)
            .arg(self.add)
            .arg(self.y)
            .arg(shape.rows)
            .arg(shape.channels)
            .arg(tiling.lanes)
            .arg(act)
            .arg(slope)
            .arg(self.coefficients))
    }
}

/// How the activation's mask is told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mask {
    /// From the output y.
    Output(Memory),
    /// From x again, which saves reading y. Only where nothing was added.
    Again,
}

/// A gradient as it arrives at a norm's output: `(d1 + d2)·act'`, rounded to the element type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arriving {
    /// The gradient.
    pub d1: Memory,
    /// Another that meets it at a residual join.
    pub d2: Option<Memory>,
    /// The activation of the forward pass.
    pub activation: Activation,
    /// Where it was positive.
    pub mask: Mask,
    /// Of the forward pass, f32 × 3c.
    pub coefficients: Memory,
}

impl Arriving {
    fn y(&self) -> Option<Memory> {
        match self.mask {
            Mask::Output(y) if self.activation != Activation::Identity => Some(y),
            _ => None,
        }
    }

    fn tensors(&self) -> impl Iterator<Item = Memory> {
        [Some(self.d1), self.d2, self.y()].into_iter().flatten()
    }

    /// Everything that is read in packs.
    fn packed(&self) -> impl Iterator<Item = Memory> {
        self.tensors().chain([self.coefficients])
    }

    fn cells(&self, sizes: &Sizes, shape: Shape) -> Result<[Cell; 5], KernelError> {
        for tensor in self.tensors() {
            sizes.need("a gradient or the output", tensor, shape.bytes())?;
        }
        sizes.need("coefficients", self.coefficients, 12 * u64::from(shape.channels))?;
        let (act, slope) = self.activation.code();
        let mask = Cell::pair(act, slope.to_bits());
        Ok([self.d1.into(), self.d2.into(), self.y().into(), mask, self.coefficients.into()])
    }
}

/// From summed messages to the coefficients of [`Gradient`], and this rank's part of the gradients of γ and β.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BackwardCoefficients {
    /// As forwards.
    pub count: Count,
    /// γ, f32 × c.
    pub gamma: Memory,
    /// As forwards, f64 × 2c.
    pub saved: Memory,
    /// Out: f32 × 4c, `[mean, scale, slope, offset]`.
    pub coefficients: Memory,
    /// Out: f32 × c, from this rank's own message.
    pub d_gamma: Memory,
    /// Likewise.
    pub d_beta: Memory,
}

impl BackwardCoefficients {
    fn cells(then: Option<&Self>, sizes: &Sizes, channels: u32) -> Result<[Cell; 7], KernelError> {
        let Some(b) = then else { return Ok([Cell::from(0_u64); 7]) };
        let c = u64::from(channels);
        sizes.need("samples", b.count.samples, 8)?;
        sizes.need("gamma", b.gamma, 4 * c)?;
        sizes.need("saved statistics", b.saved, 16 * c)?;
        sizes.need("coefficients", b.coefficients, 16 * c)?;
        sizes.need("gradient of gamma", b.d_gamma, 4 * c)?;
        sizes.need("gradient of beta", b.d_beta, 4 * c)?;
        Ok([
            b.count.samples.into(),
            (b.count.pixels as f64).into(),
            b.gamma.into(),
            b.saved.into(),
            b.coefficients.into(),
            b.d_gamma.into(),
            b.d_beta.into(),
        ])
    }

    /// From `summed` over the scope and this rank's `own` message, f64 × 2c each.
    ///
    /// # Errors
    /// Memory that is too small.
    pub fn launch(&self, summed: Memory, own: Memory, channels: u32) -> Result<Launch, KernelError> {
        let sizes = Sizes("bn_backward");
        sizes.need("summed message", summed, 16 * u64::from(channels))?;
        sizes.need("own message", own, 16 * u64::from(channels))?;
        let cells = Self::cells(Some(self), &sizes, channels)?;
        Ok(each_channel("bn_backward", channels).arg(summed).arg(own).structure(cells).arg(channels))
    }
}

/// The message `[Σ g, Σ g·(x − mean)]` of a rank's own rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gate {
    /// Of all tensors.
    pub shape: Shape,
    /// What g is made of.
    pub arriving: Arriving,
    /// The norm's input.
    pub x: Memory,
    /// Out: g, where someone else needs it (the residual); may be `d1` or `d2`. [`Gradient`] can do without.
    pub g: Option<Memory>,
    /// Room.
    pub scratch: Scratch,
    /// Out: f64 × 2c; zeros without rows.
    pub message: Memory,
    /// Coefficients in the same launch, where this message is the whole sum.
    pub then: Option<BackwardCoefficients>,
}

impl Gate {
    /// # Errors
    /// Memory that is too small.
    pub fn launch(&self, device: &Device) -> Result<Launch, KernelError> {
        let (shape, sizes) = (self.shape, Sizes("bn_gate"));
        shape.check("bn_gate")?;
        sizes.need("x", self.x, shape.bytes())?;
        sizes.need("g", self.g.unwrap_or(self.x), shape.bytes())?;
        let arriving = self.arriving.cells(&sizes, shape)?;
        let tensors: Vec<_> = self.arriving.packed().chain([self.x]).chain(self.g).collect();
        let tiling = Tiling::new(shape, &tensors);
        let grid = summing(&sizes, (shape, tiling), self.scratch, self.message, device)?;
        let kernel = variant!("bn_gate", shape.element, tiling.wide);
        Ok(Launch::new(kernel, grid, tiling.fold_bytes(shape.element))
            .structure(arriving)
            .arg(self.x)
            .arg(self.g)
            .arg(shape.rows)
            .arg(shape.channels)
            .arg(tiling.lanes)
            .arg(self.scratch.partials)
            .arg(self.scratch.tickets)
            .arg(self.message)
            .arg(u32::from(self.then.is_some()))
            .structure(BackwardCoefficients::cells(self.then.as_ref(), &sizes, shape.channels)?))
    }
}

/// `dx = scale·g + slope·(x − mean) + offset`
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gradient {
    /// Of all tensors.
    pub shape: Shape,
    /// What g is made of. Where [`Gate`] stored g: `d1` is that, without `d2` and activation.
    pub arriving: Arriving,
    /// The norm's input.
    pub x: Memory,
    /// Out; may be `d1` or `d2`.
    pub dx: Memory,
    /// Of [`BackwardCoefficients`], f32 × 4c.
    pub coefficients: Memory,
}

impl Gradient {
    /// # Errors
    /// Memory that is too small.
    pub fn launch(&self, device: &Device) -> Result<Launch, KernelError> {
        let (shape, sizes) = (self.shape, Sizes("bn_gradient"));
        shape.check("bn_gradient")?;
        sizes.need("x", self.x, shape.bytes())?;
        sizes.need("dx", self.dx, shape.bytes())?;
        sizes.need("coefficients", self.coefficients, 16 * u64::from(shape.channels))?;
        let arriving = self.arriving.cells(&sizes, shape)?;
        let tensors: Vec<_> = self.arriving.packed().chain([self.x, self.dx, self.coefficients]).collect();
        let tiling = Tiling::new(shape, &tensors);
        let kernel = variant!("bn_gradient", shape.element, tiling.wide);
        Ok(Launch::new(kernel, [tiling.mapping(shape.rows, device), tiling.tiles], 0)
            .structure(arriving)
            .arg(self.x)
            .arg(self.dx)
            .arg(shape.rows)
            .arg(shape.channels)
            .arg(tiling.lanes)
            .arg(self.coefficients))
    }
}
