//! What residual networks are made of: blocks, and the variants of their endings.
//!
//! ```text
//! bn_position   final_relu   a block's ending                       bn_order = after_activation
//! before_add    yes          conv – BN – add shortcut – act         the same: an addition stands between BN and act
//! before_add    no           conv – BN – add                        the same
//! after_add     yes          conv – add shortcut – BN – act         conv – add – act – BN
//! after_add     no           conv – add – BN                        the same
//! ```
//! The stem and what comes before an ending are conv – BN – act, or conv – act – BN. Names are torchvision's.

use lockstep_proto::recipe::{Activation as Kind, BnOrder, BnPosition, Init as Start, Model, Shortcut, StrideOn};
use lockstep_torch::Activation;

use crate::program::{Builder, Conv, Ending, Init, Program, Slot};

/// Which BatchNorm, as far as its start depends on it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Stem,
    First,
    /// The last of a block.
    Last,
    Projection,
}

/// A residual block.
pub(super) struct Block {
    /// `layer1.0`
    pub(super) name: String,
    /// Channels that go in and come out.
    pub(super) channels: (i64, i64),
    /// Stride in both directions.
    pub(super) stride: i64,
}

/// A network in the making, every layer as the recipe wants it.
pub(super) struct Net<'a> {
    model: &'a Model,
    builder: Builder,
}

impl<'a> Net<'a> {
    /// An empty one, and its image.
    pub(super) fn new(model: &'a Model) -> (Self, Slot) {
        let (builder, image) = Builder::new();
        (Self { model, builder }, image)
    }

    /// Average pool and classifier: the end.
    pub(super) fn head(self, x: Slot, channels: i64, num_classes: i64) -> Program {
        self.builder.head(x, channels, num_classes)
    }

    pub(super) fn max_pool(&mut self, x: Slot) -> Slot {
        self.builder.max_pool(x)
    }

    fn act(&self) -> Activation {
        match self.model.activation {
            Kind::Relu => Activation::Relu,
            Kind::LeakyRelu => Activation::LeakyRelu(self.model.leaky_slope),
        }
    }

    fn gamma(&self, place: Place) -> Init {
        if self.model.zero_gamma && place == Place::Last {
            return Init::Constant(0.0);
        }
        match (self.model.init, place) {
            (Start::Ours | Start::FanOut, _) => Init::Constant(1.0),
            (Start::SeedNninit, Place::Stem | Place::Last) => Init::Unit,
            (Start::Seed | Start::SeedNninit, _) => Init::Normal { mean: 1.0, std: 0.002 },
        }
    }

    pub(super) fn conv(&mut self, name: &str, x: Slot, channels: (i64, i64), (kernel, stride): (i64, i64)) -> Slot {
        let fan_out = self.model.init == Start::FanOut;
        self.builder.conv(name, x, Conv { channels, kernel, stride, bias: self.model.conv_bias, fan_out })
    }

    fn norm(&mut self, name: &str, x: Slot, channels: i64, place: Place) -> Slot {
        let ending = Ending { add: None, act: Activation::Identity, gamma: self.gamma(place) };
        self.builder.norm(name, x, channels, ending)
    }

    /// BN – act, or act – BN.
    pub(super) fn norm_act(&mut self, name: &str, x: Slot, channels: i64, place: Place) -> Slot {
        let act = self.act();
        match self.model.bn_order {
            BnOrder::BeforeActivation => {
                let ending = Ending { add: None, act, gamma: self.gamma(place) };
                self.builder.norm(name, x, channels, ending)
            }
            BnOrder::AfterActivation => {
                let x = self.builder.act(x, act);
                self.norm(name, x, channels, place)
            }
        }
    }

    /// conv3×3 – BN – act – conv3×3, then an ending.
    pub(super) fn basic(&mut self, block: &Block, x: Slot) -> Slot {
        let (name, to) = (&block.name, block.channels.1);
        let shortcut = self.shortcut(block, x);
        let y = self.conv(&format!("{name}.conv1"), x, block.channels, (3, block.stride));
        let y = self.norm_act(&format!("{name}.bn1"), y, to, Place::First);
        let y = self.conv(&format!("{name}.conv2"), y, (to, to), (3, 1));
        self.ending(&format!("{name}.bn2"), (y, shortcut), to)
    }

    /// conv1×1 – BN – act – conv3×3 – BN – act – conv1×1, then an ending; `inner` channels between.
    pub(super) fn bottleneck(&mut self, block: &Block, x: Slot, inner: i64) -> Slot {
        let Block { name, channels: (from, to), stride } = block;
        let strides = match self.model.stride_on {
            StrideOn::Middle => (1, *stride),
            StrideOn::First => (*stride, 1),
        };
        let shortcut = self.shortcut(block, x);
        let y = self.conv(&format!("{name}.conv1"), x, (*from, inner), (1, strides.0));
        let y = self.norm_act(&format!("{name}.bn1"), y, inner, Place::First);
        let y = self.conv(&format!("{name}.conv2"), y, (inner, inner), (3, strides.1));
        let y = self.norm_act(&format!("{name}.bn2"), y, inner, Place::First);
        let y = self.conv(&format!("{name}.conv3"), y, (inner, *to), (1, 1));
        self.ending(&format!("{name}.bn3"), (y, shortcut), *to)
    }

    /// One of four (`bn_position` × `final_relu`).
    fn ending(&mut self, norm: &str, (y, shortcut): (Slot, Slot), channels: i64) -> Slot {
        match (self.model.bn_position, self.model.final_relu) {
            (BnPosition::BeforeAdd, ends) => {
                let act = if ends { self.act() } else { Activation::Identity };
                let ending = Ending { add: Some(shortcut), act, gamma: self.gamma(Place::Last) };
                self.builder.norm(norm, y, channels, ending)
            }
            (BnPosition::AfterAdd, ends) => {
                let sum = self.builder.add(y, shortcut);
                if ends {
                    self.norm_act(norm, sum, channels, Place::Last)
                } else {
                    self.norm(norm, sum, channels, Place::Last)
                }
            }
        }
    }

    fn shortcut(&mut self, block: &Block, x: Slot) -> Slot {
        let Block { name, channels: (from, to), stride } = block;
        let changes = from != to || *stride != 1;
        match self.model.shortcut {
            Shortcut::A if changes => self.builder.subsample(x, *to, *stride),
            Shortcut::A => x,
            Shortcut::B if !changes => x,
            Shortcut::B | Shortcut::C => {
                let y = self.conv(&format!("{name}.downsample.0"), x, block.channels, (1, *stride));
                self.norm(&format!("{name}.downsample.1"), y, *to, Place::Projection)
            }
        }
    }
}
