//! This rank's part of one step: which chunks, which positions, and how sums go together.

use std::ops::Range;
use std::sync::Arc;

use lockstep_collective::Layout;
use lockstep_proto::ids::{Rank, SampleRange};
use lockstep_proto::message::StepPlan;
use lockstep_proto::recipe::Reduction;
use lockstep_proto::split;
use lockstep_proto::tree::Tree;

use crate::exec::{LocalTree, Together};

/// Positions of each chunk of a rank in a step; none of a rank that the step does not have.
pub fn positions(plan: &StepPlan, rank: Rank, chunk: u32) -> impl Iterator<Item = SampleRange> {
    let (own, batch) = (split::ranges(&plan.shards).get(rank.0 as usize).cloned().unwrap_or_default(), plan.batch);
    own.map(move |i| split::chunk_positions(batch, chunk, i))
}

/// A shard, and the layout of everybody's.
#[derive(Clone)]
pub struct Shard {
    /// Positions of each of this rank's chunks.
    pub chunks: Vec<SampleRange>,
    /// Sums over ranks.
    pub layout: Arc<Layout>,
    /// Sums over this rank's chunks.
    pub local: LocalTree,
    counts: Vec<u32>,
    num_chunks: u32,
}

impl Shard {
    /// Of this rank in a step; takes over the layout of `last` where nothing changed.
    pub fn new(plan: &StepPlan, rank: Rank, chunk: u32, reduction: Reduction, last: Option<&Shard>) -> Self {
        let num_chunks = split::num_chunks(plan.batch.len, chunk);
        let own: Range<u32> = split::ranges(&plan.shards)[rank.0 as usize].clone();
        let layout = match last {
            Some(last) if last.counts == plan.shards && last.num_chunks == num_chunks => Arc::clone(&last.layout),
            _ => Arc::new(match reduction {
                Reduction::Canonical => Layout::canonical(num_chunks, &plan.shards),
                Reduction::Fast => Layout::by_rank(plan.shards.len() as u32),
            }),
        };
        let local = match reduction {
            Reduction::Canonical => LocalTree { tree: Tree::new(num_chunks), chunks: own.clone() },
            Reduction::Fast => LocalTree { tree: Tree::new(own.len() as u32), chunks: 0..own.len() as u32 },
        };
        let chunks = positions(plan, rank, chunk).collect();
        Self { chunks, layout, local, counts: plan.shards.clone(), num_chunks }
    }

    /// The chunks in `num` parts as equal as may be, fewer where there are fewer chunks; one without chunks where there are
    /// none. `sends` is the number of sums that this rank sends of a bucket.
    pub fn parts(&self, num: u32, sends: usize) -> Vec<Part> {
        let len = self.chunks.len();
        let num = (num as usize).clamp(1, len.max(1));
        let mut at = 0;
        let mut parts = Vec::with_capacity(num);
        for i in 0..num {
            // The larger ones first, so that room is given back once.
            let own = at..at + len / num + usize::from(i < len % num);
            at = own.end;
            let first = self.local.chunks.start;
            let chunks = first + own.start as u32..first + own.end as u32;
            let together =
                Together { local: LocalTree { tree: self.local.tree, chunks }, sends: (i + 1 == num).then_some(sends) };
            parts.push(Part { chunks: self.chunks[own].to_vec(), together });
        }
        parts
    }
}

/// Chunks of a shard that are computed together.
#[derive(Clone, Debug)]
pub struct Part {
    /// Positions of each.
    pub chunks: Vec<SampleRange>,
    /// How their gradients go into the sums of the rank.
    pub together: Together,
}
