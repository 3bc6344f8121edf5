//! The nouns that travel: newtypes without cross-arithmetic, so that a rank is never added to a step.

use std::fmt;
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The one after this.
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

counter! {
    /// The k-th optimizer step, from 1; step 0 is the state before training.
    Step, u64
}
counter! {
    /// Epochs count from 1; epoch 0 stands for the evaluation before training.
    Epoch, u64
}
counter! {
    /// A replica's place in the world, from 0. A worker process may hold several ranks.
    Rank, u32
}
counter! {
    /// One membership of the world. Never repeats within a run, across restarts too. 0: none yet.
    Generation, u64
}
counter! {
    /// One uninterrupted history of a run. A rollback begins a new one.
    Lineage, u64
}

/// Number of ranks in a generation; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorldSize(pub NonZeroU32);

impl WorldSize {
    /// `None` for zero.
    pub fn new(num_ranks: u32) -> Option<Self> {
        NonZeroU32::new(num_ranks).map(Self)
    }

    /// As a plain number.
    pub fn count(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for WorldSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Names a worker process for its life: unique, chosen by the worker (`host-pid-random` unless set).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkerId(pub String);

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A contiguous range of positions of an epoch's order: `[start, start + len)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SampleRange {
    /// First position.
    pub start: u64,
    /// Number of positions; may be zero.
    pub len: u64,
}

impl SampleRange {
    /// One past the last position.
    pub fn end(self) -> u64 {
        self.start + self.len
    }

    /// Whether there is no position in it.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }
}

impl fmt::Display for SampleRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.start, self.end())
    }
}

/// The identity of a replica's state: like Raft's (term, index), the step alone is none.
/// Ordered by (lineage, generation, step).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StateId {
    /// The history it belongs to.
    pub lineage: Lineage,
    /// The generation that applied the step.
    pub generation: Generation,
    /// The last step that reached the weights.
    pub step: Step,
}

impl fmt::Display for StateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {} (lineage {}, generation {})", self.step, self.lineage, self.generation)
    }
}
