//! Builds a program, operation by operation.

use lockstep_torch::Activation;

use super::{Init, Norm, NormId, Op, Param, ParamId, Program, Slot};

/// Shape of a convolution: padded so that stride 1 keeps the size.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    /// Channels in and out.
    pub channels: (i64, i64),
    /// Side of the square kernel, odd.
    pub kernel: i64,
    /// Stride in both directions.
    pub stride: i64,
    /// Whether it has a bias.
    pub bias: bool,
    /// Whether it starts by its fan-out rather than by its fan-in.
    pub fan_out: bool,
}

/// What follows a norm layer, and how its γ starts.
#[derive(Clone, Copy, Debug)]
pub struct Ending {
    /// Added to what the layer gives.
    pub add: Option<Slot>,
    /// Stands last.
    pub act: Activation,
    /// Start of γ; β starts at 0.
    pub gamma: Init,
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

    /// Square convolution, He initialisation (He et al. 2015, "Delving Deep", eq. 10 over fan-in, eq. 14 over fan-out); a
    /// bias starts at 0.
    pub fn conv(&mut self, name: &str, x: Slot, conv: Conv) -> Slot {
        let Conv { channels: (from, to), kernel, stride, bias, fan_out } = conv;
        let fan = kernel * kernel * if fan_out { to } else { from };
        let std = (2.0 / fan as f64).sqrt();
        let w = self.param(format!("{name}.weight"), &[to, from, kernel, kernel], Init::Normal { mean: 0.0, std });
        let b = bias.then(|| self.param(format!("{name}.bias"), &[to], Init::Constant(0.0)));
        let y = self.slot();
        self.ops.push(Op::Conv { x, y, w, b, stride, pad: kernel / 2 });
        y
    }

    /// BatchNorm and what follows it in the same pass over memory.
    pub fn norm(&mut self, name: &str, x: Slot, channels: i64, ending: Ending) -> Slot {
        let Ending { add, act, gamma } = ending;
        let gamma = self.param(format!("{name}.weight"), &[channels], gamma);
        let beta = self.param(format!("{name}.bias"), &[channels], Init::Constant(0.0));
        self.norms.push(Norm { name: name.to_owned(), channels: channels as usize, gamma, beta });
        let y = self.slot();
        self.ops.push(Op::Norm { x, y, norm: NormId(self.norms.len() - 1), add, act });
        y
    }

    /// An activation on its own.
    pub fn act(&mut self, x: Slot, act: Activation) -> Slot {
        let y = self.slot();
        self.ops.push(Op::Act { x, y, act });
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

    /// Max pooling as in ImageNet's stems.
    pub fn max_pool(&mut self, x: Slot) -> Slot {
        let y = self.slot();
        self.ops.push(Op::MaxPool { x, y });
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
