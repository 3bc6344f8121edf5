//! A model as a program: operations over value slots, with an explicit backward. It knows nothing of ranks, chunks or
//! numbers; [`exec`](crate::exec) runs it.
//!
//! ```text
//! conv ─ norm ─ conv ─ norm(+ shortcut) ─ … ─ pool ─ linear
//! └──segment 0──┘└─segment 1─┘└───── …                    a segment ends where chunks must meet: at a norm's statistics
//! ```

mod builder;
mod layout;
mod plan;

use lockstep_torch::Activation;

pub use builder::{Builder, Conv, Ending};
pub use layout::{Entry, FlatLayout};
pub use plan::Segment;

/// A value of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(pub usize);

/// Index into [`Program::params`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamId(pub usize);

/// Index into [`Program::norms`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NormId(pub usize);

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// N(mean, std²).
    Normal {
        /// Mean.
        mean: f64,
        /// Standard deviation.
        std: f64,
    },
    /// Uniform on ±bound.
    Uniform {
        /// Bound.
        bound: f64,
    },
    /// Uniform on [0, 1).
    Unit,
    /// One value.
    Constant(f64),
}

/// A parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// Stable name, as in torchvision's ResNets: `layer1.0.conv1.weight`.
    pub name: String,
    /// Logical shape: OIHW, `[out, in]` or `[channels]`.
    pub shape: Vec<i64>,
    /// Initial values.
    pub init: Init,
}

impl Param {
    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product::<i64>() as usize
    }

    /// Biases and BatchNorm's γ and β: weight decay, bf16 and LARS treat them differently.
    pub fn is_vector(&self) -> bool {
        self.shape.len() < 2
    }
}

/// A BatchNorm layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Norm {
    /// Prefix of its buffers' names: `layer1.0.bn1`.
    pub name: String,
    /// Its channels.
    pub channels: usize,
    /// γ
    pub gamma: ParamId,
    /// β
    pub beta: ParamId,
}

/// One operation. `x`, `a`, `b`, `add` are read, `y` is written once.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Convolution.
    Conv {
        /// Input.
        x: Slot,
        /// Output.
        y: Slot,
        /// Weight.
        w: ParamId,
        /// Bias, a number a channel.
        b: Option<ParamId>,
        /// Stride in both directions.
        stride: i64,
        /// Zero padding on each side.
        pad: i64,
    },
    /// `act(norm(x) + add)`
    Norm {
        /// Input.
        x: Slot,
        /// Output.
        y: Slot,
        /// Which layer.
        norm: NormId,
        /// Added before the activation.
        add: Option<Slot>,
        /// What stands last.
        act: Activation,
    },
    /// `a + b`
    Add {
        /// Left.
        a: Slot,
        /// Right.
        b: Slot,
        /// Output.
        y: Slot,
    },
    /// `act(x)`, where no norm stands before it.
    Act {
        /// Input.
        x: Slot,
        /// Output.
        y: Slot,
        /// Which.
        act: Activation,
    },
    /// Shortcut A: every `stride`-th pixel, zero channels appended up to `channels`.
    Subsample {
        /// Input.
        x: Slot,
        /// Output.
        y: Slot,
        /// Stride in both directions.
        stride: i64,
        /// Channels of the output.
        channels: i64,
    },
    /// The largest of 3×3, every second pixel, padded by one: half the size.
    MaxPool {
        /// Input.
        x: Slot,
        /// Output.
        y: Slot,
    },
    /// Global average pool: NCHW to NC.
    Pool {
        /// Input.
        x: Slot,
        /// Output.
        y: Slot,
    },
    /// `x wᵀ + b`
    Linear {
        /// Input.
        x: Slot,
        /// Output.
        y: Slot,
        /// Weight, `[out, in]`.
        w: ParamId,
        /// Bias.
        b: ParamId,
    },
}

/// A model.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// Parameters, in the order of the forward pass.
    pub params: Vec<Param>,
    /// BatchNorm layers, in the order of the forward pass.
    pub norms: Vec<Norm>,
    /// Operations, in the order of the forward pass.
    pub ops: Vec<Op>,
    /// Number of slots. Slot 0 is the image, NCHW.
    pub num_slots: usize,
    /// Logits, `[n, classes]`.
    pub logits: Slot,
    /// Number of classes.
    pub num_classes: usize,
}

impl Program {
    /// Number of trained numbers.
    pub fn num_parameters(&self) -> usize {
        self.params.iter().map(Param::numel).sum()
    }

    /// How many image pixels apart two neighbours of `slot` are: the product of strides on the way to it.
    pub fn stride_of(&self, slot: Slot) -> i64 {
        let made = self.ops.iter().find_map(|op| match op {
            Op::Conv { x, y, stride, .. } | Op::Subsample { x, y, stride, .. } if *y == slot => Some((*x, *stride)),
            Op::MaxPool { x, y } if *y == slot => Some((*x, 2)),
            Op::Norm { x, y, .. } | Op::Act { x, y, .. } | Op::Pool { x, y } | Op::Linear { x, y, .. }
                if *y == slot =>
            {
                Some((*x, 1))
            }
            Op::Add { a, y, .. } if *y == slot => Some((*a, 1)),
            _ => None,
        });
        made.map_or(1, |(from, stride)| stride * self.stride_of(from))
    }
}
