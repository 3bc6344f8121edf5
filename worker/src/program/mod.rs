//! A model as a program: operations over value slots, with an explicit backward. It knows nothing of ranks, chunks or
//! numbers; [`exec`](crate::exec) runs it.
//!
//! ```text
//! conv ─ norm ─ conv ─ norm(+ shortcut) ─ … ─ pool ─ linear
//! └──segment 0──┘└─segment 1─┘└───── …                    a segment ends where chunks must meet: at a norm's statistics
//! ```

mod layout;
mod plan;

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
    /// N(0, std²).
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Uniform on ±bound.
    Uniform {
        /// Bound.
        bound: f64,
    },
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
    /// Convolution without bias.
    Conv {
        /// Input.
        x: Slot,
        /// Output.
        y: Slot,
        /// Weight.
        w: ParamId,
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
        /// Whether the activation is ReLU (else none).
        relu: bool,
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
            Op::Norm { x, y, .. } | Op::Pool { x, y } | Op::Linear { x, y, .. } if *y == slot => Some((*x, 1)),
            Op::Add { a, y, .. } if *y == slot => Some((*a, 1)),
            _ => None,
        });
        made.map_or(1, |(from, stride)| stride * self.stride_of(from))
    }
}

/// Shape of a convolution: padded so that stride 1 keeps the size.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    /// Channels in and out.
    pub channels: (i64, i64),
    /// Side of the square kernel, odd.
    pub kernel: i64,
    /// Stride in both directions.
    pub stride: i64,
}

/// Builds a program operation by operation; the methods return the slot that they fill.
#[derive(Debug, Default)]
pub struct Builder {
    params: Vec<Param>,
    norms: Vec<Norm>,
    ops: Vec<Op>,
    num_slots: usize,
}

impl Builder {
    /// An empty program whose image is the returned slot.
    pub fn new() -> (Self, Slot) {
        (Self { num_slots: 1, ..Self::default() }, Slot(0))
    }

    fn slot(&mut self) -> Slot {
        self.num_slots += 1;
        Slot(self.num_slots - 1)
    }

    fn param(&mut self, name: String, shape: &[i64], init: Init) -> ParamId {
        self.params.push(Param { name, shape: shape.to_vec(), init });
        ParamId(self.params.len() - 1)
    }

    /// Square convolution, He initialisation over fan-in (He et al. 2015, "Delving Deep", eq. 10).
    pub fn conv(&mut self, name: &str, x: Slot, conv: Conv) -> Slot {
        let Conv { channels: (from, to), kernel, stride } = conv;
        let std = (2.0 / (kernel * kernel * from) as f64).sqrt();
        let w = self.param(format!("{name}.weight"), &[to, from, kernel, kernel], Init::Normal { std });
        let y = self.slot();
        self.ops.push(Op::Conv { x, y, w, stride, pad: kernel / 2 });
        y
    }

    /// BatchNorm, then an addition, then ReLU, the latter two if asked for.
    pub fn norm(&mut self, name: &str, x: Slot, channels: i64, (add, relu): (Option<Slot>, bool)) -> Slot {
        let gamma = self.param(format!("{name}.weight"), &[channels], Init::Constant(1.0));
        let beta = self.param(format!("{name}.bias"), &[channels], Init::Constant(0.0));
        self.norms.push(Norm { name: name.to_owned(), channels: channels as usize, gamma, beta });
        let y = self.slot();
        self.ops.push(Op::Norm { x, y, norm: NormId(self.norms.len() - 1), add, relu });
        y
    }

    /// Plain addition.
    pub fn add(&mut self, a: Slot, b: Slot) -> Slot {
        let y = self.slot();
        self.ops.push(Op::Add { a, b, y });
        y
    }

    /// Shortcut A.
    pub fn subsample(&mut self, x: Slot, channels: i64, stride: i64) -> Slot {
        let y = self.slot();
        self.ops.push(Op::Subsample { x, y, stride, channels });
        y
    }

    /// Global average pool, then the linear classifier; ends the program.
    pub fn head(mut self, x: Slot, channels: i64, num_classes: i64) -> Program {
        let pooled = self.slot();
        self.ops.push(Op::Pool { x, y: pooled });
        let bound = 1.0 / (channels as f64).sqrt();
        let w = self.param("fc.weight".into(), &[num_classes, channels], Init::Uniform { bound });
        let b = self.param("fc.bias".into(), &[num_classes], Init::Uniform { bound });
        let logits = self.slot();
        self.ops.push(Op::Linear { x: pooled, y: logits, w, b });
        Program {
            params: self.params,
            norms: self.norms,
            ops: self.ops,
            num_slots: self.num_slots,
            logits,
            num_classes: num_classes as usize,
        }
    }
}
