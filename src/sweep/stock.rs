//! Taking stock before anything is run: how far every run is, and what is to be done in which order.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};

use lockstep_coordinator::run_dir;
use lockstep_proto::exit::ExitCode;
use lockstep_proto::plan::Course;

use super::plan::{Plan, Run, num_train};
use super::state::{RunState, state};
use super::tally::{Account, Phase, Tally};
use crate::failure::Failure;

/// Reads how far every run is, and puts those to be done in order: what was begun, then the rest as planned; what failed
/// last time comes last.
pub fn take_stock(plan: &Plan) -> Result<(Tally, VecDeque<usize>), Failure> {
    let mut accounts = Vec::new();
    let mut queues: [Vec<usize>; 3] = Default::default();
    for (index, run) in plan.runs.iter().enumerate() {
        check_recipe(run)?;
        let course = Course::new(&run.recipe, num_train(&run.recipe));
        let (table, label) = plan.title_of(run.config);
        let mut account = Account {
            table: table.to_owned(),
            label: label.to_owned(),
            slug: plan.configs[run.config].slug.clone(),
            seed: run.seed,
            total_steps: course.total_steps(),
            total_epochs: course.total_epochs(),
            cost: plan.configs[run.config].cost,
            ..Account::default()
        };
        match state(&run.dir) {
            RunState::Done => account.phase = Phase::Done,
            RunState::Partial { step } => {
                account.step = step;
                queues[0].push(index);
            }
            RunState::Absent => queues[1].push(index),
            RunState::Failed { step, .. } => {
                account.step = step;
                queues[2].push(index);
            }
        }
        accounts.push(account);
    }
    Ok((Tally { accounts }, queues.into_iter().flatten().collect()))
}

/// The slug has a hash of the recipe, so only hands can have put another run there.
fn check_recipe(run: &Run) -> Result<(), Failure> {
    if !run.dir.join("recipe.toml").is_file() {
        return Ok(());
    }
    let kept = run_dir::recipe_of(&run.dir)?;
    let mut differences = kept.differences(&run.recipe);
    if differences.is_empty() && kept.train.epochs != run.recipe.train.epochs {
        differences.push(format!("train.epochs: {} → {}", kept.train.epochs, run.recipe.train.epochs));
    }
    if differences.is_empty() {
        return Ok(());
    }
    let reason = format!(
        "run directory {} holds another recipe ({}); move it away, or choose another --out",
        run.dir.display(),
        differences.join("; ")
    );
    Err(Failure::new(ExitCode::Usage, reason))
}

/// `OUT/<slug>/seed-<k>.toml`, beside the run directory.
pub fn write_recipe(run: &Run) -> Result<PathBuf, Failure> {
    let path = run.dir.with_extension("toml");
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|error| Failure::unwritable(folder, error))?;
    fs::write(&path, run.recipe.to_toml()).map_err(|error| Failure::unwritable(&path, error))?;
    Ok(path)
}
