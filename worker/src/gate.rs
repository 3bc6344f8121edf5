//! Lets all replicas of one process stop behind the same item of the plan.

use std::sync::{Mutex, PoisonError};

/// Items that may still be begun. One per generation, shared by the replicas of a process.
///
/// Replicas are never more than one collective apart, so what one of them has begun the others must finish: stopping
/// lets every begun item end, and begins no new one.
#[derive(Debug, Default)]
pub struct Gate(Mutex<Items>);

#[derive(Debug, Default)]
struct Items {
    begun: u64,
    stop_after: Option<u64>,
}

impl Gate {
    /// Whether item `number` (from 1) may begin.
    pub fn enter(&self, number: u64) -> bool {
        let mut items = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if items.stop_after.is_some_and(|last| number > last) {
            return false;
        }
        items.begun = items.begun.max(number);
        true
    }

    /// No item begins any more that has not begun somewhere.
    pub fn stop(&self) {
        let mut items = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        items.stop_after = items.stop_after.or(Some(items.begun));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_replica_has_begun_the_other_may_finish() {
        let gate = Gate::default();
        assert!(gate.enter(1) && gate.enter(2));
        gate.stop();
        assert!(gate.enter(1), "the slower replica catches up");
        assert!(gate.enter(2));
        assert!(!gate.enter(3));
        gate.stop();
        assert!(!gate.enter(3), "a second stop changes nothing");
    }
}
