//! One step from weights to weights, enqueued. Reads top to bottom as the algorithm; waits for nothing.
//!
//! ```text
//! compute   cast ─ forward ─ loss ─ backward ──────────────────────────────┐ ┌─ verdict ─ optimizer ─ running ─ applied
//!                  └ norm messages between       │bucket 0 │bucket 1 …     │ │
//! buckets                                        └─ sum ───┴─ sum ─ …  ─ vote┘
//! ```
//! Chunks are batches of their own where their order or their statistics count; else all of a rank's are one. With
//! `train.accumulate` they come part by part: a bucket goes on its way in the last one, with what the others left in it.

mod backward;
mod forward;
mod loss;
pub mod norm;
mod verdict;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;
use std::sync::Arc;

use lockstep_cuda::Usage;
use lockstep_proto::ids::Step;
use lockstep_proto::recipe::{BatchNorm, Precision, Recipe, Reduction, Solver};
use lockstep_proto::tree::Node;
use lockstep_torch::{TorchError, composed};
use tch::{Kind, Tensor};

use super::gpu::{Gpu, GpuError, Place, Stream, Work};
use super::memory::Memory;
use crate::exec::{Passes, Slice, Tape, slices};
use crate::optim::Optimizer;
use crate::program::{FlatLayout, Norm, Op, Param, ParamId, Program, Segment, Slot};
use crate::shard::Shard;
use crate::state::{State, view_of};
use crate::tuning::Tuning;
pub use loss::TARGET;
use loss::cross_entropy;
use norm::{Affine, Norms, Statistics};

/// Numbers of a step that come from the host, by their place in `control`.
pub mod control {
    /// Learning rate.
    pub const LR: i64 = 0;
    /// Number of the step.
    pub const STEP: i64 = 1;
    /// What this rank votes.
    pub const VOTE: i64 = 2;
    /// What all votes add up to.
    pub const EXPECTED: i64 = 3;
    /// Share of the batch in the running statistics.
    pub const BN_MOMENTUM: i64 = 4;
    /// Digest of what the loader delivered: four numbers below 2^16.
    pub const DIGEST: i64 = 5;
    /// Share of the average that stays.
    pub const AVERAGE_KEEP: i64 = 9;
    /// Share of the weights that comes into it.
    pub const AVERAGE_TAKE: i64 = 10;
    /// How many.
    pub const LEN: i64 = 11;
}

/// Numbers of an outcome.
pub mod outcome {
    /// Summed loss, of all ranks.
    pub const LOSS: usize = 0;
    /// Wrong predictions, of all ranks.
    pub const WRONG: usize = 1;
    /// Sum of the votes; the digest follows.
    pub const VOTE: usize = 2;
    /// Digest: four sums of numbers below 2^16.
    pub const DIGEST: usize = 3;
    /// The last step that counted.
    pub const APPLIED: usize = 7;
    /// How many.
    pub const LEN: usize = 8;
}

/// Everything that is on the device between two steps, and within one.
pub struct Body {
    /// Weights, optimizer's buffers; its `running` are unused here.
    pub state: State,
    /// Mean and variance of every layer, one after another, f64.
    pub running: Tensor,
    /// [`control`]
    pub control: Tensor,
    /// Summed loss and count, f64.
    pub totals: Tensor,
    /// Vote and digest, f64.
    pub votes: Tensor,
    /// The last step that counted, f64.
    pub applied: Tensor,
    /// One for each batch that is computed together with others.
    tapes: Vec<Tape>,
    /// Which batches these are.
    part: Range<usize>,
    /// The average of the weights, flat, and of the running statistics, where the recipe keeps one.
    pub average: Option<(Tensor, Tensor)>,
    /// Images, NHWC, f32, and their targets, f64 [n, 3], of every part. They keep their memory, so that captured steps find
    /// them.
    batches: Vec<(Tensor, Tensor)>,
    /// Such places by batch and shape.
    places: BTreeMap<(usize, Vec<i64>), (Tensor, Tensor)>,
    recipe: Recipe,
    program: Arc<Program>,
    layout: Arc<FlatLayout>,
    segments: Vec<Segment>,
    slices: Vec<Slice>,
    optimizer: Optimizer,
    norms: Norms,
    kind: Kind,
    /// What convolutions see.
    rounded: Tensor,
    /// The gradient, flat: the sum over all.
    gradient: Tensor,
    /// The gradients of the tapes, flat; where all chunks are one batch, `gradient` itself.
    leaves: Vec<Tensor>,
    /// Of each bucket, sums over subtrees of the chunks that parts of the step have computed.
    held: Vec<Vec<(Node, Tensor)>>,
    /// What the running statistics are to take in, f64.
    taken: Tensor,
    /// One where a running statistic follows the batches, zero where it is fixed, f64.
    follows: Tensor,
    /// What trains.
    tuning: Tuning,
    /// One or zero.
    verdict: Tensor,
}

