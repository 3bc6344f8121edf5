//! Values and gradients of one batch of samples on their way through a program: every operation and its gradient but
//! BatchNorm, whose halves meet others in between.

use std::sync::Arc;

use lockstep_torch::{self as torch, TorchError, composed};
use tch::{Device, Kind, Tensor};

use crate::program::{Op, Program, Slot};

/// Side, stride and padding of max pooling.
const MAX_POOL: ([i64; 2], [i64; 2], [i64; 2]) = ([3, 3], [2, 2], [1, 1]);

/// What operations other than convolutions and products are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passes {
    /// Single passes over memory in the calling thread, on the CPU.
    Fused,
    /// ATen's operations, on any device.
    Composed,
}

/// A gradient of a slot. The first of a list may be written to if it is owned; a shared one is someone else's too.
pub struct Gradient {
    /// Of the slot's shape.
    pub tensor: Tensor,
    /// Whether nobody else reads it.
    pub owned: bool,
}

/// See the module.
pub struct Tape {
    /// Gradients of matrices that backward has finished, by parameter.
    pub matrices: Vec<Option<Tensor>>,
    /// Gradients of biases that backward has finished, by parameter.
    pub biases: Vec<Option<Tensor>>,
    program: Arc<Program>,
    /// Weights as the operations see them, by parameter.
    weights: Vec<Tensor>,
    slots: Vec<Option<Tensor>>,
    /// Which pixels max pooling took, by the slot that it wrote.
    indices: Vec<Option<Tensor>>,
    gradients: Vec<Vec<Gradient>>,
    kind: Kind,
    passes: Passes,
}

fn missing(what: &str, slot: Slot) -> TorchError {
    torch_error(format!("{what} of slot {} is missing: the program reads it before it is written", slot.0))
}

fn torch_error(message: String) -> TorchError {
    TorchError::from(tch::TchError::Shape(message))
}

impl Tape {
    /// An empty one over these weights (views, shared by all tapes); activations are of `kind`.
    pub fn new(program: Arc<Program>, weights: Vec<Tensor>, kind: Kind, passes: Passes) -> Self {
        let nothing = |n| (0..n).map(|_| None).collect();
        Self {
            matrices: nothing(program.params.len()),
            biases: nothing(program.params.len()),
            slots: nothing(program.num_slots),
            indices: nothing(program.num_slots),
            gradients: (0..program.num_slots).map(|_| Vec::new()).collect(),
            weights,
            kind,
            passes,
            program,
        }
    }

    /// The program that it runs.
    pub fn program(&self) -> &Arc<Program> {
        &self.program
    }

    /// The type of activations.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Forgets everything, also what a step that was cut short left behind.
    pub fn clear(&mut self) {
        self.slots.iter_mut().for_each(|slot| *slot = None);
        self.indices.iter_mut().for_each(|index| *index = None);
        self.gradients.iter_mut().for_each(Vec::clear);
    }

    /// The value of a slot.
    ///
    /// # Errors
    /// It has none.
    pub fn value(&self, slot: Slot) -> Result<&Tensor, TorchError> {
        self.slots[slot.0].as_ref().ok_or_else(|| missing("the value", slot))
    }

