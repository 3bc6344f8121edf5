//! Models by name. A model knows nothing of ranks, chunks or devices: it is a [`Program`].

mod blocks;
mod resnet;
mod resnet_cifar;

use lockstep_proto::recipe::{Arch, Model};

use crate::program::Program;

/// The program of a recipe's model, for so many classes.
pub fn build(model: &Model, num_classes: u32) -> Program {
    match model.arch {
        Arch::ResnetCifar => resnet_cifar::build(model, i64::from(num_classes)),
        _ => resnet::build(model, i64::from(num_classes)),
    }
}
