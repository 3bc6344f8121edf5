//! What a run tells whoever started it: for the progress bar, plain lines, `--json`.

use lockstep_proto::status::Status;

use crate::store::{EpochRow, EventRow, StepRow};

/// Something worth showing. Rows come after they are durable.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// The state of the run, a few times a second while it changes.
    Status(Box<Status>),
    /// A step was committed.
    Step(StepRow),
    /// An epoch's row is new, or has its evaluation now.
    Epoch(EpochRow),
    /// An event happened.
    Event(EventRow),
}
