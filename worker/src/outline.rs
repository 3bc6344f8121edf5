//! A program's shapes and sizes, worked out without running it.

use lockstep_proto::recipe::{BatchNorm, Group, Train};

use crate::exec::slices;
use crate::program::{FlatLayout, Op, Program, Slot};
use crate::tuning::Tuning;

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

/// What a rank adds to those of the others in a step, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Buckets of the gradient, in the order in which they go; the last one has the vectors.
    pub buckets: Vec<usize>,
    /// Messages of BatchNorm, in f64: one a layer in the forward pass and one in the backward pass, which both wait for it.
    pub norms: Vec<usize>,
}

/// With elements of `size` bytes in the gradient.
pub fn traffic(program: &Program, layout: &FlatLayout, (tuning, train): (&Tuning, &Train), size: usize) -> Traffic {
    let target = (train.bucket_bytes as usize / size).max(1);
    let buckets = slices(program, layout, |id| !tuning.is_frozen(id), target);
    let met = program.norms.iter().enumerate().filter(|(i, _)| !tuning.is_fixed(*i));
    let message = |channels: usize| 2 * channels * size_of::<f64>();
    let norms = if train.batch_norm == BatchNorm::Global {
        met.flat_map(|(_, norm)| [message(norm.channels); 2]).collect()
    } else {
        Vec::new()
    };
    Traffic { buckets: buckets.iter().map(|bucket| bucket.len * size).collect(), norms }
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

    /// docs/scaling.md predicts from these.
    #[test]
    fn the_page_about_scaling_has_the_sizes_of_resnet_50() {
        let recipe = Recipe::from_toml("[model]\narch = \"resnet50\"", "test").unwrap();
        let mut train = recipe.train.clone();
        train.bucket_bytes = 8 << 20;
        let program = model::build(&recipe.model, 1000);
        let layout = FlatLayout::new(&program);
        let tuning = Tuning::new(&recipe, &program, &layout);
        let Traffic { buckets, norms } = traffic(&program, &layout, (&tuning, &train), 4);
        let page = include_str!("../../docs/scaling.md");
        let megabytes = |bytes: usize| format!("{:.1} MB", bytes as f64 / 1e6);
        let (least, most) = (norms.iter().min().unwrap(), norms.iter().max().unwrap());
        let figures = [
            format!("{} parameters", thousands(program.num_parameters())),
            format!("{} in {} buckets", megabytes(buckets.iter().sum()), buckets.len()),
            format!("the first {}", megabytes(buckets[0])),
            format!("the largest {}", megabytes(*buckets.iter().max().unwrap())),
            format!("the last {}", megabytes(buckets[buckets.len() - 1])),
            format!("{} messages of {least} to {most} bytes, {} together", norms.len(), megabytes(norms.iter().sum())),
        ];
        let missing: Vec<&String> = figures.iter().filter(|figure| !page.contains(*figure)).collect();
        assert!(missing.is_empty(), "docs/scaling.md lacks {missing:?}");
        train.batch_norm = BatchNorm::Chunk;
        assert!(super::traffic(&program, &layout, (&tuning, &train), 4).norms.is_empty(), "chunks meet nobody");
    }

    fn thousands(number: usize) -> String {
        let digits = number.to_string();
        let groups = digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap());
        groups.collect::<Vec<_>>().join(",")
    }
}
