//! From a run directory to a run of the report.

use std::path::Path;

use lockstep_coordinator::provenance::Provenance;
use lockstep_coordinator::run_dir;
use lockstep_coordinator::store::{EpochRow, EventRow, RunReader};
use lockstep_proto::plan::Course;

use super::curve::{Curve, Point, Smoother, fine_window, usual_window};
use super::model::{Details, Run, State};
use crate::failure::Failure;
use crate::sweep::state::{RunState, state};

/// How an event says that a run came to its end; see `Engine::end` of the coordinator.
const ENDED: &str = "the run ended: ";

/// Reads a run, as far as there is one: a table has a row for what was not run too. `smooth`: steps in a point of the
/// training loss.
pub fn run(dir: &Path, seed: u64, smooth: Option<u64>) -> Run {
    let state = state(dir);
    if state == RunState::Absent {
        return Run { seed, dir: dir.to_owned(), state: State::NotRun, details: None };
    }
    // A directory whose coordinator has not come to the database yet has nothing to tell.
    let has_store = dir.join(lockstep_coordinator::store::FILE_NAME).is_file();
    let (details, told) = match has_store.then(|| details(dir, smooth)) {
        Some(Ok((details, told))) => (Some(details), Ok(told)),
        Some(Err(failure)) => (None, Err(failure.reason)),
        None => (None, Ok(Told::default())),
    };
    let state = match (state, told) {
        (RunState::Failed { step, reason, .. }, told) => {
            State::Failed { step, total: told.map_or(0, |told| told.total_steps), reason }
        }
        (_, Err(reason)) => State::Failed { step: 0, total: 0, reason },
        (RunState::Done, Ok(_)) => State::Done,
        (RunState::Partial { step }, Ok(told)) => {
            State::Unfinished { step, total: told.total_steps, reason: told.ended }
        }
        (RunState::Absent, Ok(_)) => State::NotRun,
    };
    Run { seed, dir: dir.to_owned(), state, details }
}

/// What matters for the state alone.
#[derive(Default)]
struct Told {
    total_steps: u64,
    ended: Option<String>,
}

fn details(dir: &Path, smooth: Option<u64>) -> Result<(Details, Told), Failure> {
    let recipe = run_dir::recipe_of(dir)?;
    let reader = RunReader::open(dir)?;
    let provenance = Provenance::read(dir).unwrap_or_default();
    let data = reader.data()?;
    let state_sha256 = reader.final_state_sha256()?;
    let mut details = Details { provenance, recipe_sha256: recipe.sha256(), state_sha256, data, ..Details::default() };
    let events = reader.events(0)?;
    let mut told = Told { total_steps: 0, ended: ended(&events) };
    let Some(num_train) = details.data.as_ref().map(|data| data.num_train) else { return Ok((details, told)) };
    let course = Course::new(&recipe, num_train);
    told.total_steps = course.total_steps();
    details.total_epochs = course.total_epochs();
    let per_epoch = course.steps_per_epoch();
    let window = smooth.unwrap_or_else(|| usual_window(course.total_steps(), per_epoch));
    let positions = course.num_positions();
    details.num_positions = positions;
    let mut smoothed = Smoother::new(window, per_epoch, positions);
    let mut fine = Smoother::new(fine_window(course.total_steps()), per_epoch, positions);
    let mut last = 0;
    reader.each_step(|row| {
        smoothed.push(row.epoch.0, row.samples, row.loss);
        fine.push(row.epoch.0, row.samples, row.loss);
        last = row.step.0;
    })?;
    (details.loss, details.loss_fine) = (smoothed.finish(), fine.finish());
    let epochs = reader.epochs()?;
    details.test = test_curve(&epochs, positions);
    let at_end = epochs.last().filter(|row| row.step.0 == last && details.state_sha256.is_some());
    details.test_error = at_end.and_then(|row| row.test_error);
    Ok((details, told))
}

fn test_curve(epochs: &[EpochRow], positions: u64) -> Curve {
    let point = |row: &EpochRow| {
        let images = row.images as f64;
        let value = row.test_error.filter(|error| error.is_finite())?;
        Some(Point { images, epochs: images / positions.max(1) as f64, value })
    };
    Curve { window: 0, points: epochs.iter().filter_map(point).collect() }
}

/// Why the run ended, if nothing happened after it did.
fn ended(events: &[EventRow]) -> Option<String> {
    let reason = events.last()?.detail.get("reason")?.as_str()?;
    reason.strip_prefix(ENDED).map(str::to_owned)
}
