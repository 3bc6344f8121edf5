//! Fine-tuning: parts of a network by name, and what may differ between them.

use serde::{Deserialize, Serialize};

use super::{Arch, Model};

/// A part of a network, as `model.freeze` and `optim.lr_scale` name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// Everything before the first block: `conv1`, `bn1`.
    Stem,
    /// First stage of blocks.
    Layer1,
    /// Second stage.
    Layer2,
    /// Third stage; `resnet-cifar` has no other.
    Layer3,
    /// Fourth stage.
    Layer4,
    /// The classifier: `fc`.
    Head,
}

impl Group {
    /// All, from the image to the logits.
    pub const ALL: [Self; 6] = [Self::Stem, Self::Layer1, Self::Layer2, Self::Layer3, Self::Layer4, Self::Head];

    /// The group of a tensor by its name, `layer1.0.conv1.weight`.
    pub fn of(tensor: &str) -> Option<Self> {
        Some(match tensor.split('.').next()? {
            "conv1" | "bn1" => Self::Stem,
            "layer1" => Self::Layer1,
            "layer2" => Self::Layer2,
            "layer3" => Self::Layer3,
            "layer4" => Self::Layer4,
            "fc" => Self::Head,
            _ => return None,
        })
    }

    /// As recipes write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stem => "stem",
            Self::Layer1 => "layer1",
            Self::Layer2 => "layer2",
            Self::Layer3 => "layer3",
            Self::Layer4 => "layer4",
            Self::Head => "head",
        }
    }
}

impl Model {
    /// The parts that it has.
    pub fn groups(&self) -> Vec<Group> {
        let has = |group: &Group| *group != Group::Layer4 || self.arch != Arch::ResnetCifar;
        Group::ALL.into_iter().filter(has).collect()
    }
}

/// `model.head`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Head {
    /// The file's; one of another number of classes is an error.
    #[default]
    Keep,
    /// From the seed, whatever the file has: for other classes.
    Replace,
}

/// `model.frozen_bn`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FrozenBn {
    /// Its running statistics, which stay: a frozen part is a fixed function.
    #[default]
    Running,
    /// Those of the batch, and the running ones follow: as PyTorch does where only `requires_grad` is off.
    Batch,
}

/// `[optim.lr_scale]`: multiplies the learning rate of a part.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LrScale {
    /// `conv1`, `bn1`.
    pub stem: f64,
    /// First stage of blocks.
    pub layer1: f64,
    /// Second stage.
    pub layer2: f64,
    /// Third stage.
    pub layer3: f64,
    /// Fourth stage.
    pub layer4: f64,
    /// The classifier.
    pub head: f64,
}

impl LrScale {
    /// That of a part.
    pub fn of(&self, group: Group) -> f64 {
        match group {
            Group::Stem => self.stem,
            Group::Layer1 => self.layer1,
            Group::Layer2 => self.layer2,
            Group::Layer3 => self.layer3,
            Group::Layer4 => self.layer4,
            Group::Head => self.head,
        }
    }
}

impl Default for LrScale {
    fn default() -> Self {
        Self { stem: 1.0, layer1: 1.0, layer2: 1.0, layer3: 1.0, layer4: 1.0, head: 1.0 }
    }
}