    /// Gives a slot its value.
    pub fn put(&mut self, slot: Slot, value: Tensor) {
        self.slots[slot.0] = Some(value);
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
            Op::Add { a, b, y } => (y, self.join(self.value(*a)?, self.value(*b)?, None)?),
            Op::Act { x, y, act } => (y, self.rectify(self.value(*x)?, *act)?),
            Op::Subsample { x, y, stride, channels } => (y, self.subsample(self.value(*x)?, *stride, *channels)?),
            Op::MaxPool { x, y } => {
                let (side, stride, pad) = MAX_POOL;
                let input = self.value(*x)?;
                let (value, index) = input.f_max_pool2d_with_indices(side, stride, pad, [1, 1], false)?;
                self.indices[y.0] = Some(index);
                (y, value)
            }
            Op::Pool { x, y } => (y, self.pool(self.value(*x)?)?),
            Op::Linear { x, y, w, b } => {
                let w_ki = &self.weights[w.0];
                (y, self.weights[b.0].f_addmm(self.value(*x)?, &w_ki.f_tr()?)?)
            }
            Op::Norm { .. } => return Ok(()),
        };
        self.put(*y, value);
        Ok(())
    }

    /// The gradient of any operation but a norm.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn undo(&mut self, op: &Op) -> Result<(), TorchError> {
        match op {
            Op::Conv { x, y, w, b, stride, pad } => {
                let g = self.merged(*y)?.tensor;
                let input = self.value(*x)?;
                let wanted = (x.0 != 0, b.is_some());
                let out = torch::conv_backward(&g, input, &self.weights[w.0], (*stride, *pad), wanted)?;
                self.matrices[w.0] = Some(out.dw);
                if let Some(b) = b {
                    self.biases[b.0] = out.db;
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
                let out = match self.passes {
                    Passes::Composed => composed::slope_at(self.value(*y)?, &g.tensor, *act)?,
                    Passes::Fused => {
                        let out = if g.owned { g.tensor.shallow_clone() } else { g.tensor.f_empty_like()? };
                        torch::rectify_backward(&g.tensor, self.value(*y)?, &out, *act)?;
                        out
                    }
                };
                self.give(*x, out, true)?;
            }
            Op::Subsample { x, y, stride, .. } => self.undo_subsample((*x, *y), *stride)?,
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
                let input = self.value(*x)?;
                let dx = match self.passes {
                    Passes::Composed => composed::pool_backward(&g, input.size4()?, input.kind())?,
                    Passes::Fused => {
                        let mut dx = input.f_empty_like()?;
                        torch::pool_backward(&g, &mut dx)?;
                        dx
                    }
                };
                self.give(*x, dx, true)?;
            }
            Op::Linear { x, y, w, b } => {
                let g_nk = self.merged(*y)?.tensor;
                let x_ni = self.value(*x)?;
                let dw_ki = g_nk.f_tr()?.f_mm(x_ni)?.f_contiguous()?;
                let dx_ni = g_nk.f_mm(&self.weights[w.0])?;
                let db = g_nk.f_sum_dim_intlist([0i64].as_slice(), false, g_nk.kind())?;
                self.biases[b.0] = Some(db);
                self.matrices[w.0] = Some(dw_ki);
                self.give(*x, dx_ni, true)?;
            }
            Op::Norm { .. } => {}
        }
        Ok(())
    }

    fn undo_subsample(&mut self, (x, y): (Slot, Slot), stride: i64) -> Result<(), TorchError> {
        let g = self.merged(y)?.tensor;
        let shape = self.value(x)?.size4()?;
        if self.passes == Passes::Composed {
            return self.give(x, composed::subsample_backward(&g, shape, stride)?, true);
        }
        match self.gradients[x.0].iter_mut().find(|have| have.owned) {
            Some(have) => torch::subsample_backward(&g, &mut have.tensor, stride),
            None => {
                let (n, c, h, w) = shape;
                let mut dx = channels_last([n, c, h, w], self.kind)?;
                let _ = dx.f_zero_()?;
                torch::subsample_backward(&g, &mut dx, stride)?;
                self.give(x, dx, true)
            }
        }
    }

    fn join(&self, a: &Tensor, b: &Tensor, into: Option<&Tensor>) -> Result<Tensor, TorchError> {
        if self.passes == Passes::Composed {
            return composed::join(a, b);
        }
        let mut out = match into {
            Some(into) => into.shallow_clone(),
            None => a.f_empty_like()?,
        };
        torch::join(a, b, &mut out)?;
        Ok(out)
    }

    fn rectify(&self, x: &Tensor, act: torch::Activation) -> Result<Tensor, TorchError> {
        if self.passes == Passes::Composed {
            return composed::rectify(x, act);
        }
        let mut out = x.f_empty_like()?;
        torch::rectify(x, &mut out, act)?;
        Ok(out)
    }

    fn subsample(&self, x: &Tensor, stride: i64, channels: i64) -> Result<Tensor, TorchError> {
        if self.passes == Passes::Composed {
            return composed::subsample(x, stride, channels);
        }
        let (n, _, h, w) = x.size4()?;
        let up = |size: i64| (size + stride - 1) / stride;
        let mut out = channels_last([n, channels, up(h), up(w)], self.kind)?;
        torch::subsample(x, &mut out, stride)?;
        Ok(out)
    }

    fn pool(&self, x: &Tensor) -> Result<Tensor, TorchError> {
        if self.passes == Passes::Composed {
            return composed::pool(x);
        }
        let (n, c, _, _) = x.size4()?;
        let mut out = Tensor::f_empty([n, c], (composed::compute_kind(x.kind()), Device::Cpu))?;
        torch::pool(x, &mut out)?;
        Ok(out)
    }

    /// The gradients of a slot, an owned one first.
    ///
    /// # Errors
    /// It has none.
    pub fn take(&mut self, slot: Slot) -> Result<Vec<Gradient>, TorchError> {
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
        let tensor = self.join(&first.tensor, &second.tensor, first.owned.then_some(&first.tensor))?;
        Ok(Gradient { tensor, owned: true })
    }

    /// Adds a gradient to a slot's list, which keeps at most two: the gated pass reads both at no extra cost.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn give(&mut self, slot: Slot, tensor: Tensor, owned: bool) -> Result<(), TorchError> {
        if self.gradients[slot.0].len() == 2 {
            let both = self.merged(slot)?;
            self.gradients[slot.0].push(both);
        }
        self.gradients[slot.0].push(Gradient { tensor, owned });
        Ok(())
    }
}

fn channels_last([n, c, h, w]: [i64; 4], kind: Kind) -> Result<Tensor, TorchError> {
    Ok(Tensor::f_empty([n, h, w, c], (kind, Device::Cpu))?.f_permute([0, 3, 1, 2])?)
}
