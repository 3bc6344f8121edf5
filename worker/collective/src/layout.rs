//! Who holds which chunks, and so who sends which sums.

use std::ops::Range;

use lockstep_proto::ids::Rank;
use lockstep_proto::tree::{Node, Tree};

use crate::element::Element;
use crate::fold::FoldPlan;

/// The tree over the chunks of one batch, and each rank's share of them. Made once a step, used by all its reductions.
#[derive(Clone, Debug)]
pub struct Layout {
    tree: Tree,
    shares: Vec<Range<u32>>,
    nodes: Vec<Vec<Node>>,
    /// Index of each rank's first partial among all, and the number of all.
    firsts: Vec<usize>,
    plan: FoldPlan,
    digest: u64,
    any_order: bool,
}

impl Layout {
    /// The canonical order over `num_chunks` chunks, of which rank r holds the next `counts[r]`.
    ///
    /// # Panics
    /// If the counts do not add up to `num_chunks`, or there are no ranks.
    pub fn canonical(num_chunks: u32, counts: &[u32]) -> Self {
        assert!(!counts.is_empty(), "a layout needs a rank");
        assert_eq!(counts.iter().sum::<u32>(), num_chunks, "shares {counts:?} do not tile {num_chunks} chunks");
        let tree = Tree::new(num_chunks);
        let mut at = 0;
        let shares: Vec<Range<u32>> = counts
            .iter()
            .map(|&count| {
                at += count;
                at - count..at
            })
            .collect();
        let nodes: Vec<Vec<Node>> = shares.iter().map(|share| tree.maximal(share.clone())).collect();
        let mut firsts = vec![0];
        for nodes in &nodes {
            firsts.push(firsts[firsts.len() - 1] + nodes.len());
        }
        let plan = FoldPlan::new(tree, nodes.iter().flatten().copied());
        let digest = counts.iter().fold(fnv(0xcbf2_9ce4_8422_2325, num_chunks), |hash, &count| fnv(hash, count));
        Self { tree, shares, nodes, firsts, plan, digest, any_order: false }
    }

    /// One value a rank, in any order of addition that is the same on all ranks: for `reduction = "fast"`. Over TCP it is a
    /// fixed tree over ranks. A rank without samples gives zeros.
    pub fn by_rank(world: u32) -> Self {
        Self { any_order: true, ..Self::canonical(world, &vec![1; world as usize]) }
    }

    /// Whether a library may add in an order of its own.
    pub fn allows_any_order(&self) -> bool {
        self.any_order
    }

    /// Adds the sums of all ranks, ascending, in tree order into `out`, which is as long as each of them; zeros if there
    /// are none.
    ///
    /// # Panics
    /// If there are fewer sums than all ranks contribute, or one is shorter.
    pub fn fold<T: Element>(&self, partials: &[&[T]], out: &mut [T]) {
        let mut scratch = vec![T::ZERO; self.plan.scratch_len()];
        self.plan.run(|k| partials[k], &mut scratch, out);
    }

    /// The tree.
    pub fn tree(&self) -> Tree {
        self.tree
    }

    /// Number of ranks.
    pub fn world(&self) -> u32 {
        self.shares.len() as u32
    }

    /// Chunks of a rank.
    ///
    /// # Panics
    /// If there is no such rank; so do the others.
    pub fn share(&self, rank: Rank) -> Range<u32> {
        self.shares[rank.0 as usize].clone()
    }

    /// The subtrees whose sums a rank contributes, ascending; none if it has no chunks.
    pub fn nodes(&self, rank: Rank) -> &[Node] {
        &self.nodes[rank.0 as usize]
    }

    /// Number of sums that a rank contributes.
    pub fn num_partials(&self, rank: Rank) -> usize {
        self.nodes(rank).len()
    }

    /// Index of a rank's first sum among those of all ranks; for the number of ranks, the number of all sums.
    pub fn first_partial(&self, rank: usize) -> usize {
        self.firsts[rank]
    }

    pub(crate) fn plan(&self) -> &FoldPlan {
        &self.plan
    }

    /// Equal on ranks with equal layouts.
    pub fn digest(&self) -> u64 {
        self.digest
    }
}

/// One step of FNV-1a over a word.
fn fnv(hash: u64, word: u32) -> u64 {
    word.to_le_bytes().iter().fold(hash, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rank_contributes_the_maximal_subtrees_of_its_share() {
        let layout = Layout::canonical(8, &[3, 0, 5]);
        assert_eq!(layout.share(Rank(2)), 3..8);
        assert_eq!(layout.num_partials(Rank(0)), 2);
        assert_eq!(layout.num_partials(Rank(1)), 0);
        assert_eq!(layout.nodes(Rank(2)), [Node { level: 0, index: 3 }, Node { level: 2, index: 1 }]);
        assert_eq!(layout.first_partial(2), 2);
    }

    #[test]
    fn layouts_differ_in_their_digest() {
        let digest = |counts: &[u32]| Layout::canonical(8, counts).digest();
        assert_ne!(digest(&[4, 4]), digest(&[3, 5]));
        assert_ne!(digest(&[8, 0]), digest(&[8]));
        assert_eq!(digest(&[1, 7]), digest(&[1, 7]));
    }
}
