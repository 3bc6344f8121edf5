//! `eval CHECKPOINT`: loss and error of a checkpoint on the whole test set.

use std::path::Path;
use std::sync::Arc;

use lockstep_collective::Solo;
use lockstep_proto::exit::ExitCode;
use lockstep_proto::recipe::Recipe;
use serde::Serialize;

use crate::args::{EvalArgs, cores};
use crate::checkpoint;
use crate::exit::Exit;
use crate::trainer;
use crate::workshop::open_data;

/// What is printed with `--json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// The state is the one after this step.
    pub step: u64,
    /// Its epoch.
    pub epoch: u64,
    /// Mean cross-entropy.
    pub loss: f64,
    /// Fraction wrong.
    pub error: f64,
    /// Fraction whose label is not among the five best.
    pub error_top5: f64,
    /// Test samples.
    pub samples: u64,
    /// Seconds.
    pub seconds: f64,
    /// Hash of the state.
    pub state_sha256: String,
}

/// Evaluates and prints.
///
/// # Errors
/// A checkpoint that does not load, or whose model is not the recipe's; missing data.
pub fn run(args: &EvalArgs) -> Result<(), Exit> {
    let loaded = checkpoint::read(&args.checkpoint)?;
    let mut recipe = recipe(&args.checkpoint, args.recipe.as_deref())?;
    if let Some(path) = &args.data {
        recipe.data.path.clone_from(path);
    }
    let data = open_data(&recipe)?;
    let mut replica = trainer::cpu(&recipe, data, args.threads.unwrap_or_else(cores)).map_err(Exit::from)?;
    replica.load(&loaded.model, &loaded.optimizer).map_err(Exit::from)?;
    replica.set_id(Some(loaded.manifest.state()));
    let state_sha256 = replica.sha256();
    if state_sha256 != loaded.manifest.state_sha256 {
        let reason = format!(
            "{}: the state hashes to {state_sha256}, its manifest says {}; is the recipe the run's own?",
            args.checkpoint.display(),
            loaded.manifest.state_sha256
        );
        return Err(Exit::new(ExitCode::Data, reason));
    }
    replica.join(Arc::new(Solo::new()));
    let outcome = replica.evaluate(loaded.manifest.step).map_err(Exit::from)?;
    let evaluation = Evaluation {
        step: loaded.manifest.step.0,
        epoch: loaded.manifest.epoch.0,
        loss: outcome.loss,
        error: outcome.error,
        error_top5: outcome.error_top5,
        samples: outcome.samples,
        seconds: outcome.seconds,
        state_sha256,
    };
    if args.json {
        // invariant: numbers and strings always serialise.
        println!("{}", serde_json::to_string(&evaluation).unwrap_or_default());
    } else {
        let Evaluation { step, epoch, loss, error, error_top5, samples, .. } = evaluation;
        println!(
            "step {step}, epoch {epoch}: loss {loss:.4}, error {error:.4}, top-5 error {error_top5:.4} on {samples} test images"
        );
    }
    Ok(())
}

/// The recipe given, or that of the run which the checkpoint lies in.
pub(crate) fn recipe(checkpoint: &Path, given: Option<&str>) -> Result<Recipe, Exit> {
    let own = || {
        let run = checkpoint.canonicalize().ok()?.parent()?.parent()?.join("recipe.toml");
        run.is_file().then(|| run.to_string_lossy().into_owned())
    };
    let Some(name) = given.map(str::to_owned).or_else(own) else {
        let reason = format!("{}: no recipe.toml two folders above it; name one by --recipe", checkpoint.display());
        return Err(Exit::new(ExitCode::NoInput, reason));
    };
    Recipe::load(&name, &[]).map_err(|error| Exit::new(error.exit_code(), error.to_string()))
}
