//! The canonical order of addition: a fixed binary tree over the chunks of one global batch.
//!
//! ```text
//! level 2            (2,0)               chunks 0..6 (clipped: there are only six)
//! level 1      (1,0)       (1,1)   (1,2)
//! level 0     0     1     2     3     4     5
//! ```
//! Node `(level, index)` covers chunks `[index·2^level, (index+1)·2^level)`, clipped to the number of chunks.
//! Its value is `left + right`, or `left` alone where the right child is empty. Whoever holds which chunks, the root
//! is the same sequence of additions, and so the same bits.

use std::ops::Range;

/// One complete subtree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node {
    /// Height above the chunks; 0 is a single chunk.
    pub level: u32,
    /// Which of its level, from 0.
    pub index: u32,
}

impl Node {
    /// The first chunk below it.
    pub fn first_chunk(self) -> u32 {
        self.index << self.level
    }
}

/// The tree over a number of chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tree {
    num_chunks: u32,
}

impl Tree {
    /// A tree over `num_chunks` leaves; zero is allowed and has no root.
    pub fn new(num_chunks: u32) -> Self {
        Self { num_chunks }
    }

    /// Number of leaves.
    pub fn num_chunks(self) -> u32 {
        self.num_chunks
    }

    /// Level of the root: the least with `2^level ≥ num_chunks`.
    pub fn root_level(self) -> u32 {
        self.num_chunks.next_power_of_two().trailing_zeros()
    }

    /// Chunks below `node`, clipped.
    pub fn leaves(self, node: Node) -> Range<u32> {
        let first = u64::from(node.index) << node.level;
        let end = (u64::from(node.index) + 1) << node.level;
        let clip = |x: u64| x.min(u64::from(self.num_chunks)) as u32;
        clip(first)..clip(end)
    }

    /// The fewest subtrees that tile `chunks`, ascending: what a rank adds on its own before it speaks to anyone.
    /// A block clipped by the end of the batch counts as complete.
    pub fn maximal(self, chunks: Range<u32>) -> Vec<Node> {
        let mut nodes = Vec::new();
        let mut at = chunks.start;
        while at < chunks.end {
            let mut node = Node { level: 0, index: at };
            loop {
                let up = Node { level: node.level + 1, index: node.index >> 1 };
                let leaves = self.leaves(up);
                if node.level >= self.root_level() || leaves.start != at || leaves.end > chunks.end {
                    break;
                }
                node = up;
            }
            at = self.leaves(node).end;
            nodes.push(node);
        }
        nodes
    }

    /// Adds values of subtrees, in any number but ascending and tiling a complete subtree, in tree order.
    /// `add(left, right)` leaves the sum in `left`. `None` when there are no values.
    ///
    /// The values of one rank's chunks fold to the values of its [`maximal`](Self::maximal) nodes; those of all ranks
    /// fold to the root.
    pub fn fold<T>(self, values: Vec<(Node, T)>, mut add: impl FnMut(&mut T, T)) -> Option<T> {
        let mut stack: Vec<(Node, T)> = Vec::new();
        for value in values {
            stack.push(value);
            self.collapse(&mut stack, &mut add, self.root_level());
        }
        debug_assert!(stack.len() <= 1, "values do not tile one subtree");
        stack.pop().map(|(_, value)| value)
    }

    /// Puts the value of the next subtree, ascending, on top of `stack`, and adds what completes a parent. When values of
    /// all chunks of a range have come, in whatever subtrees, the stack holds those of its [`maximal`](Self::maximal) nodes.
    pub fn grow<T>(self, stack: &mut Vec<(Node, T)>, value: (Node, T), mut add: impl FnMut(&mut T, T)) {
        stack.push(value);
        self.collapse(stack, &mut add, self.root_level());
    }

    /// Adds the values of `chunks` (one each, ascending from `chunks.start`) into the values of their maximal nodes.
    pub fn fold_chunks<T>(self, chunks: Range<u32>, values: Vec<T>, mut add: impl FnMut(&mut T, T)) -> Vec<(Node, T)> {
        debug_assert_eq!(chunks.len(), values.len());
        let mut values = values.into_iter();
        let mut sums = Vec::new();
        for node in self.maximal(chunks) {
            let own: Vec<_> =
                self.leaves(node).map(|chunk| Node { level: 0, index: chunk }).zip(values.by_ref()).collect();
            sums.extend(self.fold_to(own, &mut add, node.level).map(|sum| (node, sum)));
        }
        sums
    }

