//! Forward to the loss: every tape through every segment; between two segments the statistics of a norm meet.

use std::ops::Range;

use lockstep_collective::{Lane, Op as Operation};
use lockstep_proto::recipe::BatchNorm;
use lockstep_proto::tree::{Node, Tree};
use lockstep_torch::TorchError;
use tch::{Kind, Tensor};

use super::loss::cross_entropy;
use super::norm::{Statistics, Sums};
use super::{Body, Frame, LOSS, Layer};
use crate::device::gpu::{Gpu, GpuError, Place, Stream, Work};
use crate::program::{Op, ParamId, Slot};
use crate::state::view_of;

impl Body {
    pub(super) fn forward(&mut self, gpu: &mut dyn Gpu, frame: &Frame) -> Result<Vec<Layer>, GpuError> {
        let mut layers: Vec<Layer> = Vec::new();
        for s in 0..self.segments.len() {
            let segment = self.segments[s].clone();
            let entered = segment.enters.map(|op| (op, layers.len() - 1));
            let mut messages = Vec::new();
            let work = Work {
                name: "forward",
                reads: &[Place::Batch, Place::Weights, Place::Rounded, Place::Message],
                writes: &[Place::Activations, Place::Message],
            };
            gpu.run(Stream::Compute, work, &mut || {
                messages.clear();
                if s == 0 {
                    self.begin()?;
                }
                for i in 0..self.part.len() {
                    if let Some((op, layer)) = entered {
                        self.apply(i, op, &layers[layer])?;
                    }
                    for op in &self.program.ops[segment.ops.clone()] {
                        self.tapes[i].run(op)?;
                    }
                    if let Some(Op::Norm { x, norm, .. }) = segment.meets.map(|op| &self.program.ops[op]) {
                        let mut message = self.numbers(2 * self.program.norms[norm.0].channels)?;
                        self.norms.stats(self.tapes[i].value(*x)?, &mut message)?;
                        messages.push(message);
                    }
                }
                Ok(())
            })?;
            if let Some(op) = segment.meets {
                layers.push(self.meet(gpu, frame, op, messages)?);
            }
        }
        Ok(layers)
    }

    /// Statistics of the norm at `op`: over all ranks, or of each tape.
    pub(super) fn meet(
        &mut self,
        gpu: &mut dyn Gpu,
        frame: &Frame,
        op: usize,
        messages: Vec<Tensor>,
    ) -> Result<Layer, GpuError> {
        let Op::Norm { x, norm, .. } = self.program.ops[op] else { return Ok(Vec::new()) };
        let pixels = self.pixels(frame, x);
        if self.tuning.is_fixed(norm.0) {
            return Ok(vec![Statistics::Composed(self.fixed(&self.running, norm.0)?)]);
        }
        let of = |body: &Self, sums: &Tensor, samples: u64| {
            body.affine(norm.0, |affine| body.norms.statistics(&Sums { sums, samples, pixels }, affine))
        };
        let sums = self.over_scope(gpu, frame, ("statistics of norm layer", norm.0), messages)?;
        let own = &frame.lens[self.part.clone()];
        let lens = match self.recipe.train.batch_norm {
            BatchNorm::Global => vec![frame.batch],
            BatchNorm::Local => vec![own.iter().sum()],
            BatchNorm::Chunk => own.to_vec(),
        };
        let mut layer = Vec::new();
        let work = Work { name: "statistics", reads: &[Place::Message], writes: &[Place::Message] };
        gpu.run(Stream::Compute, work, &mut || {
            let each = sums.iter().zip(&lens).map(|(sums, len)| of(self, sums, *len));
            layer = each.collect::<Result<_, TorchError>>()?;
            Ok(())
        })?;
        Ok(layer)
    }

