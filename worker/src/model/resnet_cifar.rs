//! ResNet-(6n+2) for 32×32 images: He et al. 2015, section 4.2, and the variants of its block.
//!
//! conv3×3 to `width`, BN, ReLU · n blocks at width, 2·width (stride 2), 4·width (stride 2) · average pool · linear.
//!
//! ```text
//! bn_position   final_relu   a block's ending                       bn_order = after_activation
//! before_add    yes          conv – BN – add shortcut – act         the same: an addition stands between BN and act
//! before_add    no           conv – BN – add                        the same
//! after_add     yes          conv – add shortcut – BN – act         conv – add – act – BN
//! after_add     no           conv – add – BN                        the same
//! ```
//! The stem and a block's first half are conv – BN – act, or conv – act – BN.

use lockstep_proto::recipe::{Activation as Kind, BnOrder, BnPosition, Init as Start, Model, Shortcut};
use lockstep_torch::Activation;

use crate::program::{Builder, Conv, Ending, Init, Program, Slot};

pub(super) fn build(model: &Model, num_classes: i64) -> Program {
    let (builder, image) = Builder::new();
    let mut net = Net { model, builder };
    let mut channels = i64::from(model.width);
    let mut x = net.conv("conv1", image, (3, channels), (3, 1));
    x = net.norm_act("bn1", x, channels, Place::Stem);
    for stage in 0..3i64 {
        let to = i64::from(model.width) << stage;
        for block in 0..i64::from(model.n) {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let block = Block { name: format!("layer{}.{block}", stage + 1), channels: (channels, to), stride };
            x = net.residual(&block, x);
            channels = to;
        }
    }
    net.builder.head(x, channels, num_classes)
}

/// Which BatchNorm, as far as its start depends on it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Stem,
    First,
    Second,
    Projection,
}

struct Block {
    name: String,
    channels: (i64, i64),
    stride: i64,
}

/// A network in the making, every layer as the recipe wants it.
struct Net<'a> {
    model: &'a Model,
    builder: Builder,
}

impl Net<'_> {
    fn act(&self) -> Activation {
        match self.model.activation {
            Kind::Relu => Activation::Relu,
            Kind::LeakyRelu => Activation::LeakyRelu(self.model.leaky_slope),
        }
    }

    fn gamma(&self, place: Place) -> Init {
        if self.model.zero_gamma && place == Place::Second {
            return Init::Constant(0.0);
        }
        match (self.model.init, place) {
            (Start::Ours, _) => Init::Constant(1.0),
            (Start::SeedNninit, Place::Stem | Place::Second) => Init::Unit,
            (Start::Seed | Start::SeedNninit, _) => Init::Normal { mean: 1.0, std: 0.002 },
        }
    }

    fn conv(&mut self, name: &str, x: Slot, channels: (i64, i64), (kernel, stride): (i64, i64)) -> Slot {
        self.builder.conv(name, x, Conv { channels, kernel, stride, bias: self.model.conv_bias })
    }

    fn norm(&mut self, name: &str, x: Slot, channels: i64, place: Place) -> Slot {
        let ending = Ending { add: None, act: Activation::Identity, gamma: self.gamma(place) };
        self.builder.norm(name, x, channels, ending)
    }

    /// BN – act, or act – BN.
    fn norm_act(&mut self, name: &str, x: Slot, channels: i64, place: Place) -> Slot {
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

    /// conv – BN – act – conv, then one of four endings (`bn_position` × `final_relu`).
    fn residual(&mut self, block: &Block, x: Slot) -> Slot {
        let (name, to) = (&block.name, block.channels.1);
        let shortcut = self.shortcut(block, x);
        let y = self.conv(&format!("{name}.conv1"), x, block.channels, (3, block.stride));
        let y = self.norm_act(&format!("{name}.bn1"), y, to, Place::First);
        let y = self.conv(&format!("{name}.conv2"), y, (to, to), (3, 1));
        let bn2 = format!("{name}.bn2");
        match (self.model.bn_position, self.model.final_relu) {
            (BnPosition::BeforeAdd, ends) => {
                let act = if ends { self.act() } else { Activation::Identity };
                let ending = Ending { add: Some(shortcut), act, gamma: self.gamma(Place::Second) };
                self.builder.norm(&bn2, y, to, ending)
            }
            (BnPosition::AfterAdd, ends) => {
                let sum = self.builder.add(y, shortcut);
                if ends { self.norm_act(&bn2, sum, to, Place::Second) } else { self.norm(&bn2, sum, to, Place::Second) }
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

#[cfg(test)]
mod tests {
    use super::*;

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