/// Name of the reduction that has the loss's length.
const LOSS: &str = "loss";

/// What decides the shapes of a step, and the counts that statistics are over.
#[derive(Clone)]
pub struct Frame {
    /// Which step: names operations.
    pub step: Step,
    /// Samples of the global batch that count.
    pub batch: u64,
    /// Who holds which chunks.
    pub shard: Shard,
    /// Height and width.
    pub image: (usize, usize),
    /// Samples of each of this rank's batches.
    pub lens: Vec<u64>,
    /// Which of them are computed together, one part after another.
    pub parts: Vec<Range<usize>>,
}

/// Statistics of one layer between forward and backward, one a tape, or one for all.
type Layer = Vec<Statistics>;

impl Body {
    /// Zeros for a recipe, where `gpu` has its tensors.
    ///
    /// # Errors
    /// What libtorch says: memory, for one.
    pub fn new(recipe: &Recipe, program: Program, gpu: &dyn Gpu) -> Result<Self, TorchError> {
        let device = gpu.device();
        let layout = FlatLayout::new(&program);
        let mut state = State::new(&program, &layout, recipe.train.precision, recipe.optim.solver)?;
        state.master = state.master.f_to_device(device)?;
        for buffer in &mut state.buffers {
            buffer.values = buffer.values.f_to_device(device)?;
        }
        let kind = match recipe.train.precision {
            Precision::Fp32 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
            Precision::Fp64 => Kind::Double,
        };
        let rounded = if kind == Kind::BFloat16 { state.master.f_to_kind(kind)? } else { state.master.shallow_clone() };
        let channels: usize = program.norms.iter().map(|norm| norm.channels).sum();
        let tuning = Tuning::new(recipe, &program, &layout);
        let follows = follows(&program, &tuning)?.f_to_device(device)?;
        let numbers = |len: i64| Tensor::f_zeros([len], (Kind::Double, device));
        let target = recipe.train.bucket_bytes as usize / state.master.kind().elt_size_in_bytes();
        let slices = slices(&program, &layout, |_| true, target.max(1));
        Ok(Self {
            running: numbers(2 * channels as i64)?,
            control: numbers(control::LEN)?,
            totals: numbers(2)?,
            votes: numbers(5)?,
            applied: numbers(1)?,
            taken: numbers(2 * channels as i64)?,
            verdict: numbers(1)?,
            tapes: Vec::new(),
            part: 0..0,
            held: slices.iter().map(|_| Vec::new()).collect(),
            batches: Vec::new(),
            places: BTreeMap::new(),
            gradient: state.master.f_zeros_like()?,
            leaves: Vec::new(),
            segments: program.segments(),
            slices,
            optimizer: Optimizer::new(&recipe.optim, &layout).over(tuning.spans()),
            average: None,
            follows,
            tuning,
            norms: Norms::new(gpu.fused(), kind),
            recipe: recipe.clone(),
            kind,
            rounded,
            program: Arc::new(program),
            layout: Arc::new(layout),
            state,
        })
    }

    /// The model.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Where its parameters lie.
    pub fn layout(&self) -> &FlatLayout {
        &self.layout
    }

    /// Why a step of this recipe cannot be captured.
    pub fn capture_refusal(&self) -> Option<String> {
        if self.is_ordered() {
            return Some("train.reduction = \"canonical\" adds on the host".into());
        }
        let solver = self.recipe.optim.solver;
        (solver != Solver::Sgd).then(|| format!("the rate of optim.solver = {solver:?} is no device value yet"))
    }

    /// These batches are computed from now on, each with a gradient of its own.
    fn take_up(&mut self, part: &Range<usize>) -> Result<(), TorchError> {
        while self.tapes.len() < part.len() {
            self.tapes.push(Tape::new(Arc::clone(&self.program), self.weights()?, self.kind, Passes::Composed));
            let leaf = if self.is_apart() { self.gradient.f_zeros_like()? } else { self.gradient.shallow_clone() };
            self.leaves.push(leaf);
        }
        self.part = part.clone();
        Ok(())
    }

    /// Gives back what the batches of a generation took. No graph may be left that knows of it.
    pub fn give_back(&mut self) {
        self.tapes.clear();
        self.leaves.clear();
    }

