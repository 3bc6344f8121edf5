//! Backward: every tape back through every segment; a bucket goes on its way when its last gradient is finished.

use lockstep_collective::{Lane, Op as Operation};
use lockstep_torch::TorchError;
use tch::Tensor;

use super::forward::grow;
use super::{Body, Frame, Layer, copied};
use crate::device::gpu::{Gpu, GpuError, Place, Stream, Work};
use crate::program::{Op, ParamId, Segment};
use crate::state::view_of;

impl Body {
    /// Back through every segment; in the last part a bucket whose last gradient is finished goes on its way.
    pub(super) fn backward(
        &mut self,
        gpu: &mut dyn Gpu,
        (frame, is_last): (&Frame, bool),
        layers: &[Layer],
    ) -> Result<(), GpuError> {
        let mut bucket = 0;
        let mut missing: Vec<usize> = self.slices.iter().map(|slice| slice.params.len()).collect();
        let mut met: Vec<Tensor> = Vec::new();
        for s in (0..self.segments.len()).rev() {
            let segment = self.segments[s].clone();
            let entered = segment.enters.and_then(|op| self.program.norm_at(op).map(|norm| (op, norm)));
            let mut messages = Vec::new();
            let written = self.written(&segment);
            let work = Work {
                name: "backward",
                reads: &[Place::Weights, Place::Rounded, Place::Message, Place::Activations],
                writes: &written,
            };
            gpu.run(Stream::Compute, work, &mut || {
                messages.clear();
                for i in 0..self.part.len() {
                    if let Some(op) = segment.meets {
                        self.norm_gradient(i, op, layers, met.get(i).or(met.first()))?;
                    }
                    for op in self.program.ops[segment.ops.clone()].to_vec().iter().rev() {
                        self.tapes[i].undo(op)?;
                        self.collect(i, op)?;
                    }
                    if let Some((op, norm)) = entered {
                        messages.push(self.gate(i, op, &layers[norm.0])?);
                    }
                }
                Ok(())
            })?;
            for op in self.program.ops[segment.ops.clone()].to_vec().iter().rev() {
                let (Op::Conv { w, .. } | Op::Linear { w, .. }) = op else { continue };
                let Some(at) = self.bucket_of(*w) else { continue };
                missing[at] -= 1;
                while bucket < missing.len() - 1 && missing[bucket] == 0 {
                    self.finish(gpu, (frame, is_last), bucket)?;
                    bucket += 1;
                }
            }
            if let Some((_, norm)) = entered {
                met = self.over_scope(gpu, frame, ("gradient sums of norm layer", norm.0), messages)?;
            }
        }
        // Vectors are finished last.
        self.finish(gpu, (frame, is_last), missing.len() - 1)
    }

    /// What backward through a segment writes: which buckets, among others.
    pub(super) fn written(&self, segment: &Segment) -> Vec<Place> {
        let vectors = self.slices.len() - 1;
        let mut places = vec![Place::Activations, Place::Message, Place::Gradient(vectors as u32)];
        for op in &self.program.ops[segment.ops.clone()] {
            let (Op::Conv { w, .. } | Op::Linear { w, .. }) = op else { continue };
            places.extend(self.bucket_of(*w).map(|bucket| Place::Gradient(bucket as u32)));
        }
        places
    }

    pub(super) fn bucket_of(&self, matrix: ParamId) -> Option<usize> {
        self.slices.iter().position(|slice| slice.params.contains(&matrix))
    }

    pub(super) fn norm_gradient(
        &mut self,
        tape: usize,
        op: usize,
        layers: &[Layer],
        sums: Option<&Tensor>,
    ) -> Result<(), TorchError> {
        let (Op::Norm { x, y, add, norm, .. }, Some(sums)) = (self.program.ops[op].clone(), sums) else {
            return Ok(());
        };
        let layer = &layers[norm.0];
        let statistics = &layer[tape.min(layer.len() - 1)];
        let gamma = self.vector(self.program.norms[norm.0].gamma)?;
        let tape = &mut self.tapes[tape];
        let gated = tape.take(y)?.remove(0);
        let dx = self.norms.gradient((&gated.tensor, tape.value(x)?), sums, (&gamma, statistics))?;
        if let Some(add) = add {
            tape.give(add, gated.tensor, false)?;
        }
        tape.give(x, dx, true)
    }

