//! One chunk's values and gradients. One thread at a time works on it, with one intra-op thread.

use std::sync::Arc;

use lockstep_data::Partner;
use lockstep_proto::ids::SampleRange;
use lockstep_torch::{self as torch, Activation, TorchError};
use tch::{Device, Kind, Tensor};

use super::norm::{Backward, Forward, Statistics, parameter_gradients};
use crate::number::Number;
use crate::program::{FlatLayout, Norm, NormId, Op, ParamId, Program, Segment, Slot};

/// Side, stride and padding of max pooling.
const MAX_POOL: ([i64; 2], [i64; 2], [i64; 2]) = ([3, 3], [2, 2], [1, 1]);

/// A gradient of a slot. The first of a list may be written to if it is owned; a shared one is someone else's too.
struct Gradient {
    tensor: Tensor,
    owned: bool,
}

/// Values, saved for backward, and gradients of one chunk.
pub struct Chunk<A> {
    /// Images, NHWC.
    pub images: Vec<f32>,
    /// Classes.
    pub labels: Vec<i64>,
    /// The other class of a mixed sample, and its share; empty where nothing is mixed.
    pub partners: Vec<Partner>,
    /// Positions of its samples.
    pub positions: SampleRange,
    /// Positions whose loss is not finite; filled where the chunk's is not.
    pub strange: Vec<u64>,
    /// Digest of what the loader delivered.
    pub digest: u64,
    /// Seconds that loading took.
    pub load_seconds: f64,
    /// The last message: statistics forward, gated sums backward.
    pub message: Vec<f64>,
    /// Gradients of matrices that backward has finished, by parameter.
    pub matrices: Vec<Option<Tensor>>,
    /// Gradients of vectors: the vector region of the flat layout.
    pub vectors: Vec<A>,
    program: Arc<Program>,
    layout: Arc<FlatLayout>,
    /// Weights as the operations see them, by parameter.
    weights: Vec<Tensor>,
    slots: Vec<Option<Tensor>>,
    /// Which pixels max pooling took, by the slot that it wrote.
    indices: Vec<Option<Tensor>>,
    gradients: Vec<Vec<Gradient>>,
    kind: Kind,
}

fn missing(what: &str, slot: Slot) -> TorchError {
    torch_error(format!("{what} of slot {} is missing: the program reads it before it is written", slot.0))
}

fn torch_error(message: String) -> TorchError {
    TorchError::from(tch::TchError::Shape(message))
}

impl<A: Number> Chunk<A> {
    /// An empty chunk over these weights (views, shared by all chunks); activations are of `kind`.
    pub fn new(program: Arc<Program>, layout: Arc<FlatLayout>, weights: Vec<Tensor>, kind: Kind) -> Self {
        Self {
            images: Vec::new(),
            labels: Vec::new(),
            partners: Vec::new(),
            positions: SampleRange::default(),
            strange: Vec::new(),
            digest: 0,
            load_seconds: 0.0,
            message: Vec::new(),
            matrices: program.params.iter().map(|_| None).collect(),
            vectors: vec![A::default(); layout.len - layout.vectors],
            weights,
            slots: (0..program.num_slots).map(|_| None).collect(),
            indices: (0..program.num_slots).map(|_| None).collect(),
            gradients: (0..program.num_slots).map(|_| Vec::new()).collect(),
            kind,
            program,
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

    /// Makes the images the value of slot 0, `shape` = h, w, c, and forgets whatever a step that was cut short left
    /// behind.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn take_images(&mut self, shape: [usize; 3]) -> Result<(), TorchError> {
        self.clear();
        let [h, w, c] = shape.map(|x| x as i64);
        let x_nhwc = Tensor::f_from_slice(&self.images)?.f_view([self.len() as i64, h, w, c])?;
        self.slots[0] = Some(x_nhwc.f_permute([0, 3, 1, 2])?.f_to_kind(self.kind)?);
        Ok(())
    }

    /// Forgets values and gradients.
    pub fn clear(&mut self) {
        self.slots.iter_mut().for_each(|slot| *slot = None);
        self.indices.iter_mut().for_each(|index| *index = None);
        self.gradients.iter_mut().for_each(Vec::clear);
    }

    /// Forward through a segment; leaves the statistics of the norm that ends it in `message`.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn forward(&mut self, segment: &Segment, entered: Option<&Forward<A>>) -> Result<(), TorchError> {
        let program = Arc::clone(&self.program);
        if let (Some(op), Some(coefficients)) = (segment.enters, entered) {
            self.apply(&program.ops[op], coefficients)?;
        }
        for op in &program.ops[segment.ops.clone()] {
            self.run(op)?;
        }
        if let Some(Op::Norm { x, norm, .. }) = segment.meets.map(|op| &program.ops[op]) {
            let mut message = std::mem::take(&mut self.message);
            message.resize(2 * program.norms[norm.0].channels, 0.0);
            torch::stats(self.value(*x)?, &mut message)?;
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
        let input = self.value(*x)?;
        let mut out = input.f_empty_like()?;
        let add = add.map(|slot| self.value(slot)).transpose()?;
        torch::apply(input, add, &mut out, *act, &coefficients.0)?;
        self.slots[y.0] = Some(out);
        Ok(())
    }

    /// Any operation but a norm.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn run(&mut self, op: &Op) -> Result<(), TorchError> {
        let (y, value) = match op {
            Op::Conv { x, y, w, b, stride, pad } => {
                let bias = b.map(|b| &self.weights[b.0]);
                (y, torch::conv(self.value(*x)?, &self.weights[w.0], bias, *stride, *pad)?)
            }
            Op::Add { a, b, y } => {
                let left = self.value(*a)?;
                let mut out = left.f_empty_like()?;
                torch::join(left, self.value(*b)?, &mut out)?;
                (y, out)
            }
            Op::Act { x, y, act } => {
                let input = self.value(*x)?;
                let mut out = input.f_empty_like()?;
                torch::rectify(input, &mut out, *act)?;
                (y, out)
            }
            Op::Subsample { x, y, stride, channels } => {
                let input = self.value(*x)?;
                let (n, _, h, w) = input.size4()?;
                let up = |size: i64| (size + stride - 1) / stride;
                let mut out = channels_last(&[n, *channels, up(h), up(w)], self.kind)?;
                torch::subsample(input, &mut out, *stride)?;
                (y, out)
            }
            Op::MaxPool { x, y } => {
                let (side, stride, pad) = MAX_POOL;
                let input = self.value(*x)?;
                let (value, index) = input.f_max_pool2d_with_indices(side, stride, pad, [1, 1], false)?;
                self.indices[y.0] = Some(index);
                (y, value)
            }
            Op::Pool { x, y } => {
                let input = self.value(*x)?;
                let (n, c, _, _) = input.size4()?;
                let mut out = Tensor::f_empty([n, c], (A::KIND, Device::Cpu))?;
                torch::pool(input, &mut out)?;
                (y, out)
            }
            Op::Linear { x, y, w, b } => {
                let w_ki = &self.weights[w.0];
                (y, self.weights[b.0].f_addmm(self.value(*x)?, &w_ki.f_tr()?)?)
            }
            Op::Norm { .. } => return Ok(()),
        };
        self.slots[y.0] = Some(value);
        Ok(())
    }

