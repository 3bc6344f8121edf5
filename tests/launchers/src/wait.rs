//! Waiting with a deadline.

use std::time::Duration;

use anyhow::Result;

/// Between two looks: most of them start a program.
const LOOK: Duration = Duration::from_millis(50);

/// Looks until there is something. What fails ends it.
pub fn until<T>(what: &str, within: Duration, look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    lockstep_chaos::until_every(LOOK, what, within, look)
}
