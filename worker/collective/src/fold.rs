//! The additions of a layout, compiled once and done block by block while the data is in cache.

use lockstep_proto::tree::{Node, Tree};

use crate::element::Element;

/// Elements that go through all additions before the next are touched.
const BLOCK: usize = 2048;

#[derive(Clone, Copy, Debug)]
enum Operand {
    /// A partial, counted over all ranks.
    Input(usize),
    /// An intermediate sum; 0 lives in the output.
    Sum(usize),
}

/// `sum[into] = left + right`.
#[derive(Clone, Copy, Debug)]
struct Addition {
    into: usize,
    left: Operand,
    right: Operand,
}

/// Adds partials of all ranks in tree order.
#[derive(Clone, Debug)]
pub(crate) struct FoldPlan {
    num_inputs: usize,
    additions: Vec<Addition>,
    /// Intermediate sums besides the output.
    num_sums: usize,
}

impl FoldPlan {
    /// Over partials that are the values of `nodes`: ascending, tiling the tree.
    pub(crate) fn new(tree: Tree, nodes: impl Iterator<Item = Node>) -> Self {
        let values: Vec<_> = nodes.enumerate().map(|(i, node)| (node, Operand::Input(i))).collect();
        let num_inputs = values.len();
        let mut additions = Vec::new();
        let mut free = Vec::new();
        let mut num_sums = 0;
        tree.fold(values, |left, right| {
            let into = match *left {
                Operand::Sum(sum) => sum,
                Operand::Input(0) => 0,
                Operand::Input(_) => free.pop().unwrap_or_else(|| {
                    num_sums += 1;
                    num_sums
                }),
            };
            additions.push(Addition { into, left: *left, right });
            if let Operand::Sum(sum) = right {
                free.push(sum);
            }
            *left = Operand::Sum(into);
        });
        Self { num_inputs, additions, num_sums }
    }

    /// Number of elements that [`run`](Self::run) needs besides.
    pub(crate) fn scratch_len(&self) -> usize {
        self.num_sums * BLOCK
    }

    /// Adds `input(i)[..]` of all partials into `out`; zeros if there are none. All as long as `out`.
    pub(crate) fn run<'a, T: Element>(&self, input: impl Fn(usize) -> &'a [T], scratch: &mut [T], out: &mut [T]) {
        match self.num_inputs {
            0 => out.fill(T::ZERO),
            1 => out.copy_from_slice(input(0)),
            2 => add(out, input(0), input(1)),
            _ => {
                for (i, block) in out.chunks_mut(BLOCK).enumerate() {
                    let len = block.len();
                    self.run_block(|k| &input(k)[i * BLOCK..][..len], scratch, block);
                }
            }
        }
    }

    fn run_block<'a, T: Element>(&self, input: impl Fn(usize) -> &'a [T], scratch: &mut [T], out: &mut [T]) {
        let len = out.len();
        for addition in &self.additions {
            // A sum that is read lies beside the one that is written, in `out` or in `scratch`: split between them.
            let (into, right) = match (addition.into, addition.right) {
                (0, Operand::Input(k)) => (&mut *out, input(k)),
                (0, Operand::Sum(k)) => (&mut *out, &scratch[(k - 1) * BLOCK..][..len]),
                (into, Operand::Input(k)) => (&mut scratch[(into - 1) * BLOCK..][..len], input(k)),
                (into, Operand::Sum(k)) => {
                    let (low, high) = scratch.split_at_mut((into.max(k) - 1) * BLOCK);
                    if into > k {
                        (&mut high[..len], &low[(k - 1) * BLOCK..][..len])
                    } else {
                        (&mut low[(into - 1) * BLOCK..][..len], &high[..len])
                    }
                }
            };
            match addition.left {
                Operand::Input(k) => add(into, input(k), right),
                Operand::Sum(_) => into.iter_mut().zip(right).for_each(|(into, &right)| *into += right),
            }
        }
    }
}

fn add<T: Element>(out: &mut [T], left: &[T], right: &[T]) {
    for ((out, &left), &right) in out.iter_mut().zip(left).zip(right) {
        *out = left + right;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_adds_as_the_tree_does() {
        // Powers of ten of very different size: any other order of addition gives other bits.
        let value =
            |chunk: u32, i: usize| ((chunk * 37 + i as u32 * 11) % 23) as f32 * 10f32.powi(chunk as i32 % 9 - 4);
        let len = BLOCK + 5;
        for num_chunks in 1..=19u32 {
            let tree = Tree::new(num_chunks);
            let leaves: Vec<Vec<f32>> = (0..num_chunks).map(|c| (0..len).map(|i| value(c, i)).collect()).collect();
            let nodes = (0..num_chunks).map(|index| Node { level: 0, index });
            let expected = tree.fold(nodes.clone().zip(leaves.clone()).collect(), |a, b| {
                a.iter_mut().zip(b).for_each(|(a, b)| *a += b)
            });
            let plan = FoldPlan::new(tree, nodes);
            let mut out = vec![9.0; len];
            plan.run(|k| &leaves[k], &mut vec![7.0; plan.scratch_len()], &mut out);
            assert_eq!(Some(out), expected, "{num_chunks} chunks");
        }
    }
}