    /// The value of `slot` (`[n, classes]`), row by row.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn logits(&self, slot: Slot) -> Result<Vec<A>, TorchError> {
        let logits = self.value(slot)?;
        let mut out = vec![A::default(); logits.numel()];
        torch::read(logits, &mut out)?;
        Ok(out)
    }

    /// Starts backward with the gradient of the logits.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn start_backward(&mut self, slot: Slot, gradient: &[A]) -> Result<(), TorchError> {
        let mut tensor = self.value(slot)?.f_empty_like()?;
        torch::write(&mut tensor, gradient)?;
        self.give(slot, tensor, true)
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
        let program = Arc::clone(&self.program);
        if let (Some(op), Some(coefficients)) = (segment.meets, met) {
            self.norm_gradient(&program.ops[op], coefficients)?;
        }
        for op in program.ops[segment.ops.clone()].iter().rev() {
            self.undo(op)?;
        }
        if let (Some(op), Some(mean)) = (segment.enters, entered_mean) {
            self.gate(&program.ops[op], mean)?;
        }
        Ok(())
    }

    /// The gradients of γ and β of a layer, from `message`.
    pub fn finish_norm(&mut self, norm: NormId, statistics: &Statistics) {
        let Norm { channels, gamma, beta, .. } = self.program.norms[norm.0];
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
        let mut values = vec![A::default(); self.program.params[param.0].numel()];
        torch::read(&gradient.f_to_kind(A::KIND)?, &mut values)?;
        self.put_vector(param, &values);
        Ok(())
    }

    fn gate(&mut self, op: &Op, mean: &[A]) -> Result<(), TorchError> {
        let Op::Norm { x, y, norm, act, .. } = op else { return Ok(()) };
        let mut list = self.take(*y)?;
        let first = list.remove(0);
        let second = list.pop();
        let mut message = std::mem::take(&mut self.message);
        message.resize(2 * self.program.norms[norm.0].channels, 0.0);
        let changes = *act != Activation::Identity || second.is_some();
        let out = if first.owned || !changes { first.tensor.shallow_clone() } else { first.tensor.f_empty_like()? };
        torch::gate(
            (&first.tensor, second.as_ref().map(|g| &g.tensor)),
            (self.value(*y)?, *act),
            (self.value(*x)?, mean),
            &out,
            &mut message,
        )?;
        self.message = message;
        self.give(*y, out, first.owned || changes)
    }

    fn norm_gradient(&mut self, op: &Op, coefficients: &Backward<A>) -> Result<(), TorchError> {
        let Op::Norm { x, y, add, .. } = op else { return Ok(()) };
        let gated = self.take(*y)?.remove(0);
        let out =
            if gated.owned && add.is_none() { gated.tensor.shallow_clone() } else { gated.tensor.f_empty_like()? };
        torch::gradient(&gated.tensor, self.value(*x)?, &out, &coefficients.0)?;
        if let Some(add) = add {
            self.give(*add, gated.tensor, false)?;
        }
        self.give(*x, out, true)
    }

    fn undo(&mut self, op: &Op) -> Result<(), TorchError> {
        match op {
            Op::Conv { x, y, w, b, stride, pad } => {
                let g = self.merged(*y)?.tensor;
                let input = self.value(*x)?;
                let wanted = (x.0 != 0, b.is_some());
                let out = torch::conv_backward(&g, input, &self.weights[w.0], (*stride, *pad), wanted)?;
                self.matrices[w.0] = Some(out.dw);
                if let (Some(b), Some(db)) = (b, out.db) {
                    self.put_bias(*b, &db)?;
                }
                if let Some(dx) = out.dx {
                    self.give(*x, dx, true)?;
                }
            }
            Op::Add { a, b, y } => {
                let g = self.merged(*y)?.tensor;
                self.give(*a, g.shallow_clone(), false)?;
                self.give(*b, g, false)?;
            }
            Op::Act { x, y, act } => {
                let g = self.merged(*y)?;
                let out = if g.owned { g.tensor.shallow_clone() } else { g.tensor.f_empty_like()? };
                torch::rectify_backward(&g.tensor, self.value(*y)?, &out, *act)?;
                self.give(*x, out, true)?;
            }
            Op::Subsample { x, y, stride, .. } => {
                let g = self.merged(*y)?.tensor;
                let shape = self.value(*x)?.size();
                match self.gradients[x.0].iter_mut().find(|have| have.owned) {
                    Some(have) => torch::subsample_backward(&g, &mut have.tensor, *stride)?,
                    None => {
                        let mut dx = channels_last(&shape, self.kind)?;
                        let _ = dx.f_zero_()?;
                        torch::subsample_backward(&g, &mut dx, *stride)?;
                        self.give(*x, dx, true)?;
                    }
                }
            }
            Op::MaxPool { x, y } => {
                let (side, stride, pad) = MAX_POOL;
                let g = self.merged(*y)?.tensor;
                let index = self.indices[y.0].take().ok_or_else(|| missing("where the largest was", *y))?;
                let input = self.value(*x)?;
                let dx = input.f_max_pool2d_with_indices_backward(&g, side, stride, pad, [1, 1], false, &index)?;
                self.give(*x, dx, true)?;
            }
            Op::Pool { x, y } => {
                let g = self.merged(*y)?.tensor.f_contiguous()?;
                let mut dx = self.value(*x)?.f_empty_like()?;
                torch::pool_backward(&g, &mut dx)?;
                self.give(*x, dx, true)?;
            }
            Op::Linear { x, y, w, b } => {
                let g_nk = self.merged(*y)?.tensor;
                let x_ni = self.value(*x)?;
                let dw_ki = g_nk.f_tr()?.f_mm(x_ni)?.f_contiguous()?;
                let dx_ni = g_nk.f_mm(&self.weights[w.0])?;
                let db = g_nk.f_sum_dim_intlist([0i64].as_slice(), false, A::KIND)?;
                self.put_bias(*b, &db)?;
                self.matrices[w.0] = Some(dw_ki);
                self.give(*x, dx_ni, true)?;
            }
            Op::Norm { .. } => {}
        }
        Ok(())
    }

    fn value(&self, slot: Slot) -> Result<&Tensor, TorchError> {
        self.slots[slot.0].as_ref().ok_or_else(|| missing("the value", slot))
    }

    /// The gradients of a slot, an owned one first.
    fn take(&mut self, slot: Slot) -> Result<Vec<Gradient>, TorchError> {
        let mut list = std::mem::take(&mut self.gradients[slot.0]);
        if list.is_empty() {
            return Err(missing("the gradient", slot));
        }
        if let Some(at) = list.iter().position(|g| g.owned) {
            list.swap(0, at);
        }
        Ok(list)
    }

    /// The gradients of a slot as one tensor.
    fn merged(&mut self, slot: Slot) -> Result<Gradient, TorchError> {
        let mut list = self.take(slot)?;
        let first = list.remove(0);
        let Some(second) = list.pop() else { return Ok(first) };
        let mut out = if first.owned { first.tensor.shallow_clone() } else { first.tensor.f_empty_like()? };
        torch::join(&first.tensor, &second.tensor, &mut out)?;
        Ok(Gradient { tensor: out, owned: true })
    }

    /// Adds a gradient to a slot's list, which keeps at most two: the gated pass reads both at no extra cost.
    fn give(&mut self, slot: Slot, tensor: Tensor, owned: bool) -> Result<(), TorchError> {
        if self.gradients[slot.0].len() == 2 {
            let both = self.merged(slot)?;
            self.gradients[slot.0].push(both);
        }
        self.gradients[slot.0].push(Gradient { tensor, owned });
        Ok(())
    }
}

fn channels_last(shape: &[i64], kind: Kind) -> Result<Tensor, TorchError> {
    let [n, c, h, w] = shape else { return Err(torch_error(format!("expected 4 sizes, got {shape:?}"))) };
    Ok(Tensor::f_empty([*n, *h, *w, *c], (kind, Device::Cpu))?.f_permute([0, 3, 1, 2])?)
}
