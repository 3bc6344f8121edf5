//! Waiting with a deadline.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// Looks until there is something. What fails ends it.
pub fn until<T>(what: &str, within: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let until = Instant::now() + within;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() > until {
            bail!("not within {within:?}: {what}");
        }
        std::thread::sleep(LOOK); // between two looks
    }
}
