//! One chunk's values and gradients. One thread at a time works on it, with one intra-op thread.

use std::sync::Arc;

use lockstep_data::{Delivered, Partner};
use lockstep_torch::{self as torch, Activation, TorchError};
use tch::{Kind, Tensor};

use super::norm::{Backward, Forward, Statistics, parameter_gradients};
use super::tape::{Passes, Tape};
use crate::number::Number;
use crate::program::{FlatLayout, Norm, NormId, Op, ParamId, Program, Segment, Slot};

/// Values, saved for backward, and gradients of one chunk.
pub struct Chunk<A> {
    /// Classes.
    pub labels: Vec<i64>,
    /// The other class of a mixed sample, and its share; empty where nothing is mixed.
    pub partners: Vec<Partner>,
    /// The position of each sample.
    pub positions: Vec<u64>,
    /// Positions whose loss is not finite; filled where the chunk's is not.
    pub strange: Vec<u64>,
    /// Digest of what the loader delivered.
    pub digest: u64,
    /// The last message: statistics forward, gated sums backward.
    pub message: Vec<f64>,
    /// Gradients of vectors: the vector region of the flat layout.
    pub vectors: Vec<A>,
    /// Values and gradients.
    pub tape: Tape,
    layout: Arc<FlatLayout>,
}

impl<A: Number> Chunk<A> {
    /// An empty chunk over these weights (views, shared by all chunks); activations are of `kind`.
    pub fn new(program: Arc<Program>, layout: Arc<FlatLayout>, weights: Vec<Tensor>, kind: Kind) -> Self {
        Self {
            labels: Vec::new(),
            partners: Vec::new(),
            positions: Vec::new(),
            strange: Vec::new(),
            digest: 0,
            message: Vec::new(),
            vectors: vec![A::default(); layout.len - layout.vectors],
            tape: Tape::new(program, weights, kind, Passes::Fused),
            layout,
        }
    }

