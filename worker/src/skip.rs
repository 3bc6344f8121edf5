//! Samples that are left out with `data.image.bad = "skip"`: every rank hears of those of all.

use lockstep_collective::{CollectiveError, Op};
use lockstep_proto::message::Skipped;

use crate::step::StepError;

/// What all ranks left out, ascending by position. `all_gather` gives what every rank says.
///
/// # Errors
/// A collective that failed.
pub(crate) fn gather<E: From<CollectiveError>>(
    op: &Op,
    own: &[Skipped],
    all_gather: impl FnOnce(&[u8]) -> Result<Vec<Vec<u8>>, E>,
) -> Result<Vec<Skipped>, E> {
    for Skipped { position, file, reason } in own {
        tracing::warn!(step = %op.step, position, "{file} is skipped: {reason}");
    }
    // invariant: numbers and strings always serialise
    let mine = if own.is_empty() { Vec::new() } else { serde_json::to_vec(own).unwrap_or_default() };
    let mut all = Vec::new();
    for part in all_gather(&mine)?.iter().filter(|part| !part.is_empty()) {
        let part: Vec<Skipped> = serde_json::from_slice(part).map_err(|error| CollectiveError::Misuse {
            operation: op.to_string(),
            what: format!("a rank sent something else than samples: {error}"),
        })?;
        all.extend(part);
    }
    all.sort_by_key(|skipped| skipped.position);
    Ok(all)
}

/// `skipped`, if they are not all of `total` samples.
///
/// # Errors
/// Nothing is left of `what`.
pub(crate) fn some_left(
    skipped: Vec<Skipped>,
    total: u64,
    what: impl FnOnce() -> String,
) -> Result<Vec<Skipped>, StepError> {
    match skipped.first() {
        Some(first) if skipped.len() as u64 >= total => {
            let (file, reason) = (first.file.clone(), first.reason.clone());
            Err(StepError::NothingLeft { what: what(), file, reason })
        }
        _ => Ok(skipped),
    }
}
