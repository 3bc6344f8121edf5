//! Signs of life of a replica: a count that only work itself moves, and whether it is waiting for someone else.
//!
//! A thread that says "alive" outlives a hung trainer. So computation counts what it gets done, chunk by chunk, and
//! [`Watched`] counts collectives; the session only reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use lockstep_collective::{Collective, CollectiveError, Layout, Op};
use lockstep_proto::ids::Rank;

/// Of one replica. Cheap enough for every chunk of every operation.
#[derive(Debug, Default)]
pub struct Pulse {
    beats: AtomicU64,
    waiting: AtomicU32,
}

impl Pulse {
    /// Something got done.
    pub fn beat(&self) {
        // Relaxed: a count for people and deadlines; nothing is published by it.
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// Runs what may have to wait for others, or for a disk. Its end counts as a beat.
    pub fn wait<T>(&self, f: impl FnOnce() -> T) -> T {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let out = f();
        self.beat();
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        out
    }

    /// Beats so far, and whether anything waits.
    pub fn read(&self) -> (u64, bool) {
        (self.beats.load(Ordering::Relaxed), self.waiting.load(Ordering::Relaxed) > 0)
    }
}

/// A collective that counts.
pub struct Watched {
    inner: Arc<dyn Collective>,
    pulse: Arc<Pulse>,
}

impl Watched {
    /// Counts what `inner` does in `pulse`.
    pub fn new(inner: Arc<dyn Collective>, pulse: Arc<Pulse>) -> Self {
        Self { inner, pulse }
    }
}

impl Collective for Watched {
    fn rank(&self) -> Rank {
        self.inner.rank()
    }

    fn world(&self) -> u32 {
        self.inner.world()
    }

    fn reduce_f32(
        &self,
        op: &Op,
        layout: &Layout,
        partials: &[&[f32]],
        out: &mut [f32],
    ) -> Result<(), CollectiveError> {
        self.pulse.wait(|| self.inner.reduce_f32(op, layout, partials, out))
    }

    fn reduce_f64(
        &self,
        op: &Op,
        layout: &Layout,
        partials: &[&[f64]],
        out: &mut [f64],
    ) -> Result<(), CollectiveError> {
        self.pulse.wait(|| self.inner.reduce_f64(op, layout, partials, out))
    }

    fn broadcast(&self, op: &Op, root: Rank, bytes: &mut [u8]) -> Result<(), CollectiveError> {
        self.pulse.wait(|| self.inner.broadcast(op, root, bytes))
    }

    fn all_gather(&self, op: &Op, mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        self.pulse.wait(|| self.inner.all_gather(op, mine))
    }

    fn abort(&self) {
        self.inner.abort();
    }

    fn underneath(&self) -> Option<&(dyn std::any::Any + Send + Sync)> {
        self.inner.underneath()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_collective::{Lane, Solo};
    use lockstep_proto::ids::Step;

    #[test]
    fn work_is_counted_and_waiting_is_seen_from_outside() {
        let pulse = Arc::new(Pulse::default());
        assert_eq!(pulse.read(), (0, false));
        pulse.beat();
        let seen = pulse.wait(|| pulse.read());
        assert_eq!((seen, pulse.read()), ((1, true), (2, false)));
        let watched = Watched::new(Arc::new(Solo::new()), Arc::clone(&pulse));
        let op = Op { lane: Lane::Norm, step: Step(1), name: "test", index: 0 };
        assert!(watched.all_gather(&op, &[7]).is_ok());
        assert_eq!(pulse.read(), (3, false));
    }
}
