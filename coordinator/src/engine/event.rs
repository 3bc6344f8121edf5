//! What happens to the engine. Time comes as an argument beside it, never from a clock.

use lockstep_proto::exit::ExitCode;
use lockstep_proto::message::{FromWorker, Hello};

/// One gRPC stream of one worker; never reused. The runtime numbers them from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// Number of a record handed to the store, from 1, without gaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

/// Something happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A stream opened and said who it is.
    Connected {
        /// The new stream.
        stream: StreamId,
        /// Its first message.
        hello: Hello,
    },
    /// A later message of a stream.
    Received {
        /// Whose.
        stream: StreamId,
        /// What.
        message: FromWorker,
    },
    /// A stream ended or broke.
    Disconnected {
        /// Which.
        stream: StreamId,
        /// What the transport said.
        reason: String,
    },
    /// All records up to this one are durable.
    Persisted {
        /// The last of them.
        seq: Seq,
    },
    /// The store can no longer be written.
    StoreFailed {
        /// File and error.
        reason: String,
    },
    /// Someone asked for a clean end: drain, save, leave.
    StopRequested {
        /// Code that the run is to end with.
        code: ExitCode,
        /// Who and why.
        reason: String,
    },
    /// This coordinator is to go, and another one will go on: workers keep what they hold and wait for it.
    HandedOver {
        /// Who and why.
        reason: String,
    },
    /// A deadline may have passed.
    Tick,
}
