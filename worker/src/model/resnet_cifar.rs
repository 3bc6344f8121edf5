//! ResNet-(6n+2) for 32×32 images: He et al. 2015, section 4.2.
//!
//! conv3×3 to `width`, BN, ReLU · n blocks at width, 2·width (stride 2), 4·width (stride 2) · average pool · linear.

use lockstep_proto::recipe::{BnPosition, Model, Shortcut};

use crate::program::{Builder, Conv, Program, Slot};

pub(super) fn build(model: &Model, num_classes: i64) -> Program {
    let (mut b, image) = Builder::new();
    let mut channels = i64::from(model.width);
    let mut x = b.conv("conv1", image, Conv { channels: (3, channels), kernel: 3, stride: 1 });
    x = b.norm("bn1", x, channels, (None, true));
    for stage in 0..3i64 {
        let to = i64::from(model.width) << stage;
        for block in 0..i64::from(model.n) {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let block = Block { model, name: format!("layer{}.{block}", stage + 1), channels: (channels, to), stride };
            x = block.residual(&mut b, x);
            channels = to;
        }
    }
    b.head(x, channels, num_classes)
}

struct Block<'a> {
    model: &'a Model,
    name: String,
    channels: (i64, i64),
    stride: i64,
}

impl Block<'_> {
    /// conv – BN – ReLU – conv, then one of four endings (`bn_position` × `final_relu`).
    fn residual(&self, b: &mut Builder, x: Slot) -> Slot {
        let (name, to, final_relu) = (&self.name, self.channels.1, self.model.final_relu);
        let shortcut = self.shortcut(b, x);
        let first = Conv { channels: self.channels, kernel: 3, stride: self.stride };
        let y = b.conv(&format!("{name}.conv1"), x, first);
        let y = b.norm(&format!("{name}.bn1"), y, to, (None, true));
        let y = b.conv(&format!("{name}.conv2"), y, Conv { channels: (to, to), kernel: 3, stride: 1 });
        let bn2 = format!("{name}.bn2");
        match self.model.bn_position {
            BnPosition::BeforeAdd => b.norm(&bn2, y, to, (Some(shortcut), final_relu)),
            BnPosition::AfterAdd => {
                let sum = b.add(y, shortcut);
                b.norm(&bn2, sum, to, (None, final_relu))
            }
        }
    }

    fn shortcut(&self, b: &mut Builder, x: Slot) -> Slot {
        let (from, to) = self.channels;
        let changes = from != to || self.stride != 1;
        match self.model.shortcut {
            Shortcut::A if changes => b.subsample(x, to, self.stride),
            Shortcut::A => x,
            Shortcut::B if !changes => x,
            Shortcut::B | Shortcut::C => {
                let projection = Conv { channels: self.channels, kernel: 1, stride: self.stride };
                let y = b.conv(&format!("{}.downsample.0", self.name), x, projection);
                b.norm(&format!("{}.downsample.1", self.name), y, to, (None, false))
            }
        }
    }
}
