//! `[model]`

use serde::{Deserialize, Serialize};

use super::{FrozenBn, Group, Head};

/// `[model]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// Family.
    pub arch: Arch,
    /// `resnet-cifar`: blocks a stage; depth 6n + 2.
    pub n: u32,
    /// Channels of the first stage (He et al.: 16 for CIFAR, 64 for ImageNet: so where it is not set); doubled at each
    /// later stage.
    pub width: u32,
    /// A safetensors file of weights to begin with, under torchvision's names. Empty: from the seed. May lie elsewhere on
    /// resume, when it is needed no more.
    pub weights: String,
    /// `keep`: the classifier is the file's. `replace`: it starts from the seed.
    pub head: Head,
    /// Parts that do not train: `stem`, `layer1` … `layer4`, `head`. No gradient, no weight decay.
    pub freeze: Vec<Group>,
    /// Which statistics BatchNorm has in frozen parts: its `running` ones, which then stay, or the `batch`'s.
    pub frozen_bn: FrozenBn,
    /// What joins blocks whose shapes differ. Not set: A for CIFAR, B for ImageNet.
    pub shortcut: Shortcut,
    /// ImageNet's bottleneck blocks: which convolution of the first block of a stage halves the size.
    pub stride_on: StrideOn,
    /// Where a block's second BatchNorm stands.
    pub bn_position: BnPosition,
    /// Whether a block ends with the activation.
    pub final_relu: bool,
    /// The nonlinearity.
    pub activation: Activation,
    /// `leaky_relu`: slope for negative values.
    pub leaky_slope: f64,
    /// Which comes first where BatchNorm and the activation follow each other.
    pub bn_order: BnOrder,
    /// Whether convolutions have a bias (redundant before BatchNorm; the Torch7 original has them).
    pub conv_bias: bool,
    /// How parameters start.
    pub init: Init,
    /// Start the last γ of each branch at 0, so that a block begins as its shortcut (Goyal et al. 2017).
    pub zero_gamma: bool,
    /// Weight of the new batch in the running statistics: a number in (0, 1], or `"dynamic"`.
    pub bn_momentum: BnMomentum,
    /// Added to the variance.
    pub bn_eps: f64,
    /// Evaluate with statistics averaged over so many training batches with the weights as they are, instead of the
    /// running ones (0: the running ones).
    pub bn_precise: u64,
}

/// `model.arch`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arch {
    /// He et al. 2015, section 4.2.
    #[default]
    ResnetCifar,
    /// He et al. 2015, table 1: two 3×3 convolutions a block.
    Resnet18,
    /// The same, deeper.
    Resnet34,
    /// He et al. 2015, table 1: bottleneck blocks.
    Resnet50,
    /// The same, deeper.
    Resnet101,
    /// The same, deeper still.
    Resnet152,
    /// Zagoruyko and Komodakis 2016, as torchvision builds it: ResNet-50 with bottlenecks twice as wide.
    #[serde(rename = "wide-resnet50-2")]
    WideResnet50x2,
    /// ResNet-101 with bottlenecks twice as wide.
    #[serde(rename = "wide-resnet101-2")]
    WideResnet101x2,
}

impl Arch {
    /// For images of some hundred pixels: stem 7×7, stride 2, and max pooling before the blocks.
    pub fn is_imagenet(self) -> bool {
        self != Self::ResnetCifar
    }
}

/// `model.stride_on`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum StrideOn {
    /// The 3×3 in the middle, as torchvision ("v1.5").
    #[default]
    #[serde(rename = "3x3")]
    Middle,
    /// The first 1×1, as He et al. 2015.
    #[serde(rename = "1x1")]
    First,
}

/// `model.shortcut`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shortcut {
    /// Every second pixel, zero channels appended; no parameters.
    #[default]
    A,
    /// 1×1 projection with BatchNorm where the shape changes.
    B,
    /// Projection everywhere.
    C,
}

/// `model.bn_position`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BnPosition {
    /// conv – BN – add (the reference).
    #[default]
    BeforeAdd,
    /// conv – add – BN.
    AfterAdd,
}

/// `model.activation`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// max(x, 0).
    #[default]
    Relu,
    /// x where x > 0, else `leaky_slope`·x.
    LeakyRelu,
}

/// `model.bn_order`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BnOrder {
    /// conv – BN – activation (the reference).
    #[default]
    BeforeActivation,
    /// conv – activation – BN. Where an addition stands between the two, nothing changes.
    AfterActivation,
}

/// `model.init`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// Convolutions N(0, 2 / fan-in), γ = 1.
    #[default]
    Ours,
    /// As the Torch7 original: γ from N(1, 0.002²).
    Seed,
    /// Convolutions N(0, 2 / fan-out), γ = 1: as torchvision.
    FanOut,
    /// As its `nninit` variant: γ from U(0, 1) in the stem and in each block's second BatchNorm, else N(1, 0.002²).
    SeedNninit,
}

/// `model.bn_momentum`
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a number above 0 and at most 1, or \"dynamic\"")]
pub enum BnMomentum {
    /// The same for every batch.
    Constant(f64),
    /// By a rule.
    Rule(BnRule),
}

/// A rule for `model.bn_momentum`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BnRule {
    /// 1 / (1 + k) for batch k of the epoch, from 0: the running statistics are the plain average over the epoch.
    Dynamic,
}

impl BnMomentum {
    /// The weight of batch `index` of an epoch, from 0.
    pub fn at(self, index: u64) -> f64 {
        match self {
            Self::Constant(weight) => weight,
            Self::Rule(BnRule::Dynamic) => 1.0 / (1.0 + index as f64),
        }
    }
}

impl std::fmt::Display for BnMomentum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Constant(weight) => write!(f, "{weight}"),
            Self::Rule(BnRule::Dynamic) => f.write_str("\"dynamic\""),
        }
    }
}

impl Model {
    /// Layers with weights on the longest way.
    pub fn depth(&self) -> u32 {
        match self.arch {
            Arch::ResnetCifar => 6 * self.n + 2,
            Arch::Resnet18 => 18,
            Arch::Resnet34 => 34,
            Arch::Resnet50 | Arch::WideResnet50x2 => 50,
            Arch::Resnet101 | Arch::WideResnet101x2 => 101,
            Arch::Resnet152 => 152,
        }
    }

    /// As people call it: `ResNet-20`.
    pub fn title(&self) -> String {
        let wide = matches!(self.arch, Arch::WideResnet50x2 | Arch::WideResnet101x2);
        format!("{}ResNet-{}", if wide { "Wide " } else { "" }, self.depth())
    }

    /// Channels of the first stage that papers give the family.
    pub fn usual_width(&self) -> u32 {
        if self.arch.is_imagenet() { 64 } else { 16 }
    }
}

impl Default for Model {
    fn default() -> Self {
        Self {
            arch: Arch::default(),
            n: 3,
            width: 16,
            weights: String::new(),
            head: Head::default(),
            freeze: Vec::new(),
            frozen_bn: FrozenBn::default(),
            shortcut: Shortcut::default(),
            stride_on: StrideOn::default(),
            bn_position: BnPosition::default(),
            final_relu: true,
            activation: Activation::default(),
            leaky_slope: 0.01,
            bn_order: BnOrder::default(),
            conv_bias: false,
            init: Init::default(),
            zero_gamma: false,
            bn_momentum: BnMomentum::Constant(0.1),
            bn_eps: 1e-5,
            bn_precise: 0,
        }
    }
}
