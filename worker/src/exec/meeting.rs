//! Where chunks meet: the sums of a norm layer over the samples that `batch_norm` names.

use std::sync::Arc;

use lockstep_collective::{Collective, CollectiveError, Lane, Layout, Op};
use lockstep_proto::ids::Step;
use lockstep_proto::tree::Tree;

/// Whose sums are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All chunks of all ranks.
    Global,
    /// All chunks of this rank.
    Rank,
    /// Each chunk for itself: nothing is added.
    Chunk,
}

/// Adds messages of one step.
pub struct Meeting {
    /// Whose sums.
    pub scope: Scope,
    /// Who adds over ranks.
    pub collective: Arc<dyn Collective>,
    /// Chunks of all ranks, or one share a rank with the fast order.
    pub layout: Arc<Layout>,
    /// Chunks of this rank, in the tree of the layout; with the fast order the tree of its own chunks.
    pub local: LocalTree,
    /// For the names of operations.
    pub step: Step,
}

/// How a rank adds its own chunks before it speaks to anyone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalTree {
    /// The tree that its chunks are leaves of.
    pub tree: Tree,
    /// Its chunks.
    pub chunks: std::ops::Range<u32>,
}

impl LocalTree {
    /// Sums vectors, one a chunk, into one a maximal node.
    pub fn fold<T: Copy + std::ops::AddAssign>(&self, messages: Vec<Vec<T>>) -> Vec<Vec<T>> {
        let add = |left: &mut Vec<T>, right: Vec<T>| {
            for (l, r) in left.iter_mut().zip(right) {
                *l += r;
            }
        };
        self.tree.fold_chunks(self.chunks.clone(), messages, add).into_iter().map(|(_, sum)| sum).collect()
    }

    /// Sums vectors, one a chunk, into one. Zeros where there are no chunks.
    pub fn total(&self, messages: Vec<Vec<f64>>, len: usize) -> Vec<f64> {
        let own = Tree::new(self.chunks.len() as u32);
        let all = LocalTree { tree: own, chunks: 0..own.num_chunks() };
        all.fold(messages).pop().unwrap_or_else(|| vec![0.0; len])
    }
}

impl Meeting {
    /// Names an operation of this step.
    pub fn op(&self, name: &'static str, index: usize) -> Op {
        Op { lane: Lane::Norm, step: self.step, name, index: index as u32 }
    }

    /// The sum over the scope of `messages`, one a chunk of this rank, each `len` long. Not for [`Scope::Chunk`].
    ///
    /// # Errors
    /// A collective that failed.
    pub fn add(&self, op: Op, messages: Vec<Vec<f64>>, len: usize) -> Result<Vec<f64>, CollectiveError> {
        match self.scope {
            Scope::Global => self.over_ranks(op, messages, len),
            Scope::Rank | Scope::Chunk => Ok(self.local.total(messages, len)),
        }
    }

    /// The sum over all chunks of all ranks, whatever the scope.
    ///
    /// # Errors
    /// A collective that failed.
    pub fn over_ranks(&self, op: Op, messages: Vec<Vec<f64>>, len: usize) -> Result<Vec<f64>, CollectiveError> {
        let mut partials = self.local.fold(messages);
        // With the fast order every rank is one leaf, so a rank without chunks gives a leaf of zeros.
        partials.resize_with(self.layout.num_partials(self.collective.rank()), || vec![0.0; len]);
        let refs: Vec<&[f64]> = partials.iter().map(Vec::as_slice).collect();
        let mut out = vec![0.0; len];
        self.collective.reduce_f64(&op, &self.layout, &refs, &mut out)?;
        Ok(out)
    }
}