    /// Copies a batch into its place, which has room for as many as `room`.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn take_batch(
        &mut self,
        (batch, room): (usize, i64),
        (images, targets): (&Tensor, &Tensor),
    ) -> Result<(), TorchError> {
        let mut size = images.size();
        let num_samples = size[0];
        size[0] = room;
        let (mut to_images, mut to_targets) = self.place(batch, &size, num_samples)?;
        lockstep_torch::copy_later(&mut to_images, images)?;
        lockstep_torch::copy_later(&mut to_targets, targets)
    }

    /// The places of a batch of `num_samples`, with room for `size` (NHWC). The batch is what is there from now on.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn place(&mut self, batch: usize, size: &[i64], num_samples: i64) -> Result<(Tensor, Tensor), TorchError> {
        let device = self.control.device();
        let place = match self.places.entry((batch, size.to_vec())) {
            Entry::Occupied(place) => place.into_mut(),
            Entry::Vacant(place) => {
                // Memory of its own, also where images are on the CPU already.
                let images = Tensor::f_empty(size, (Kind::Float, device))?;
                place.insert((images, Tensor::f_empty([size[0], TARGET], (Kind::Double, device))?))
            }
        };
        let place = (place.0.f_narrow(0, 0, num_samples)?, place.1.f_narrow(0, 0, num_samples)?);
        self.batches.truncate(batch);
        self.batches.push((place.0.shallow_clone(), place.1.shallow_clone()));
        Ok(place)
    }

    /// Images into slot 0 of each tape, which forgets everything else.
    pub(super) fn begin(&mut self) -> Result<(), TorchError> {
        self.tapes.iter_mut().for_each(Tape::clear);
        for (tape, (images, _)) in self.tapes.iter_mut().zip(&self.batches[self.part.clone()]) {
            tape.put(Slot(0), images.f_permute([0, 3, 1, 2])?.f_to_kind(self.kind)?);
        }
        Ok(())
    }

    /// Adds loss, errors and top-5 errors of the first batch to `sums` (f64, 3), with running statistics as they are.
    ///
    /// # Errors
    /// What the device says.
    pub fn infer(&mut self, gpu: &mut dyn Gpu, running: &Tensor, sums: &Tensor) -> Result<(), GpuError> {
        self.take_up(&(0..1))?;
        let reads = [Place::Batch, Place::Weights, Place::Rounded, Place::Running, Place::Totals];
        let work = Work { name: "infer", reads: &reads, writes: &[Place::Activations, Place::Totals] };
        gpu.run(Stream::Compute, work, &mut || {
            self.begin()?;
            let program = Arc::clone(&self.program);
            for (index, op) in program.ops.iter().enumerate() {
                let Op::Norm { norm, .. } = op else {
                    self.tapes[0].run(op)?;
                    continue;
                };
                let layer = vec![Statistics::Composed(self.fixed(running, norm.0)?)];
                self.apply(0, index, &layer)?;
            }
            let (counts, _) = cross_entropy(self.tapes[0].value(program.logits)?, &self.batches[0].1, 0.0, 1.0)?;
            let _ = sums.shallow_clone().f_add_(&counts)?;
            self.tapes[0].clear();
            Ok(())
        })
    }

    /// Adds what the running statistics would take in from the batches to `sum`.
    ///
    /// # Errors
    /// What the device says.
    pub fn add_statistics(&mut self, gpu: &mut dyn Gpu, frame: &Frame, sum: &Tensor) -> Result<(), GpuError> {
        let mut statistics = Vec::new();
        for part in &frame.parts {
            self.take_up(part)?;
            let layers = self.forward(gpu, frame)?;
            statistics.extend(self.statistics(gpu, frame, &layers)?);
        }
        self.take_statistics(gpu, frame, statistics)?;
        let work = Work { name: "precise statistics", reads: &[Place::Taken], writes: &[Place::Totals] };
        gpu.run(Stream::Compute, work, &mut || {
            let _ = sum.shallow_clone().f_add_(&self.taken)?;
            Ok(())
        })
    }

    /// Begins an average, as long as the weights.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn keep_average(&mut self) -> Result<(), TorchError> {
        self.average = Some((copied(&self.state.master)?, copied(&self.running)?));
        Ok(())
    }

    /// Average and weights change places, running statistics with them; whether there is an average. Nothing may be under
    /// way.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn swap_average(&mut self) -> Result<bool, TorchError> {
        let Some((values, running)) = &mut self.average else { return Ok(false) };
        for (a, b) in [(values, &mut self.state.master), (running, &mut self.running)] {
            let kept = copied(a)?;
            a.f_copy_(b)?;
            b.f_copy_(&kept)?;
        }
        Ok(true)
    }

    /// What it takes, by part.
    pub fn memory(&self, usage: Usage) -> Memory {
        let rounded = (self.kind == Kind::BFloat16).then_some(&self.rounded);
        let leaves = self.leaves.iter().filter(|_| self.is_apart());
        Memory::new(usage)
            .with("weights", [&self.state.master].into_iter().chain(rounded))
            .with("optimizer", self.state.buffers.iter().map(|buffer| &buffer.values))
            .with("gradient", [&self.gradient].into_iter().chain(leaves))
            .with("average", self.average.iter().map(|(values, _)| values))
            .with("batches", self.places.values().flat_map(|(images, targets)| [images, targets]))
    }

    /// The gradient of the last step, flat.
    pub fn gradient(&self) -> &Tensor {
        &self.gradient
    }

    pub(super) fn weights(&self) -> Result<Vec<Tensor>, TorchError> {
        let view = |(i, param): (usize, &Param)| {
            // The classifier computes in the master's type: ten logits are not worth rounding.
            let of_conv = |op: &Op| matches!(op, Op::Conv { b, .. } if *b == Some(ParamId(i)));
            let rounds = param.shape.len() == 4 || self.program.ops.iter().any(of_conv);
            let flat = if rounds { &self.rounded } else { &self.state.master };
            view_of(flat, &self.program, &self.layout, ParamId(i))
        };
        self.program.params.iter().enumerate().map(view).collect()
    }

    /// Running statistics of a norm as its statistics.
    pub(super) fn fixed(&self, running: &Tensor, norm: usize) -> Result<composed::Statistics, TorchError> {
        let before: usize = self.program.norms[..norm].iter().map(|norm| 2 * norm.channels).sum();
        let channels = self.program.norms[norm].channels as i64;
        let of = |skip: i64| running.f_narrow(0, before as i64 + skip * channels, channels);
        composed::Statistics::fixed(of(0)?, of(1)?, self.recipe.model.bn_eps, self.state.master.kind())
    }

    /// γ and β of a norm.
    pub(super) fn affine<T>(
        &self,
        norm: usize,
        f: impl FnOnce(&Affine<'_>) -> Result<T, TorchError>,
    ) -> Result<T, TorchError> {
        let of = &self.program.norms[norm];
        let (gamma, beta) = (self.vector(of.gamma)?, self.vector(of.beta)?);
        f(&Affine { gamma: &gamma, beta: &beta, eps: self.recipe.model.bn_eps })
    }

    pub(super) fn is_ordered(&self) -> bool {
        self.recipe.train.reduction == Reduction::Canonical
    }

    pub(super) fn is_global(&self) -> bool {
        self.recipe.train.batch_norm == BatchNorm::Global
    }

    /// Whether every chunk is a batch of its own: for its order in sums, or for its statistics.
    pub fn is_apart(&self) -> bool {
        self.is_ordered() || self.recipe.train.batch_norm == BatchNorm::Chunk
    }

    /// The step. Batches and control numbers are there.
    ///
    /// # Errors
    /// What the device says while things are enqueued; nothing of the state has changed then, or will.
    pub fn enqueue(&mut self, gpu: &mut dyn Gpu, frame: &Frame) -> Result<(), GpuError> {
        self.round(gpu)?;
        self.held.iter_mut().for_each(Vec::clear); // of a step that was cut short
        let (mut losses, mut statistics) = (Vec::new(), Vec::new());
        for (number, part) in frame.parts.iter().enumerate() {
            let is_last = number + 1 == frame.parts.len();
            self.take_up(part)?;
            let layers = self.forward(gpu, frame)?;
            losses.extend(self.loss(gpu, frame)?);
            if is_last {
                self.take_totals(gpu, frame, std::mem::take(&mut losses))?;
            }
            statistics.extend(self.statistics(gpu, frame, &layers)?);
            self.backward(gpu, (frame, is_last), &layers)?;
        }
        self.take_statistics(gpu, frame, statistics)?;
        let voted = self.vote(gpu, frame)?;
        gpu.wait(Stream::Compute, voted)?;
        self.judge(gpu)?;
        self.update(gpu, frame.step)
    }

    /// bf16: casts the weights once.
    pub fn round(&mut self, gpu: &mut dyn Gpu) -> Result<(), GpuError> {
        if self.kind != Kind::BFloat16 {
            return Ok(());
        }
        let work = Work { name: "round weights", reads: &[Place::Weights], writes: &[Place::Rounded] };
        gpu.run(Stream::Compute, work, &mut || Ok(self.rounded.f_copy_(&self.state.master)?))
    }
}

/// By running statistic: whether it follows the batches.
fn follows(program: &Program, tuning: &Tuning) -> Result<Tensor, TorchError> {
    let of = |(i, norm): (usize, &Norm)| vec![f64::from(!tuning.is_fixed(i)); 2 * norm.channels];
    let values: Vec<f64> = program.norms.iter().enumerate().flat_map(of).collect();
    Ok(Tensor::f_from_slice(&values)?)
}

fn copied(x: &Tensor) -> Result<Tensor, TorchError> {
    let mut out = x.f_empty_like()?;
    out.f_copy_(x)?;
    Ok(out)
}