    /// The gated gradient of the norm at `op`, the gradients of γ and β, and the message.
    pub(super) fn gate(&mut self, tape: usize, op: usize, layer: &Layer) -> Result<Tensor, TorchError> {
        let Op::Norm { x, y, act, norm, .. } = self.program.ops[op].clone() else { return self.numbers(0) };
        let of = self.program.norms[norm.0].clone();
        let mut message = self.numbers(2 * of.channels)?;
        let statistics = &layer[tape.min(layer.len() - 1)];
        let mut list = self.tapes[tape].take(y)?;
        let (first, second) = (list.remove(0), list.pop());
        let on = &self.tapes[tape];
        let arriving = (&first.tensor, second.as_ref().map(|g| &g.tensor));
        let gated = self.norms.gate(arriving, (on.value(y)?, act), (on.value(x)?, statistics), &mut message)?;
        self.tapes[tape].give(y, gated, true)?;
        let of_leaf = |id| view_of(&self.leaves[tape], &self.program, &self.layout, id);
        let (mut d_gamma, mut d_beta) = (of_leaf(of.gamma)?, of_leaf(of.beta)?);
        let gamma = self.vector(of.gamma)?;
        self.norms.parameter_gradients(&message, (&gamma, statistics), [&mut d_gamma, &mut d_beta])?;
        Ok(message)
    }

    /// Copies what an operation's gradient finished into the flat one.
    pub(super) fn collect(&mut self, tape: usize, op: &Op) -> Result<(), TorchError> {
        let (w, b) = match op {
            Op::Conv { w, b, .. } => (*w, *b),
            Op::Linear { w, b, .. } => (*w, Some(*b)),
            _ => return Ok(()),
        };
        if let Some(gradient) = self.tapes[tape].matrices[w.0].take() {
            self.put_gradient(tape, w, &gradient)?;
        }
        if let Some((b, gradient)) = b.and_then(|b| Some((b, self.tapes[tape].biases[b.0].take()?))) {
            self.put_gradient(tape, b, &gradient)?;
        }
        Ok(())
    }

    pub(super) fn put_gradient(&self, tape: usize, id: ParamId, gradient: &Tensor) -> Result<(), TorchError> {
        let mut view = view_of(&self.leaves[tape], &self.program, &self.layout, id)?;
        Ok(view.f_copy_(gradient)?)
    }

    /// A bucket has the gradient of the batches in hand: where they are chunks, their sums go to those of the parts before;
    /// in the last part it goes on its way, behind everything that compute has done so far.
    fn finish(&mut self, gpu: &mut dyn Gpu, (frame, is_last): (&Frame, bool), bucket: usize) -> Result<(), GpuError> {
        let place = Place::Gradient(bucket as u32);
        if self.is_apart() {
            let work = Work { name: "gradient of chunks", reads: &[place], writes: &[place] };
            gpu.run(Stream::Compute, work, &mut || self.hold((frame, is_last), bucket))?;
        }
        if is_last { self.send(gpu, frame, bucket) } else { Ok(()) }
    }

    fn hold(&mut self, (frame, is_last): (&Frame, bool), bucket: usize) -> Result<(), TorchError> {
        let (start, len) = (self.slices[bucket].start as i64, self.slices[bucket].len as i64);
        let local = &frame.shard.local;
        let first = local.chunks.start + self.part.start as u32;
        let chunks = first..first + self.part.len() as u32;
        // The next part writes over them; behind the last one sums may be taken in place.
        let leaf = |leaf: &Tensor| {
            let own = leaf.f_narrow(0, start, len)?;
            if is_last { Ok(own) } else { copied(&own) }
        };
        let leaves = self.leaves[..self.part.len()].iter().map(leaf).collect::<Result<_, TorchError>>()?;
        grow(local.tree, &mut self.held[bucket], (chunks, leaves))?;
        if is_last && !self.is_ordered() {
            // One sum, or of a rank without chunks none.
            let mut to = self.gradient.f_narrow(0, start, len)?;
            match self.held[bucket].pop() {
                Some((_, sum)) => to.f_copy_(&sum)?,
                None => drop(to.f_zero_()?),
            }
        }
        Ok(())
    }

    fn send(&mut self, gpu: &mut dyn Gpu, frame: &Frame, bucket: usize) -> Result<(), GpuError> {
        let (start, len) = (self.slices[bucket].start as i64, self.slices[bucket].len as i64);
        let place = Place::Gradient(bucket as u32);
        let ready = gpu.record(Stream::Compute)?;
        gpu.wait(Stream::Buckets, ready)?;
        let op = Operation { lane: Lane::Buckets, step: frame.step, name: "gradient bucket", index: bucket as u32 };
        let mut sum = self.gradient.f_narrow(0, start, len).map_err(TorchError::from)?;
        if !self.is_ordered() {
            return gpu.all_reduce(Stream::Buckets, &op, place, &sum);
        }
        let partials: Vec<Tensor> = self.held[bucket].drain(..).map(|(_, sum)| sum).collect();
        gpu.reduce_in_order(Stream::Buckets, &op, (&frame.shard.layout, &partials), (place, &mut sum))
    }
}
