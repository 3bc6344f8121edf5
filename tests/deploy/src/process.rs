//! Small things about processes.

use std::time::Duration;

use anyhow::Result;
pub use lockstep_chaos::run_program as run;

/// Between two looks at whatever is waited for.
pub const LOOK: Duration = Duration::from_millis(20);

/// Looks until there is something to see, within a deadline.
pub fn until<T>(what: &str, within: Duration, look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    lockstep_chaos::until_every(LOOK, what, within, look)
}