    /// Sums messages of a norm over whose statistics it has: all ranks, or this one, one for all; or each chunk as it is.
    pub(super) fn over_scope(
        &self,
        gpu: &mut dyn Gpu,
        frame: &Frame,
        name: (&'static str, usize),
        messages: Vec<Tensor>,
    ) -> Result<Vec<Tensor>, GpuError> {
        match self.recipe.train.batch_norm {
            BatchNorm::Global => Ok(vec![self.sum(gpu, frame, name, messages)?]),
            BatchNorm::Chunk => Ok(messages),
            BatchNorm::Local if !self.is_apart() => Ok(messages),
            BatchNorm::Local => {
                let parts = self.add_up(gpu, frame, messages)?;
                let whole = self.numbers(2 * self.program.norms[name.1].channels)?;
                let work = Work { name: "sum of this rank", reads: &[Place::Message], writes: &[Place::Message] };
                gpu.run(Stream::Compute, work, &mut || {
                    for part in &parts {
                        let _ = whole.shallow_clone().f_add_(part)?;
                    }
                    Ok(())
                })?;
                Ok(vec![whole])
            }
        }
    }

    /// Sums a message over batches and ranks, on the compute stream: backward and forward wait for it.
    pub(super) fn sum(
        &self,
        gpu: &mut dyn Gpu,
        frame: &Frame,
        (name, index): (&'static str, usize),
        messages: Vec<Tensor>,
    ) -> Result<Tensor, GpuError> {
        let op = Operation { lane: Lane::Norm, step: frame.step, name, index: index as u32 };
        let mut partials = self.add_up(gpu, frame, messages)?;
        let len = self.program.norms.get(index).map_or(0, |norm| 2 * norm.channels);
        let len = if name == LOSS { 2 } else { len };
        if !self.is_ordered() {
            let message = partials.pop().map_or_else(|| self.numbers(len), Ok)?;
            gpu.all_reduce(Stream::Compute, &op, Place::Message, &message)?;
            return Ok(message);
        }
        let mut out = self.numbers(len)?;
        let (layout, place) = (&*frame.shard.layout, Place::Message);
        gpu.reduce_in_order(Stream::Compute, &op, (layout, &partials), (place, &mut out))?;
        Ok(out)
    }

    /// Adds what this rank's batches have into what its maximal subtrees have; in place, of one batch nothing.
    pub(super) fn add_up(
        &self,
        gpu: &mut dyn Gpu,
        frame: &Frame,
        mut messages: Vec<Tensor>,
    ) -> Result<Vec<Tensor>, GpuError> {
        if !self.is_apart() {
            return Ok(messages);
        }
        let mut sums = Vec::new();
        let work = Work { name: "sums of chunks", reads: &[Place::Message], writes: &[Place::Message] };
        gpu.run(Stream::Compute, work, &mut || {
            let local = &frame.shard.local;
            grow(local.tree, &mut sums, (local.chunks.clone(), std::mem::take(&mut messages)))
        })?;
        Ok(sums.into_iter().map(|(_, sum)| sum).collect())
    }

    pub(super) fn numbers(&self, len: usize) -> Result<Tensor, TorchError> {
        Ok(Tensor::f_zeros([len as i64], (Kind::Double, self.control.device()))?)
    }

    pub(super) fn pixels(&self, frame: &Frame, x: Slot) -> u64 {
        let stride = self.program.stride_of(x) as usize;
        (frame.image.0.div_ceil(stride) * frame.image.1.div_ceil(stride)) as u64
    }

    pub(super) fn vector(&self, id: ParamId) -> Result<Tensor, TorchError> {
        view_of(&self.state.master, &self.program, &self.layout, id)
    }

    pub(super) fn apply(&mut self, tape: usize, op: usize, layer: &Layer) -> Result<(), TorchError> {
        let Op::Norm { x, y, add, act, norm } = self.program.ops[op].clone() else { return Ok(()) };
        let statistics = &layer[tape.min(layer.len() - 1)];
        let on = &self.tapes[tape];
        let values = (on.value(x)?, add.map(|slot| on.value(slot)).transpose()?);
        let out = self.affine(norm.0, |affine| self.norms.apply(values, act, statistics, affine))?;
        self.tapes[tape].put(y, out);
        Ok(())
    }

    /// Loss and count of each batch in hand, and the gradient of the logits.
    pub(super) fn loss(&mut self, gpu: &mut dyn Gpu, frame: &Frame) -> Result<Vec<Tensor>, GpuError> {
        let (batch, logits) = (frame.batch as f64, self.program.logits);
        let smoothing = self.recipe.train.label_smoothing;
        let mut sums = Vec::new();
        let work = Work {
            name: "loss",
            reads: &[Place::Activations, Place::Batch],
            writes: &[Place::Activations, Place::Message],
        };
        gpu.run(Stream::Compute, work, &mut || {
            sums.clear();
            for (tape, (_, targets)) in self.tapes.iter_mut().zip(&self.batches[self.part.clone()]) {
                let (sum, gradient) = cross_entropy(tape.value(logits)?, targets, smoothing, batch)?;
                tape.give(logits, gradient, true)?;
                sums.push(sum.f_narrow(0, 0, 2)?.f_contiguous()?);
            }
            Ok(())
        })?;
        Ok(sums)
    }

    /// Loss and count over all batches of all ranks.
    pub(super) fn take_totals(&mut self, gpu: &mut dyn Gpu, frame: &Frame, sums: Vec<Tensor>) -> Result<(), GpuError> {
        let sum = self.sum(gpu, frame, (LOSS, 0), sums)?;
        let work = Work { name: "totals", reads: &[Place::Message], writes: &[Place::Totals] };
        gpu.run(Stream::Compute, work, &mut || Ok(self.totals.f_copy_(&sum)?))
    }
}

/// Adds what consecutive chunks have to the sums of those before them, as the tree says.
pub(super) fn grow(
    tree: Tree,
    sums: &mut Vec<(Node, Tensor)>,
    (chunks, leaves): (Range<u32>, Vec<Tensor>),
) -> Result<(), TorchError> {
    let mut failed = None;
    let mut add = |left: &mut Tensor, right: Tensor| {
        if let Err(error) = left.f_add_(&right) {
            failed.get_or_insert(error);
        }
    };
    for sum in tree.fold_chunks(chunks, leaves, &mut add) {
        tree.grow(sums, sum, &mut add);
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}