    /// Number of samples in it.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether it has no samples.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Takes over what was loaded, with the images, `shape` = h, w, c, as the value of slot 0, and forgets whatever a step
    /// that was cut short left behind. `rows` keeps its buffer of images.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn take_rows(&mut self, rows: &mut Delivered, shape: [usize; 3]) -> Result<(), TorchError> {
        self.clear();
        std::mem::swap(&mut self.labels, &mut rows.labels);
        std::mem::swap(&mut self.partners, &mut rows.partners);
        std::mem::swap(&mut self.positions, &mut rows.positions);
        self.digest = rows.digest;
        let [h, w, c] = shape.map(|x| x as i64);
        let x_nhwc = Tensor::f_from_slice(&rows.images)?.f_view([self.len() as i64, h, w, c])?;
        let kind = self.tape.kind();
        self.tape.put(Slot(0), x_nhwc.f_permute([0, 3, 1, 2])?.f_to_kind(kind)?);
        Ok(())
    }

    /// Forgets values and gradients.
    pub fn clear(&mut self) {
        self.tape.clear();
    }

    /// Forward through a segment; leaves the statistics of the norm that ends it in `message`.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn forward(&mut self, segment: &Segment, entered: Option<&Forward<A>>) -> Result<(), TorchError> {
        let program = Arc::clone(self.tape.program());
        if let (Some(op), Some(coefficients)) = (segment.enters, entered) {
            self.apply(&program.ops[op], coefficients)?;
        }
        for op in &program.ops[segment.ops.clone()] {
            self.run(op)?;
        }
        if let Some(Op::Norm { x, norm, .. }) = segment.meets.map(|op| &program.ops[op]) {
            let mut message = std::mem::take(&mut self.message);
            message.resize(2 * program.norms[norm.0].channels, 0.0);
            torch::stats(self.tape.value(*x)?, &mut message)?;
            self.message = message;
        }
        Ok(())
    }

    /// The norm at `op` with these coefficients.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn apply(&mut self, op: &Op, coefficients: &Forward<A>) -> Result<(), TorchError> {
        let Op::Norm { x, y, add, act, .. } = op else { return Ok(()) };
        let input = self.tape.value(*x)?;
        let mut out = input.f_empty_like()?;
        let add = add.map(|slot| self.tape.value(slot)).transpose()?;
        torch::apply(input, add, &mut out, *act, &coefficients.0)?;
        self.tape.put(*y, out);
        Ok(())
    }

    /// Any operation but a norm.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn run(&mut self, op: &Op) -> Result<(), TorchError> {
        self.tape.run(op)
    }

    /// The value of `slot` (`[n, classes]`), row by row.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn logits(&self, slot: Slot) -> Result<Vec<A>, TorchError> {
        let logits = self.tape.value(slot)?;
        let mut out = vec![A::default(); logits.numel()];
        torch::read(logits, &mut out)?;
        Ok(out)
    }

    /// Starts backward with the gradient of the logits.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn start_backward(&mut self, slot: Slot, gradient: &[A]) -> Result<(), TorchError> {
        let mut tensor = self.tape.value(slot)?.f_empty_like()?;
        torch::write(&mut tensor, gradient)?;
        self.tape.give(slot, tensor, true)
    }

    /// Backward through a segment; leaves the gated sums of the norm that begins it in `message`.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn backward(
        &mut self,
        segment: &Segment,
        met: Option<&Backward<A>>,
        entered_mean: Option<&[A]>,
    ) -> Result<(), TorchError> {
        let program = Arc::clone(self.tape.program());
        if let (Some(op), Some(coefficients)) = (segment.meets, met) {
            self.norm_gradient(&program.ops[op], coefficients)?;
        }
        for op in program.ops[segment.ops.clone()].iter().rev() {
            self.tape.undo(op)?;
            let (Op::Conv { b: Some(b), .. } | Op::Linear { b, .. }) = op else { continue };
            if let Some(gradient) = self.tape.biases[b.0].take() {
                self.put_bias(*b, &gradient)?;
            }
        }
        if let (Some(op), Some(mean)) = (segment.enters, entered_mean) {
            self.gate(&program.ops[op], mean)?;
        }
        Ok(())
    }

    /// The gradients of γ and β of a layer, from `message`.
    pub fn finish_norm(&mut self, norm: NormId, statistics: &Statistics) {
        let Norm { channels, gamma, beta, .. } = self.tape.program().norms[norm.0];
        let (mut d_gamma, mut d_beta) = (vec![A::default(); channels], vec![A::default(); channels]);
        parameter_gradients(statistics, &self.message, &mut d_gamma, &mut d_beta);
        self.put_vector(gamma, &d_gamma);
        self.put_vector(beta, &d_beta);
    }

    fn put_vector(&mut self, param: ParamId, values: &[A]) {
        let entry = self.layout.entries[param.0];
        let start = entry.offset - self.layout.vectors;
        self.vectors[start..start + entry.len].copy_from_slice(values);
    }

    fn put_bias(&mut self, param: ParamId, gradient: &Tensor) -> Result<(), TorchError> {
        let mut values = vec![A::default(); self.tape.program().params[param.0].numel()];
        torch::read(&gradient.f_to_kind(A::KIND)?, &mut values)?;
        self.put_vector(param, &values);
        Ok(())
    }

    fn gate(&mut self, op: &Op, mean: &[A]) -> Result<(), TorchError> {
        let Op::Norm { x, y, norm, act, .. } = op else { return Ok(()) };
        let mut list = self.tape.take(*y)?;
        let first = list.remove(0);
        let second = list.pop();
        let mut message = std::mem::take(&mut self.message);
        message.resize(2 * self.tape.program().norms[norm.0].channels, 0.0);
        let changes = *act != Activation::Identity || second.is_some();
        let out = if first.owned || !changes { first.tensor.shallow_clone() } else { first.tensor.f_empty_like()? };
        torch::gate(
            (&first.tensor, second.as_ref().map(|g| &g.tensor)),
            (self.tape.value(*y)?, *act),
            (self.tape.value(*x)?, mean),
            &out,
            &mut message,
        )?;
        self.message = message;
        self.tape.give(*y, out, first.owned || changes)
    }

    fn norm_gradient(&mut self, op: &Op, coefficients: &Backward<A>) -> Result<(), TorchError> {
        let Op::Norm { x, y, add, .. } = op else { return Ok(()) };
        let gated = self.tape.take(*y)?.remove(0);
        let out =
            if gated.owned && add.is_none() { gated.tensor.shallow_clone() } else { gated.tensor.f_empty_like()? };
        torch::gradient(&gated.tensor, self.tape.value(*x)?, &out, &coefficients.0)?;
        if let Some(add) = add {
            self.tape.give(*add, gated.tensor, false)?;
        }
        self.tape.give(*x, out, true)
    }
}
