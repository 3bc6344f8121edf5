//! Cutting a program where chunks must meet.

use std::ops::Range;

use super::{NormId, Op, Program};

/// A stretch of operations that a chunk runs without hearing of the others.
///
/// Forward: apply `enters`, run `ops`, take the statistics of `meets`. Backward: the input's gradient of `meets`, `ops`
/// in reverse, the gated gradient sums of `enters`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Index of the norm operation that it begins with, if any.
    pub enters: Option<usize>,
    /// The operations in between; no norm among them.
    pub ops: Range<usize>,
    /// Index of the norm operation whose statistics end it; none in the last segment.
    pub meets: Option<usize>,
}

impl Program {
    /// The segments, in the order of the forward pass.
    pub fn segments(&self) -> Vec<Segment> {
        let mut segments = Vec::new();
        let (mut enters, mut start) = (None, 0);
        for (i, op) in self.ops.iter().enumerate() {
            if matches!(op, Op::Norm { .. }) {
                segments.push(Segment { enters, ops: start..i, meets: Some(i) });
                (enters, start) = (Some(i), i + 1);
            }
        }
        segments.push(Segment { enters, ops: start..self.ops.len(), meets: None });
        segments
    }

    /// The layer of the norm operation at `op`; `None` for any other operation.
    pub fn norm_at(&self, op: usize) -> Option<NormId> {
        match self.ops.get(op) {
            Some(Op::Norm { norm, .. }) => Some(*norm),
            _ => None,
        }
    }
}
