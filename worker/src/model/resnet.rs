//! ResNets for images of some hundred pixels: He et al. 2015, table 1.
//!
//! conv7×7 to `width`, stride 2, BN, ReLU · max pool 3×3, stride 2 · four stages of blocks at width, 2·width, 4·width,
//! 8·width, all but the first of stride 2 · average pool · linear. Bottlenecks have four times as many channels outside.

use lockstep_proto::recipe::{Arch, Model};

use super::blocks::{Block, Net, Place};
use crate::program::Program;

/// How a family builds its stages.
struct Family {
    blocks: [i64; 4],
    /// `None`: two 3×3. Else channels between, over those of the stage.
    bottleneck: Option<i64>,
}

/// More channels outside a bottleneck than the stage's width.
const EXPANSION: i64 = 4;

fn family(arch: Arch) -> Family {
    let of = |blocks, bottleneck| Family { blocks, bottleneck };
    match arch {
        Arch::ResnetCifar | Arch::Resnet18 => of([2, 2, 2, 2], None),
        Arch::Resnet34 => of([3, 4, 6, 3], None),
        Arch::Resnet50 => of([3, 4, 6, 3], Some(1)),
        Arch::Resnet101 => of([3, 4, 23, 3], Some(1)),
        Arch::Resnet152 => of([3, 8, 36, 3], Some(1)),
        Arch::WideResnet50x2 => of([3, 4, 6, 3], Some(2)),
        Arch::WideResnet101x2 => of([3, 4, 23, 3], Some(2)),
    }
}

pub(super) fn build(model: &Model, num_classes: i64) -> Program {
    let Family { blocks, bottleneck } = family(model.arch);
    let width = i64::from(model.width);
    let (mut net, image) = Net::new(model);
    let x = net.conv("conv1", image, (3, width), (7, 2));
    let x = net.norm_act("bn1", x, width, Place::Stem);
    let (mut x, mut channels) = (net.max_pool(x), width);
    for (stage, num_blocks) in (0..).zip(blocks) {
        let of_stage = width << stage;
        let to = of_stage * if bottleneck.is_some() { EXPANSION } else { 1 };
        for block in 0..num_blocks {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let block = Block { name: format!("layer{}.{block}", stage + 1), channels: (channels, to), stride };
            x = match bottleneck {
                None => net.basic(&block, x),
                Some(factor) => net.bottleneck(&block, x, factor * of_stage),
            };
            channels = to;
        }
    }
    net.head(x, channels, num_classes)
}

#[cfg(test)]
mod tests {
    use lockstep_proto::recipe::{Recipe, Shortcut};

    use super::*;

    fn model(arch: &str) -> Model {
        Recipe::from_toml(&format!("[model]\narch = \"{arch}\"\n"), "test").unwrap().model
    }

    /// The counts that torchvision gives for 1000 classes.
    #[test]
    fn parameters_are_as_many_as_torchvisions() {
        for (arch, count) in [
            ("resnet18", 11_689_512),
            ("resnet34", 21_797_672),
            ("resnet50", 25_557_032),
            ("resnet101", 44_549_160),
            ("resnet152", 60_192_808),
            ("wide-resnet50-2", 68_883_240),
            ("wide-resnet101-2", 126_886_696),
        ] {
            assert_eq!(build(&model(arch), 1000).num_parameters(), count, "{arch}");
        }
    }

    #[test]
    fn names_are_torchvisions() {
        let program = build(&model("resnet50"), 1000);
        let has =
            |name: &str, shape: &[i64]| program.params.iter().any(|param| param.name == name && param.shape == shape);
        assert!(has("conv1.weight", &[64, 3, 7, 7]) && has("layer1.0.downsample.0.weight", &[256, 64, 1, 1]));
        assert!(has("layer4.2.conv3.weight", &[2048, 512, 1, 1]) && has("fc.weight", &[1000, 2048]));
        assert!(program.norms.iter().any(|norm| norm.name == "layer2.0.downsample.1" && norm.channels == 512));
        assert_eq!(program.stride_of(program.logits), 32);
    }

    #[test]
    fn imagenet_is_64_wide_with_projections_unless_the_recipe_says_otherwise() {
        let own = "[model]\narch = \"resnet18\"\nwidth = 16\nshortcut = \"A\"\n";
        let own = Recipe::from_toml(own, "test").unwrap().model;
        assert_eq!((own.width, own.shortcut), (16, Shortcut::A));
        let usual = model("resnet18");
        assert_eq!((usual.width, usual.shortcut), (64, Shortcut::B));
        assert!(build(&own, 10).num_parameters() < build(&usual, 10).num_parameters() / 15);
    }
}