    fn fold_to<T>(self, values: Vec<(Node, T)>, add: &mut impl FnMut(&mut T, T), level: u32) -> Option<T> {
        let mut stack: Vec<(Node, T)> = Vec::new();
        for value in values {
            stack.push(value);
            self.collapse(&mut stack, add, level);
        }
        stack.pop().map(|(_, value)| value)
    }

    /// Climbs while the top of the stack completes its parent.
    fn collapse<T>(self, stack: &mut Vec<(Node, T)>, add: &mut impl FnMut(&mut T, T), top: u32) {
        while let Some(&(node, _)) = stack.last() {
            if node.level >= top {
                break;
            }
            let parent = Node { level: node.level + 1, index: node.index >> 1 };
            let leaves = self.leaves(parent);
            if self.leaves(node).end != leaves.end {
                break; // the right sibling is still to come
            }
            if node.index & 1 == 1 {
                let Some(&(left, _)) = stack.get(stack.len().wrapping_sub(2)) else { break };
                if left.level != node.level || left.index + 1 != node.index {
                    break;
                }
                let Some((_, right)) = stack.pop() else { break };
                if let Some(under) = stack.last_mut() {
                    add(&mut under.1, right);
                }
            }
            if let Some(under) = stack.last_mut() {
                under.0 = parent;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Recursive definition, against which the iterative one is held.
    fn root(tree: Tree, level: u32, index: u32, leaf: &dyn Fn(u32) -> String) -> Option<String> {
        let leaves = tree.leaves(Node { level, index });
        if leaves.is_empty() {
            return None;
        }
        if level == 0 {
            return Some(leaf(index));
        }
        let left = root(tree, level - 1, index * 2, leaf)?;
        Some(match root(tree, level - 1, index * 2 + 1, leaf) {
            Some(right) => format!("({left}+{right})"),
            None => left,
        })
    }

    #[test]
    fn whoever_holds_which_chunks_the_additions_are_the_same() {
        let add = |left: &mut String, right: String| *left = format!("({left}+{right})");
        for num_chunks in 1..=17u32 {
            let tree = Tree::new(num_chunks);
            let expected = root(tree, tree.root_level(), 0, &|i| i.to_string());
            for a in 0..=num_chunks {
                for b in a..=num_chunks {
                    let mut parts = Vec::new();
                    for range in [0..a, a..b, b..num_chunks] {
                        let values = range.clone().map(|i| i.to_string()).collect();
                        parts.extend(tree.fold_chunks(range, values, add));
                    }
                    assert_eq!(tree.fold(parts, add), expected, "{num_chunks} chunks cut at {a} and {b}");
                }
            }
        }
    }

    #[test]
    fn in_however_many_parts_a_range_comes_its_sums_are_the_same() {
        let add = |left: &mut String, right: String| *left = format!("({left}+{right})");
        for num_chunks in 1..=13u32 {
            let tree = Tree::new(num_chunks);
            for (start, end) in (0..num_chunks).flat_map(|a| (a + 1..=num_chunks).map(move |b| (a, b))) {
                let name = |range: Range<u32>| range.map(|i| i.to_string()).collect::<Vec<_>>();
                let whole = tree.fold_chunks(start..end, name(start..end), add);
                for (a, b) in (start..=end).flat_map(|a| (a..=end).map(move |b| (a, b))) {
                    let mut stack = Vec::new();
                    for part in [start..a, a..b, b..end] {
                        for value in tree.fold_chunks(part.clone(), name(part), add) {
                            tree.grow(&mut stack, value, add);
                        }
                    }
                    assert_eq!(stack, whole, "{start}..{end} of {num_chunks} chunks, cut at {a} and {b}");
                }
            }
        }
    }

    #[test]
    fn an_even_power_of_two_split_is_one_subtree_a_rank() {
        let tree = Tree::new(8);
        assert_eq!(tree.maximal(0..4), [Node { level: 2, index: 0 }]);
        assert_eq!(tree.maximal(4..8), [Node { level: 2, index: 1 }]);
        assert_eq!(tree.maximal(3..6), [Node { level: 0, index: 3 }, Node { level: 1, index: 2 }]);
    }

    #[test]
    fn no_chunks_have_no_root() {
        assert_eq!(Tree::new(0).fold(Vec::<(Node, u32)>::new(), |a, b| *a += b), None);
        assert!(Tree::new(4).maximal(2..2).is_empty());
    }
}
