//! The start of a generation: every rank comes to hold the base state.
//!
//! ```text
//! leader   obtains the base: initialises, holds it, or loads a checkpoint
//! all      gather: who holds what?
//! leader   broadcasts, if anyone is behind                    everyone else takes it over
//! all      gather: hash of the state                          differing: an error that names the ranks
//! ```

use lockstep_collective::{Collective, Lane, Op};
use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Generation, Lineage, Rank, StateId, Step};
use lockstep_proto::message::{Open, Sha256, Source};

use crate::checkpoint::{self, CheckpointError, Loaded, Place};
use crate::compute::{Compute, ComputeError};
use crate::exit::Exit;

/// Brings the state of this rank to `open.base`. Gives its hash, which all ranks agree on.
///
/// # Errors
/// A collective failed; or, fatal, the leader has no base to give, or the states differ afterwards.
pub fn sync(
    compute: &mut dyn Compute,
    collective: &dyn Collective,
    open: &Open,
    place: &Place,
) -> Result<Sha256, ComputeError> {
    let is_leader = collective.rank() == open.leader;
    if is_leader {
        obtain(compute, open, place)?;
    }
    let op = |name: &'static str| Op { lane: Lane::Buckets, step: open.base.step, name, index: 0 };

    let held = collective.all_gather(&op("state ids"), &encode(compute.id()))?;
    let base = encode(Some(open.base));
    if held.iter().any(|id| *id != base) {
        broadcast(compute, collective, open, is_leader)?;
        compute.set_id(Some(open.base));
    }

    let mine = compute.sha256();
    let hashes = collective.all_gather(&op("state hashes"), mine.as_bytes())?;
    let leaders = &hashes[open.leader.0 as usize];
    let others: Vec<String> =
        (0..).zip(&hashes).filter(|(_, hash)| *hash != leaders).map(|(rank, _): (u32, _)| rank.to_string()).collect();
    if !others.is_empty() {
        let reason = format!(
            "after synchronising {} the state of rank {} differs from that of rank {}, the leader: \
             check the memory of those machines, then resume",
            open.base,
            others.join(", "),
            open.leader
        );
        return Err(ComputeError::fatal(ExitCode::Software, reason));
    }
    Ok(mine)
}

/// The leader's part: afterwards it holds the base.
fn obtain(compute: &mut dyn Compute, open: &Open, place: &Place) -> Result<(), ComputeError> {
    match &open.source {
        Source::Init => compute.begin()?,
        Source::Held if compute.id() == Some(open.base) => return Ok(()),
        Source::Held => {
            let holds = compute.id().map_or_else(|| "nothing".to_owned(), |id| id.to_string());
            let reason = format!("this worker was to lead from {}, but it holds {holds}", open.base);
            return Err(ComputeError::fatal(ExitCode::Software, reason));
        }
        Source::Checkpoint { dir } => {
            let loaded = load(place, dir).map_err(|error| damaged(dir, error))?;
            if loaded.manifest.state() != open.base {
                let reason = format!(
                    "it holds {}, but the run goes on from {}; the run directory was changed by hand",
                    loaded.manifest.state(),
                    open.base
                );
                return Err(ComputeError::BadCheckpoint { dir: dir.clone(), reason });
            }
            compute.load(&loaded.model, &loaded.optimizer)?;
            let found = compute.sha256();
            if found != loaded.manifest.state_sha256 {
                let reason = format!("the state hashes to {found}, its manifest says {}", loaded.manifest.state_sha256);
                return Err(ComputeError::BadCheckpoint { dir: dir.clone(), reason });
            }
        }
    }
    compute.set_id(Some(open.base));
    Ok(())
}

/// What is wrong with the files is no reason to give up: there are older ones. A coordinator that does not answer is.
fn damaged(dir: &str, error: CheckpointError) -> ComputeError {
    match error.exit_code() {
        ExitCode::Data | ExitCode::NoInput => {
            ComputeError::BadCheckpoint { dir: dir.to_owned(), reason: error.to_string() }
        }
        _ => Exit::from(error).into(),
    }
}

/// Reads a checkpoint of the run: from the run directory, or through the coordinator.
fn load(place: &Place, dir: &str) -> Result<Loaded, CheckpointError> {
    match place {
        Place::Folder(folder) => checkpoint::read(&folder.join(dir)),
        Place::Remote(depot) => {
            let temporary = std::env::temp_dir().join(format!("lockstep-{}-{dir}", uuid::Uuid::new_v4()));
            let loaded = depot.download(dir, &temporary).and_then(|()| checkpoint::read(&temporary));
            let _ = std::fs::remove_dir_all(&temporary);
            loaded
        }
    }
}

fn broadcast(
    compute: &mut dyn Compute,
    collective: &dyn Collective,
    open: &Open,
    is_leader: bool,
) -> Result<(), ComputeError> {
    let op = |name: &'static str| Op { lane: Lane::Buckets, step: open.base.step, name, index: 0 };
    let mut bytes = if is_leader { compute.to_bytes() } else { Vec::new() };
    let mut length = (bytes.len() as u64).to_le_bytes();
    collective.broadcast(&op("state length"), open.leader, &mut length)?;
    // invariant: the leader's own length fits its memory, and every rank's state is as long; a fresh state differs
    // only in values.
    bytes.resize(usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX), 0);
    collective.broadcast(&op("state"), open.leader, &mut bytes)?;
    if !is_leader {
        compute.take_bytes(&bytes)?;
    }
    Ok(())
}

/// A state's name on the data plane: empty for none.
fn encode(id: Option<StateId>) -> Vec<u8> {
    id.map(|StateId { lineage: Lineage(lineage), generation: Generation(generation), step: Step(step) }| {
        [lineage, generation, step].into_iter().flat_map(u64::to_le_bytes).collect()
    })
    .unwrap_or_default()
}

/// The rank's own entry, for messages.
pub fn rank_of(open: &Open, worker: &lockstep_proto::ids::WorkerId, replica: u32) -> Option<Rank> {
    open.members.iter().find(|member| member.worker == *worker && member.replica == replica).map(|member| member.rank)
}
