//! `eval`: loss, top-1 and top-5 of a checkpoint or of a file of weights on the whole test set; or what it sees in images
//! that somebody names.
//!
//! ```text
//! checkpoints/step-N     ─┐                    ┌─► loss, top-1, top-5
//!                         ├─► replica ─────────┼─► --logits: every image's, for other programs
//! model.safetensors      ─┘     ▲              └─► --image: the best five classes of each
//!            recipe.data, or --image FILE
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_collective::Solo;
use lockstep_data::{Dataset, Files};
use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::Step;
use lockstep_proto::message::Skipped;
use lockstep_proto::recipe::{DataKind, Head, Recipe, RecipeError};
use serde::Serialize;
use serde_json::json;

use crate::args::{EvalArgs, cores};
use crate::checkpoint::{self, Loaded};
use crate::exit::Exit;
use crate::predict::{self, Predictions, Predictor};
use crate::weights;
use crate::workshop::open_data;

/// So many classes are shown of an image.
const SHOWN: usize = 5;

/// What is printed with `--json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// The state is the one after this step; not known of a bare file.
    pub step: Option<u64>,
    /// Its epoch.
    pub epoch: Option<u64>,
    /// Mean cross-entropy.
    pub loss: f64,
    /// Fraction wrong.
    pub error: f64,
    /// Fraction whose label is not among the five best.
    pub error_top5: f64,
    /// 1 − `error`.
    pub top1: f64,
    /// 1 − `error_top5`.
    pub top5: f64,
    /// Test samples that the figures are of.
    pub samples: u64,
    /// Test samples that were left out because they cannot be read.
    pub skipped: Vec<Skipped>,
    /// Seconds.
    pub seconds: f64,
    /// Hash of the state.
    pub state_sha256: String,
}

/// Where the numbers come from.
enum Source {
    Checkpoint(Box<Loaded>),
    File(PathBuf),
}

/// Evaluates and prints.
///
/// # Errors
/// A checkpoint or file that does not load, or whose model is not the recipe's; missing data; nowhere to write.
pub fn run(args: &EvalArgs) -> Result<(), Exit> {
    if args.pixels && args.logits.is_none() {
        return Err(Exit::new(ExitCode::Usage, "--pixels go into a file: name it by --logits"));
    }
    let source = if args.checkpoint.is_file() {
        Source::File(args.checkpoint.clone())
    } else {
        Source::Checkpoint(Box::new(checkpoint::read(&args.checkpoint)?))
    };
    let recipe = recipe_for(args)?;
    let num_classes = source.num_classes(args)?;
    let data: Arc<dyn Dataset> = if args.image.is_empty() {
        open_data(&recipe)?
    } else if recipe.data.kind == DataKind::ImageFolder {
        Arc::new(Files::new(args.image.clone(), num_classes, &recipe.data))
    } else {
        let reason = "--image: the recipe's images have one size, files have any; a recipe with data.kind = \
                      \"image-folder\" says how files are cut";
        return Err(Exit::new(ExitCode::Usage, reason));
    };
    let of_data = data.identity().num_classes;
    if of_data != num_classes {
        let reason =
            format!("{}: a classifier of {num_classes} classes, but the data has {of_data}", args.checkpoint.display());
        return Err(Exit::new(ExitCode::Data, reason));
    }
    let mut replica = predict::cpu(&recipe, data, args.threads.unwrap_or_else(cores)).map_err(Exit::from)?;
    let step = source.put_into(&mut *replica, args)?;
    replica.join(Arc::new(Solo::new()));

    let mut predictions = None;
    if args.logits.is_some() || !args.image.is_empty() {
        predictions = Some(replica.predict(step, args.pixels).map_err(Exit::from)?);
    }
    if let (Some(path), Some(found)) = (&args.logits, &predictions) {
        let bytes = found.serialize(recipe.train.precision);
        let bytes = bytes.map_err(|error| Exit::new(ExitCode::Software, format!("{}: {error}", path.display())))?;
        checkpoint::replace(path, &bytes)?;
    }
    match predictions {
        Some(found) if !args.image.is_empty() => show_images(args, &recipe, &found),
        _ => evaluate(args, &source, &mut *replica, step)?,
    }
    Ok(())
}

fn evaluate(args: &EvalArgs, source: &Source, replica: &mut dyn Predictor, step: Step) -> Result<(), Exit> {
    let outcome = replica.evaluate(step).map_err(Exit::from)?;
    let known = match source {
        Source::Checkpoint(loaded) => Some((loaded.manifest.step.0, loaded.manifest.epoch.0)),
        Source::File(_) => None,
    };
    let evaluation = Evaluation {
        step: known.map(|(step, _)| step),
        epoch: known.map(|(_, epoch)| epoch),
        loss: outcome.loss,
        error: outcome.error,
        error_top5: outcome.error_top5,
        top1: 1.0 - outcome.error,
        top5: 1.0 - outcome.error_top5,
        samples: outcome.samples,
        skipped: outcome.skipped,
        seconds: outcome.seconds,
        state_sha256: replica.sha256(),
    };
    if args.json {
        // invariant: numbers and strings always serialise.
        println!("{}", serde_json::to_string(&evaluation).unwrap_or_default());
        return Ok(());
    }
    let Evaluation { loss, error, error_top5, top1, top5, samples, skipped, .. } = evaluation;
    for Skipped { file, reason, .. } in &skipped {
        println!("skipped {file}: {reason}");
    }
    let skipped = if skipped.is_empty() { String::new() } else { format!(", {} skipped", skipped.len()) };
    let whose = known.map_or_else(|| args.checkpoint.display().to_string(), |(k, e)| format!("step {k}, epoch {e}"));
    println!(
        "{whose}: top-1 {:.2} %, top-5 {:.2} %, loss {loss:.4} (error {error:.4}, top-5 error {error_top5:.4}) on \
         {samples} test images{skipped}",
        100.0 * top1,
        100.0 * top5
    );
    Ok(())
}

