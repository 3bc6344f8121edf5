//! A program's shapes and sizes, worked out without running it.

use lockstep_proto::recipe::Group;

use crate::program::{Op, Program, Slot};

/// Shape of each slot for one image, channels first; `[channels, 1, 1]` behind the pool.
pub fn shapes(program: &Program, [height, width, channels]: [usize; 3]) -> Vec<[usize; 3]> {
    let mut shapes = vec![[0; 3]; program.num_slots];
    shapes[0] = [channels, height, width];
    for op in &program.ops {
        let (y, shape) = match op {
            Op::Conv { x, y, w, stride, pad, .. } => {
                let kernel = &program.params[w.0].shape;
                let [_, h, w] = shapes[x.0];
                let out = |size: usize, side: i64| (size as i64 + 2 * pad - side) / stride + 1;
                (y, [kernel[0] as usize, out(h, kernel[2]) as usize, out(w, kernel[3]) as usize])
            }
            Op::Subsample { x, y, stride, channels } => {
                let [_, h, w] = shapes[x.0];
                let stride = *stride as usize;
                (y, [*channels as usize, h.div_ceil(stride), w.div_ceil(stride)])
            }
            Op::MaxPool { x, y } => {
                let [c, h, w] = shapes[x.0];
                (y, [c, h.div_ceil(2), w.div_ceil(2)])
            }
            Op::Pool { x, y } => (y, [shapes[x.0][0], 1, 1]),
            Op::Linear { y, w, .. } => (y, [program.params[w.0].shape[0] as usize, 1, 1]),
            Op::Norm { x, y, .. } | Op::Act { x, y, .. } => (y, shapes[x.0]),
            Op::Add { a, y, .. } => (y, shapes[a.0]),
        };
        shapes[y.0] = shape;
    }
    shapes
}

/// The last value of each part of the network, in order.
pub fn outputs(program: &Program) -> Vec<(&'static str, Slot)> {
    let mut outputs: Vec<(&'static str, Slot)> = Vec::new();
    for op in &program.ops {
        let (param, y) = match op {
            Op::Conv { w, y, .. } | Op::Linear { w, y, .. } => (Some(*w), *y),
            Op::Norm { norm, y, .. } => (Some(program.norms[norm.0].gamma), *y),
            Op::Pool { y, .. } => {
                outputs.push(("pool", *y));
                continue;
            }
            // A shortcut may stand before the first operation of its part that has a parameter.
            Op::Subsample { .. } => continue,
            Op::MaxPool { y, .. } | Op::Act { y, .. } | Op::Add { y, .. } => (None, *y),
        };
        let group = param.and_then(|param| Group::of(&program.params[param.0].name)).map(Group::name);
        match (group, outputs.last_mut()) {
            (Some(group), Some((last, _))) if *last != group => outputs.push((group, y)),
            (Some(group), None) => outputs.push((group, y)),
            (_, Some((_, slot))) => *slot = y,
            (None, None) => {}
        }
    }
    outputs
}

/// Bytes of what backward needs of one image: every value of the forward pass, with elements of `size` bytes.
pub fn value_bytes(program: &Program, image: [usize; 3], size: usize) -> usize {
    let shapes = shapes(program, image);
    let pooled = program.ops.iter().filter_map(|op| match op {
        Op::MaxPool { y, .. } => Some(shapes[y.0].iter().product::<usize>() * size_of::<i64>()),
        _ => None,
    });
    shapes.iter().map(|shape| shape.iter().product::<usize>() * size).sum::<usize>() + pooled.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use lockstep_proto::recipe::Recipe;

    use super::*;
    use crate::model;

    #[test]
    fn shapes_are_those_of_the_papers_table() {
        let recipe = Recipe::from_toml("[model]\narch = \"resnet50\"", "test").unwrap();
        let program = model::build(&recipe.model, 1000);
        let shapes = shapes(&program, [224, 224, 3]);
        let found: Vec<_> = outputs(&program).into_iter().map(|(name, slot)| (name, shapes[slot.0])).collect();
        assert_eq!(
            found,
            [
                ("stem", [64, 56, 56]),
                ("layer1", [256, 56, 56]),
                ("layer2", [512, 28, 28]),
                ("layer3", [1024, 14, 14]),
                ("layer4", [2048, 7, 7]),
                ("pool", [2048, 1, 1]),
                ("head", [1000, 1, 1]),
            ]
        );
        let cifar = model::build(&Recipe::default().model, 10);
        let at = super::shapes(&cifar, [32, 32, 3]);
        assert_eq!(at[outputs(&cifar)[2].1.0], [32, 16, 16]);
    }
}
