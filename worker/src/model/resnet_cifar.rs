//! ResNet-(6n+2) for 32×32 images: He et al. 2015, section 4.2, and the variants of its block.
//!
//! conv3×3 to `width`, BN, ReLU · n blocks at width, 2·width (stride 2), 4·width (stride 2) · average pool · linear.

use lockstep_proto::recipe::Model;

use super::blocks::{Block, Net, Place};
use crate::program::Program;

pub(super) fn build(model: &Model, num_classes: i64) -> Program {
    let (mut net, image) = Net::new(model);
    let mut channels = i64::from(model.width);
    let mut x = net.conv("conv1", image, (3, channels), (3, 1));
    x = net.norm_act("bn1", x, channels, Place::Stem);
    for stage in 0..3i64 {
        let to = i64::from(model.width) << stage;
        for block in 0..i64::from(model.n) {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let block = Block { name: format!("layer{}.{block}", stage + 1), channels: (channels, to), stride };
            x = net.basic(&block, x);
            channels = to;
        }
    }
    net.head(x, channels, num_classes)
}

#[cfg(test)]
mod tests {
    use lockstep_proto::recipe::{Activation as Kind, BnOrder, BnPosition, Init as Start, Shortcut};

    use super::*;
    use crate::program::Init;

    fn count(change: impl FnOnce(&mut Model)) -> usize {
        let mut model = Model::default();
        change(&mut model);
        build(&model, 10).num_parameters()
    }

    /// Convolutions, γ and β, classifier; with `conv_bias` a number more a channel.
    #[test]
    fn parameters_are_counted_as_in_the_protocol() {
        let with_bias = |n| count(|m| (m.n, m.conv_bias) = (n, true));
        assert_eq!(with_bias(3), 270_410);
        let without = [3, 5, 7, 9, 18].map(|n| count(|m| m.n = n));
        assert_eq!(without, [269_722, 464_154, 658_586, 853_018, 1_727_962]);
        for (n, without) in [3, 5, 7, 9, 18].into_iter().zip(without) {
            let channels = 16 + 2 * n as usize * (16 + 32 + 64);
            assert_eq!(with_bias(n), without + channels);
        }
        // option B: two projections and their γ, β; option C: one more of 16 and n − 1 more of each later width
        let b = 16 * 32 + 32 * 64 + 2 * (32 + 64);
        assert_eq!(count(|m| m.shortcut = Shortcut::B), 269_722 + b);
        let same = |c: usize| c * c + 2 * c;
        assert_eq!(count(|m| m.shortcut = Shortcut::C), 269_722 + b + 3 * same(16) + 2 * same(32) + 2 * same(64));
    }

    #[test]
    fn where_batch_norm_and_the_activation_stand_changes_no_parameter() {
        let reference = count(|_| ());
        assert_eq!(count(|m| m.bn_position = BnPosition::AfterAdd), reference);
        assert_eq!(count(|m| m.bn_order = BnOrder::AfterActivation), reference);
        assert_eq!(count(|m| m.activation = Kind::LeakyRelu), reference);
    }

    #[test]
    fn gamma_starts_as_the_recipe_says() {
        let gammas = |init, zero_gamma| -> Vec<(String, Init)> {
            let model = Model { n: 1, init, zero_gamma, shortcut: Shortcut::B, ..Model::default() };
            let program = build(&model, 10);
            program.norms.iter().map(|norm| (norm.name.clone(), program.params[norm.gamma.0].init)).collect()
        };
        let near_one = Init::Normal { mean: 1.0, std: 0.002 };
        for (name, init) in gammas(Start::SeedNninit, false) {
            let unit = name == "bn1" || name.ends_with("bn2");
            assert_eq!(init, if unit { Init::Unit } else { near_one }, "{name}");
        }
        assert!(gammas(Start::Seed, false).iter().all(|(_, init)| *init == near_one));
        for (name, init) in gammas(Start::Ours, true) {
            assert_eq!(init, Init::Constant(if name.ends_with("bn2") { 0.0 } else { 1.0 }), "{name}");
        }
    }
}
