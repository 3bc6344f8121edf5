//! `bench step RECIPE`: images a second of one replica, everything included that a step of a run includes.

use std::sync::Arc;
use std::time::Instant;

use lockstep_collective::Solo;
use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Generation, Lineage, StateId, Step};
use lockstep_proto::message::StepPlan;
use lockstep_proto::plan::Course;
use lockstep_proto::recipe::Recipe;
use lockstep_proto::split::num_chunks;
use serde_json::json;

use super::{median, synthetic};
use crate::args::{BenchStepArgs, cores};
use crate::compute::StepOutcome;
use crate::exit::Exit;
use crate::isa;
use crate::session::Workshop as _;
use crate::workshop::{Replicas, open_data};

/// Measures and prints one JSON line.
///
/// # Errors
/// A recipe that makes no sense, missing data.
pub fn run(args: &BenchStepArgs) -> Result<(), Exit> {
    let wrong = |error: lockstep_proto::recipe::RecipeError| Exit::new(error.exit_code(), error.to_string());
    let device = args.device()?;
    let defaults = if device.starts_with("cuda") { Recipe::ON_GPUS.map(str::to_owned).to_vec() } else { Vec::new() };
    let mut recipe = Recipe::load_over(&defaults, &args.recipe, &args.set).map_err(wrong)?;
    recipe.train.batch = args.batch.unwrap_or(recipe.train.batch);
    if let Some(precision) = args.precision {
        recipe.train.precision = precision.into();
    }
    // Long enough for the measurement, whatever the recipe says.
    recipe.train.epochs = u64::MAX;
    recipe.train.max_steps = 0;
    if args.steps == 0 {
        return Err(Exit::new(ExitCode::Usage, "--steps 0: nothing to measure"));
    }
    recipe.check().map_err(wrong)?;
    let isa = isa::best()?;
    lockstep_torch::limit_isa(isa).map_err(|error| Exit::new(ExitCode::Config, error.to_string()))?;

    let threads = args.threads.unwrap_or_else(cores).max(1);
    let data = if args.synthetic { synthetic::open(&recipe) } else { open_data(&recipe)? };
    let replica_data = data.identity().name.clone();
    let course = Course::new(&recipe, data.identity().num_train);
    let mut replica = Replicas::new(&device, threads, &args.cuda)?.build(&recipe, data).map_err(Exit::from)?;
    replica.initialise();
    replica.set_id(Some(StateId { lineage: Lineage(1), generation: Generation(1), step: Step(0) }));
    replica.join(Arc::new(Solo::new()));

    let plan = |step: Step| {
        let at = course.at(step);
        let shard = num_chunks(at.batch.len, recipe.train.chunk);
        StepPlan { step, epoch: at.epoch, lr: at.lr, batch: at.batch, shards: vec![shard] }
    };
    for step in (1..=args.warm_up).map(Step) {
        replica.step(Generation(1), &plan(step)).map_err(Exit::from)?;
    }
    // As in a run: on a device, outcomes come while the next step is enqueued.
    let mut last = Instant::now();
    let (mut seconds, mut rates, mut times) = (Vec::new(), Vec::new(), [Vec::new(), Vec::new(), Vec::new()]);
    let mut note = |known: Vec<(Step, StepOutcome)>| {
        let elapsed = last.elapsed().as_secs_f64() / known.len().max(1) as f64;
        for (_, outcome) in known {
            last = Instant::now();
            seconds.push(elapsed);
            rates.push(outcome.samples as f64 / elapsed);
            for (all, one) in times.iter_mut().zip([outcome.times.data, outcome.times.compute, outcome.times.comm]) {
                all.push(one);
            }
        }
    };
    let began = Instant::now();
    for step in (1..=args.steps).map(|step| Step(args.warm_up + step)) {
        note(replica.advance(Generation(1), &plan(step)).map_err(Exit::from)?);
    }
    note(replica.settle().map_err(Exit::from)?);
    let elapsed = began.elapsed().as_secs_f64();
    let [data_s, compute_s, comm_s] = times.map(median);
    let line = json!({
        "bench": "step",
        "recipe": recipe.name,
        "device": device,
        "batch": recipe.train.batch,
        "precision": recipe.train.precision,
        "batch_norm": recipe.train.batch_norm,
        "reduction": recipe.train.reduction,
        "chunk": recipe.train.chunk,
        "data": replica_data,
        "threads": threads,
        "isa": isa,
        "steps": args.steps,
        "seconds": median(seconds),
        "images_per_s": median(rates),
        "elapsed": elapsed,
        "kernels": replica.nodes(),
        "data_s": data_s,
        "compute_s": compute_s,
        "comm_s": comm_s,
    });
    println!("{line}");
    Ok(())
}
