//! Where each parameter lies in the flat buffers.

use super::{Op, ParamId, Program};

/// Elements that 256 bytes hold, at least: every tensor starts on such a boundary in any precision.
const ALIGN: usize = 256;

/// A parameter's place, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// First element.
    pub offset: usize,
    /// Number of elements, without padding.
    pub len: usize,
}

/// One contiguous buffer of two regions, matrices and vectors; inside each, parameters stand in the order in which
/// backward finishes them, so that a gradient bucket is a slice. Padding is zero and stays zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlatLayout {
    /// By [`ParamId`].
    pub entries: Vec<Entry>,
    /// Parameters in the order of the buffer.
    pub order: Vec<ParamId>,
    /// Where vectors begin: matrices are `[0, vectors)`.
    pub vectors: usize,
    /// Length of the buffer.
    pub len: usize,
}

impl FlatLayout {
    /// The layout of a program.
    pub fn new(program: &Program) -> Self {
        let finished = program.ops.iter().rev().flat_map(|op| match op {
            Op::Conv { w, b, .. } => std::iter::once(*w).chain(*b).collect(),
            Op::Norm { norm, .. } => vec![program.norms[norm.0].gamma, program.norms[norm.0].beta],
            Op::Linear { w, b, .. } => vec![*w, *b],
            Op::Add { .. } | Op::Act { .. } | Op::Subsample { .. } | Op::MaxPool { .. } | Op::Pool { .. } => Vec::new(),
        });
        let (mut order, vectors): (Vec<_>, Vec<_>) = finished.partition(|id| !program.params[id.0].is_vector());
        let num_matrices = order.len();
        order.extend(vectors);
        let mut entries = vec![Entry { offset: 0, len: 0 }; program.params.len()];
        let (mut at, mut start_of_vectors) = (0, 0);
        for (place, id) in order.iter().enumerate() {
            if place == num_matrices {
                start_of_vectors = at;
            }
            let len = program.params[id.0].numel();
            entries[id.0] = Entry { offset: at, len };
            at += len.next_multiple_of(ALIGN / 4);
        }
        if order.len() == num_matrices {
            start_of_vectors = at;
        }
        Self { entries, order, vectors: start_of_vectors, len: at }
    }
}
