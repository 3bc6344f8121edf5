//! What can go wrong between ranks.

use std::time::Duration;

use lockstep_proto::ids::{Generation, Rank, Step};

/// An operation as people read it: `gradient bucket 3 of step 17 (norm lane, number 204)`.
pub type Operation = String;

/// Why an operation failed. The first failure of a mesh is what every later operation returns.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CollectiveError {
    /// A peer closed its connection, was killed, aborted, or was given up by another rank.
    #[error("rank {rank} is gone during {operation}: {how}")]
    PeerGone {
        /// Who.
        rank: Rank,
        /// What was going on.
        operation: Operation,
        /// How it was noticed.
        how: String,
    },
    /// A peer did not take part in time.
    #[error("rank {rank} did not take part in {operation} within {waited:.1?}: it is stalled, or its network is")]
    Deadline {
        /// Who was waited for.
        rank: Rank,
        /// What for.
        operation: Operation,
        /// How long.
        waited: Duration,
    },
    /// Two ranks called different operations: a bug of the caller, or ranks with different plans.
    #[error("rank {rank} called {theirs} while this rank called {ours}, {detail}; before that: {before}")]
    Mismatch {
        /// The other rank.
        rank: Rank,
        /// What this rank called.
        ours: Operation,
        /// What the other called.
        theirs: Operation,
        /// What differs.
        detail: String,
        /// This rank's operation before.
        before: Operation,
    },
    /// Bytes that no rank of this generation sends.
    #[error("rank {rank} sent a message that does not belong to generation {generation}: {what}")]
    Garbled {
        /// Whose connection.
        rank: Rank,
        /// The generation of this mesh.
        generation: Generation,
        /// What was found.
        what: String,
    },
    /// [`Collective::abort`](crate::Collective::abort) was called.
    #[error("the collective was aborted by this process")]
    Aborted,
    /// The votes of a step do not add up: some rank was aborted in the middle of it, and its part is junk.
    #[error("the votes of step {step} do not add up ({sums}): a rank was aborted meanwhile; nothing was changed")]
    Outvoted {
        /// Which step.
        step: Step,
        /// What came, and what sound ranks give.
        sums: String,
    },
    /// Arguments that no rank could accept.
    #[error("{operation}: {what}")]
    Misuse {
        /// Which operation.
        operation: Operation,
        /// What is wrong.
        what: String,
    },
    /// The library underneath gave this rank an error that names nobody.
    #[error("{operation} failed on rank {rank}: {what}")]
    Failed {
        /// Where: this rank.
        rank: Rank,
        /// What was going on.
        operation: Operation,
        /// What the library says.
        what: String,
    },
    /// The device or its library can no longer be used, in this generation or any other: the process has to end.
    #[error("{what}")]
    Unusable {
        /// What is wrong, and what to do about it.
        what: String,
    },
    /// A rank never came to the rendezvous.
    #[error("rank {rank} at {address} did not come to generation {generation} within {waited:.1?}: {cause}")]
    NeverCame {
        /// Who.
        rank: Rank,
        /// Where it should listen or come from.
        address: String,
        /// Which generation.
        generation: Generation,
        /// How long it was waited for.
        waited: Duration,
        /// The last thing that happened.
        cause: String,
    },
    /// The listening socket cannot be had or used.
    #[error("cannot listen on {address}: {cause}")]
    Listen {
        /// Where.
        address: String,
        /// What the system says.
        cause: String,
    },
}

impl CollectiveError {
    /// Whom it blames, if anyone.
    pub fn culprit(&self) -> Option<Rank> {
        match self {
            Self::PeerGone { rank, .. }
            | Self::Deadline { rank, .. }
            | Self::Mismatch { rank, .. }
            | Self::Garbled { rank, .. }
            | Self::NeverCame { rank, .. } => Some(*rank),
            Self::Aborted
            | Self::Outvoted { .. }
            | Self::Misuse { .. }
            | Self::Failed { .. }
            | Self::Unusable { .. }
            | Self::Listen { .. } => None,
        }
    }
}
