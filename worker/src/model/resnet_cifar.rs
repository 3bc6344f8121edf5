//! ResNet-(6n+2) for 32×32 images: He et al. 2015, section 4.2.
//!
//! conv3×3 to `width`, BN, ReLU · n blocks at width, 2·width (stride 2), 4·width (stride 2) · average pool · linear.

use lockstep_proto::recipe::{BnPosition, Model, Shortcut};

use crate::program::{Builder, Program, Slot};

pub(super) fn build(model: &Model, num_classes: i64) -> Program {
    let (mut b, image) = Builder::new();
    let mut channels = i64::from(model.width);
    let mut x = b.conv("conv1", image, (3, channels), 3, 1);
    x = b.norm("bn1", x, channels, None, true);
    for stage in 0..3i64 {
        let to = i64::from(model.width) << stage;
        for block in 0..i64::from(model.n) {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            x = residual(&mut b, model, &format!("layer{}.{block}", stage + 1), x, (channels, to), stride);
            channels = to;
        }
    }
    b.head(x, channels, num_classes)
}

/// conv – BN – ReLU – conv, then one of four endings (`bn_position` × `final_relu`).
fn residual(b: &mut Builder, model: &Model, name: &str, x: Slot, (from, to): (i64, i64), stride: i64) -> Slot {
    let shortcut = shortcut(b, model, name, x, (from, to), stride);
    let y = b.conv(&format!("{name}.conv1"), x, (from, to), 3, stride);
    let y = b.norm(&format!("{name}.bn1"), y, to, None, true);
    let y = b.conv(&format!("{name}.conv2"), y, (to, to), 3, 1);
    match model.bn_position {
        BnPosition::BeforeAdd => b.norm(&format!("{name}.bn2"), y, to, Some(shortcut), model.final_relu),
        BnPosition::AfterAdd => {
            let sum = b.add(y, shortcut);
            b.norm(&format!("{name}.bn2"), sum, to, None, model.final_relu)
        }
    }
}

fn shortcut(b: &mut Builder, model: &Model, name: &str, x: Slot, (from, to): (i64, i64), stride: i64) -> Slot {
    let changes = from != to || stride != 1;
    match model.shortcut {
        Shortcut::A if changes => b.subsample(x, to, stride),
        Shortcut::A => x,
        Shortcut::B if !changes => x,
        Shortcut::B | Shortcut::C => {
            let y = b.conv(&format!("{name}.downsample.0"), x, (from, to), 1, stride);
            b.norm(&format!("{name}.downsample.1"), y, to, None, false)
        }
    }
}