/// The best classes of every file.
fn show_images(args: &EvalArgs, recipe: &Recipe, found: &Predictions) {
    // Names are a help; where the training set is not at hand there are numbers.
    let names = lockstep_data::class_names(&recipe.data).ok().flatten().unwrap_or_default();
    let name = |class: usize| names.get(class).filter(|_| names.len() == found.num_classes);
    for (i, path) in args.image.iter().enumerate() {
        let best = found.best(i, SHOWN);
        if args.json {
            let best: Vec<_> = best
                .iter()
                .map(|(class, p)| json!({ "class": class, "name": name(*class), "probability": p }))
                .collect();
            println!("{}", json!({ "image": path, "best": best }));
        } else {
            let one = |(class, p): &(usize, f64)| {
                let name = name(*class).cloned().unwrap_or_else(|| format!("class {class}"));
                format!("{name} {:.1} %", 100.0 * p)
            };
            println!("{}: {}", path.display(), best.iter().map(one).collect::<Vec<_>>().join(", "));
        }
    }
}

impl Source {
    /// Classes of its classifier.
    fn num_classes(&self, args: &EvalArgs) -> Result<u32, Exit> {
        let found = match self {
            Self::Checkpoint(loaded) => {
                let head = loaded.model.iter().find(|named| named.name == weights::CLASSIFIER);
                head.and_then(|named| named.shape.first().copied())
            }
            Self::File(path) => {
                let found = weights::num_classes(path);
                Some(found.map_err(|error| Exit::new(error.exit_code(), error.to_string()))?)
            }
        };
        let missing =
            || Exit::new(ExitCode::Data, format!("{}: no tensor `{}`", args.checkpoint.display(), weights::CLASSIFIER));
        found.and_then(|classes| u32::try_from(classes).ok()).ok_or_else(missing)
    }

    /// Gives its numbers to the replica, and the step that they are of.
    fn put_into(&self, replica: &mut dyn Predictor, args: &EvalArgs) -> Result<Step, Exit> {
        let loaded = match self {
            Self::Checkpoint(loaded) => loaded,
            Self::File(path) => {
                replica.initialise();
                replica.take_weights(path, Head::Keep).map_err(Exit::from)?;
                return Ok(Step(0));
            }
        };
        replica.load(&loaded.model, &loaded.optimizer).map_err(Exit::from)?;
        replica.set_id(Some(loaded.manifest.state()));
        let (found, promised) = (replica.sha256(), &loaded.manifest.state_sha256);
        if found != *promised {
            let reason = format!(
                "{}: the state hashes to {found}, its manifest says {promised}; is the recipe the run's own?",
                args.checkpoint.display(),
            );
            return Err(Exit::new(ExitCode::Data, reason));
        }
        Ok(loaded.manifest.step)
    }
}

/// The recipe of the command, with what it changes.
fn recipe_for(args: &EvalArgs) -> Result<Recipe, Exit> {
    let mut sets = args.set.clone();
    if let Some(path) = &args.data {
        // a literal string of TOML, so that nothing in a path means anything
        sets.push(format!("data.path='{path}'"));
    }
    recipe(&args.checkpoint, args.recipe.as_deref(), &sets)
}

/// The recipe given; or that of the run which the checkpoint lies in; or that which an exported file carries.
pub(crate) fn recipe(checkpoint: &Path, given: Option<&str>, sets: &[String]) -> Result<Recipe, Exit> {
    let refuse = |error: RecipeError| Exit::new(error.exit_code(), error.to_string());
    let own = || {
        let run = checkpoint.canonicalize().ok()?.parent()?.parent()?.join("recipe.toml");
        run.is_file().then(|| run.to_string_lossy().into_owned())
    };
    if let Some(name) = given.map(str::to_owned).or_else(own) {
        return Recipe::load(&name, sets).map_err(refuse);
    }
    if let Some(text) = weights::recipe_in(checkpoint) {
        return Recipe::with_sets(&text, &checkpoint.display().to_string(), sets).map_err(refuse);
    }
    let reason = if checkpoint.is_file() {
        format!("{}: of which model? It carries no recipe; name one by --recipe", checkpoint.display())
    } else {
        format!("{}: no recipe.toml two folders above it; name one by --recipe", checkpoint.display())
    };
    Err(Exit::new(ExitCode::NoInput, reason))
}
