//! One rank.

use std::sync::atomic::{AtomicBool, Ordering};

use lockstep_proto::ids::Rank;

use crate::collective::{Collective, Op};
use crate::element::Element;
use crate::error::CollectiveError;
use crate::layout::Layout;

/// A world of one: sums are folded here, nothing is sent.
#[derive(Debug, Default)]
pub struct Solo {
    aborted: AtomicBool,
}

impl Solo {
    /// A new one.
    pub fn new() -> Self {
        Self::default()
    }

    fn check(&self) -> Result<(), CollectiveError> {
        if self.aborted.load(Ordering::Acquire) { Err(CollectiveError::Aborted) } else { Ok(()) }
    }

    fn reduce<T: Element>(
        &self,
        op: &Op,
        layout: &Layout,
        partials: &[&[T]],
        out: &mut [T],
    ) -> Result<(), CollectiveError> {
        self.check()?;
        check_reduce(op, layout, self, partials, out)?;
        // All chunks are this rank's, so there is one subtree at the most.
        layout.plan().run(|k| partials[k], &mut [], out);
        Ok(())
    }
}

impl Collective for Solo {
    fn rank(&self) -> Rank {
        Rank(0)
    }

    fn world(&self) -> u32 {
        1
    }

    fn reduce_f32(
        &self,
        op: &Op,
        layout: &Layout,
        partials: &[&[f32]],
        out: &mut [f32],
    ) -> Result<(), CollectiveError> {
        self.reduce(op, layout, partials, out)
    }

    fn reduce_f64(
        &self,
        op: &Op,
        layout: &Layout,
        partials: &[&[f64]],
        out: &mut [f64],
    ) -> Result<(), CollectiveError> {
        self.reduce(op, layout, partials, out)
    }

    fn broadcast(&self, op: &Op, root: Rank, _bytes: &mut [u8]) -> Result<(), CollectiveError> {
        self.check()?;
        check_root(op, root, self)
    }

    fn all_gather(&self, _op: &Op, mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        self.check()?;
        Ok(vec![mine.to_vec()])
    }

    fn abort(&self) {
        self.aborted.store(true, Ordering::Release);
    }
}

/// Whether the arguments of a reduction fit together.
pub fn check_reduce<T>(
    op: &Op,
    layout: &Layout,
    collective: &dyn Collective,
    partials: &[&[T]],
    out: &[T],
) -> Result<(), CollectiveError> {
    let (rank, world) = (collective.rank(), collective.world());
    let misuse = |what| Err(CollectiveError::Misuse { operation: op.to_string(), what });
    if layout.world() != world {
        return misuse(format!("a layout of {} ranks in a world of {world}", layout.world()));
    }
    let expected = layout.num_partials(rank);
    if partials.len() != expected {
        let share = layout.share(rank);
        return misuse(format!(
            "{} sums for chunks {share:?} of rank {rank}, which fold to {expected}",
            partials.len()
        ));
    }
    match partials.iter().find(|partial| partial.len() != out.len()) {
        Some(partial) => misuse(format!("a sum of {} elements for an output of {}", partial.len(), out.len())),
        None => Ok(()),
    }
}

/// Whether the root of a broadcast exists.
pub fn check_root(op: &Op, root: Rank, collective: &dyn Collective) -> Result<(), CollectiveError> {
    let world = collective.world();
    if root.0 < world {
        return Ok(());
    }
    let what = format!("rank {root} cannot be the root in a world of {world}");
    Err(CollectiveError::Misuse { operation: op.to_string(), what })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::Lane;
    use lockstep_proto::ids::Step;

    const OP: Op = Op { lane: Lane::Norm, step: Step(1), name: "test", index: 0 };

    #[test]
    fn alone_the_sum_is_what_it_was_given_and_nothing_is_zeros() {
        let solo = Solo::new();
        let mut out = [9.0f32; 3];
        solo.reduce_f32(&OP, &Layout::canonical(5, &[5]), &[&[1.0, 2.0, 3.0]], &mut out).unwrap();
        assert_eq!(out, [1.0, 2.0, 3.0]);
        solo.reduce_f32(&OP, &Layout::canonical(0, &[0]), &[], &mut out).unwrap();
        assert_eq!(out, [0.0; 3]);
        assert_eq!(solo.all_gather(&OP, b"abc").unwrap(), [b"abc"]);
    }

    #[test]
    fn wrong_arguments_are_named_and_an_abort_stays() {
        let solo = Solo::new();
        let error = solo.reduce_f64(&OP, &Layout::by_rank(2), &[&[1.0]], &mut [0.0]).unwrap_err();
        assert_eq!(error.to_string(), "test 0 of step 1: a layout of 2 ranks in a world of 1");
        let error = solo.reduce_f64(&OP, &Layout::by_rank(1), &[], &mut [0.0]).unwrap_err();
        assert_eq!(error.to_string(), "test 0 of step 1: 0 sums for chunks 0..1 of rank 0, which fold to 1");
        assert!(solo.broadcast(&OP, Rank(1), &mut []).is_err());
        solo.abort();
        assert_eq!(solo.barrier(&OP), Err(CollectiveError::Aborted));
    }
}
