//! Invariant 3: whatever operation of a step fails, and whatever junk it left behind, the state stays as it was.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use lockstep_collective::{Collective, CollectiveError, Layout, Op, Solo};
use lockstep_proto::ids::{Epoch, Generation, Lineage, Rank, SampleRange, StateId, Step};
use lockstep_proto::message::StepPlan;
use lockstep_proto::recipe::{BatchNorm, DataKind, Recipe};
use lockstep_worker::compute::ComputeError;
use lockstep_worker::trainer;

/// Rank 0 of two. Answers with junk, and from operation `fails_at` on with an error as well.
struct Junk {
    fails_at: u32,
    called: AtomicU32,
}

impl Junk {
    fn answer<T: From<f32> + Copy>(&self, out: &mut [T]) -> Result<(), CollectiveError> {
        out.fill(T::from(0.5));
        match self.called.fetch_add(1, Ordering::SeqCst) + 1 < self.fails_at {
            true => Ok(()),
            false => Err(CollectiveError::Aborted),
        }
    }
}

impl Collective for Junk {
    fn rank(&self) -> Rank {
        Rank(0)
    }
    fn world(&self) -> u32 {
        2
    }
    fn reduce_f32(&self, _: &Op, _: &Layout, _: &[&[f32]], out: &mut [f32]) -> Result<(), CollectiveError> {
        self.answer(out)
    }
    fn reduce_f64(&self, _: &Op, _: &Layout, _: &[&[f64]], out: &mut [f64]) -> Result<(), CollectiveError> {
        self.answer(out)
    }
    fn broadcast(&self, _: &Op, _: Rank, _: &mut [u8]) -> Result<(), CollectiveError> {
        Err(CollectiveError::Aborted)
    }
    fn all_gather(&self, _: &Op, _: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        Err(CollectiveError::Aborted)
    }
    fn abort(&self) {
        self.called.store(u32::MAX / 2, Ordering::SeqCst);
    }
}

fn plan(step: u64, shards: &[u32]) -> StepPlan {
    let batch = SampleRange { start: (step - 1) * 32, len: 32 };
    StepPlan { step: Step(step), epoch: Epoch(1), lr: 0.1, batch, shards: shards.to_vec() }
}

fn never_reaches_the_weights(batch_norm: BatchNorm) {
    let mut recipe = Recipe::default();
    recipe.data.kind = DataKind::Shapes;
    (recipe.model.n, recipe.model.width) = (1, 4);
    (recipe.train.batch, recipe.train.chunk, recipe.train.bucket_bytes) = (32, 8, 1 << 12);
    recipe.train.batch_norm = batch_norm;
    let data = lockstep_data::open(&recipe.data, 0).unwrap();
    let mut replica = trainer::cpu(&recipe, data, 1).unwrap();
    replica.initialise();
    replica.set_id(Some(StateId { lineage: Lineage(1), generation: Generation(1), step: Step(0) }));
    replica.step(Generation(1), &plan(1, &[4])).unwrap();
    let (before, id) = (replica.to_bytes(), replica.id());

    let mut num_failures = 0;
    for fails_at in 1.. {
        replica.join(Arc::new(Junk { fails_at, called: AtomicU32::new(0) }));
        match replica.step(Generation(2), &plan(2, &[2, 2])) {
            Ok(_) => break,
            Err(ComputeError::Collective(_)) => num_failures += 1,
            Err(other) => panic!("operation {fails_at}: {other}"),
        }
        replica.leave();
        assert_eq!(replica.id(), id, "operation {fails_at}");
        assert!(replica.to_bytes() == before, "operation {fails_at} reached the state");
    }
    // one for the loss, one a bucket, and what the norm layers say
    assert!(num_failures > 5, "only {num_failures} operations in a step");
    assert!(replica.to_bytes() != before, "a step in which nothing failed must change the state");

    // The next generation goes on from the state that was kept, as if nothing had happened.
    replica.take_bytes(&before).unwrap();
    replica.set_id(id);
    replica.join(Arc::new(Junk { fails_at: num_failures, called: AtomicU32::new(0) }));
    replica.step(Generation(2), &plan(2, &[2, 2])).unwrap_err();
    replica.join(Arc::new(Solo::new()));
    let after = replica.step(Generation(3), &plan(2, &[4])).unwrap();
    let mut undisturbed = {
        let data = lockstep_data::open(&recipe.data, 0).unwrap();
        trainer::cpu(&recipe, data, 1).unwrap()
    };
    undisturbed.initialise();
    undisturbed.step(Generation(1), &plan(1, &[4])).unwrap();
    assert_eq!(undisturbed.step(Generation(1), &plan(2, &[4])).unwrap().loss.to_bits(), after.loss.to_bits());
    assert_eq!(undisturbed.sha256(), replica.sha256());
}

#[test]
fn a_failed_collective_never_reaches_the_weights() {
    never_reaches_the_weights(BatchNorm::Global);
    never_reaches_the_weights(BatchNorm::Chunk);
}
