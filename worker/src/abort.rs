//! How a session reaches a replica that is blocked in a collective, and sees whether it gets on.

use std::sync::{Arc, Mutex, PoisonError};

use lockstep_collective::Collective;
use lockstep_proto::ids::Generation;

use crate::door::Door;
use crate::pulse::Pulse;

/// Holds the collective of the open generation, so that another thread can abort it; and remembers what was closed,
/// so that a collective that comes to be only afterwards is aborted too.
pub struct AbortSlot {
    door: Arc<dyn Door>,
    slot: Mutex<Slot>,
    pulse: Arc<Pulse>,
}

#[derive(Default)]
struct Slot {
    closed: Option<Generation>,
    collective: Option<Arc<dyn Collective>>,
}

impl AbortSlot {
    /// For the replica that meets others there.
    pub fn new(door: Arc<dyn Door>) -> Self {
        Self { door, slot: Mutex::default(), pulse: Arc::default() }
    }

    /// What the replica counts.
    pub fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }

    /// Aborts generation `generation` and all before it, now and in future.
    pub fn close(&self, generation: Generation) {
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        slot.closed = slot.closed.max(Some(generation));
        self.door.cancel(generation);
        if let Some(collective) = slot.collective.take() {
            collective.abort();
        }
    }

    /// Whether `generation` was closed.
    pub fn is_closed(&self, generation: Generation) -> bool {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner).closed >= Some(generation)
    }

    /// Makes `collective` reachable for [`close`](Self::close); aborts it at once where that has been.
    pub fn install(&self, generation: Generation, collective: Arc<dyn Collective>) {
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.closed >= Some(generation) {
            collective.abort();
        } else {
            slot.collective = Some(collective);
        }
    }

    /// Forgets the collective: its connections close when its last user drops it.
    pub fn clear(&self) {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner).collective = None;
    }
}
