//! `dry-run RECIPE`: one batch through everything that a run does — load, forward, backward, optimizer, evaluation — and
//! what it took. Nothing is written.

use std::sync::Arc;
use std::time::Instant;

use lockstep_collective::Solo;
use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Generation, Lineage, StateId, Step};
use lockstep_proto::message::{Skipped, StepPlan};
use lockstep_proto::plan::Course;
use lockstep_proto::recipe::{Precision, Recipe};
use lockstep_proto::split::num_chunks;
use serde_json::json;

use crate::args::{DryRunArgs, cores};
use crate::exit::Exit;
use crate::program::{FlatLayout, ParamId};
use crate::tuning::Tuning;
use crate::workshop::open_data;
use crate::{isa, optim, outline, predict};

/// Chunks of the test set that are evaluated.
const EVAL_CHUNKS: u64 = 2;

/// Tries it and prints.
///
/// # Errors
/// Whatever would end a run in its first step.
pub fn run(args: &DryRunArgs) -> Result<(), Exit> {
    let mut recipe = Recipe::load(&args.recipe, &args.set).map_err(|e| Exit::new(e.exit_code(), e.to_string()))?;
    let few = EVAL_CHUNKS * u64::from(recipe.train.eval_chunk);
    recipe.data.test_limit = if recipe.data.test_limit == 0 { few } else { recipe.data.test_limit.min(few) };
    let isa = isa::best()?;
    lockstep_torch::limit_isa(isa).map_err(|error| Exit::new(ExitCode::Config, error.to_string()))?;
    let threads = args.threads.unwrap_or_else(cores).max(1);

    let start = Instant::now();
    let data = open_data(&recipe)?;
    let opened = start.elapsed().as_secs_f64();
    let (identity, shape) = (data.identity().clone(), data.shape());
    let course = Course::new(&recipe, identity.num_train);
    let mut replica = predict::cpu(&recipe, data, threads).map_err(Exit::from)?;
    replica.begin().map_err(Exit::from)?;
    replica.set_id(Some(StateId { lineage: Lineage(1), generation: Generation(1), step: Step(0) }));
    replica.join(Arc::new(Solo::new()));

    let at = course.at(Step(1));
    let chunks = num_chunks(at.batch.len, recipe.train.chunk);
    let plan = StepPlan { step: Step(1), epoch: at.epoch, lr: at.lr, batch: at.batch, shards: vec![chunks] };
    let step = replica.step(Generation(1), &plan).map_err(Exit::from)?;
    let evaluation = replica.evaluate(Step(1)).map_err(Exit::from)?;

    let program = replica.program();
    let layout = FlatLayout::new(program);
    let tuning = Tuning::new(&recipe, program, &layout);
    let numel = |(i, param): (usize, &crate::program::Param)| (tuning.is_frozen(ParamId(i)), param.numel());
    let sizes: Vec<(bool, usize)> = program.params.iter().enumerate().map(numel).collect();
    let frozen: usize = sizes.iter().filter(|(frozen, _)| *frozen).map(|(_, len)| len).sum();
    let master = if recipe.train.precision == Precision::Fp64 { 8 } else { 4 };
    let value = if recipe.train.precision == Precision::Bf16 { 2 } else { master };
    let buffers = optim::buffers(recipe.optim.solver).len();
    let shapes = outline::shapes(program, shape);
    let outputs: Vec<(&str, [usize; 3])> =
        outline::outputs(program).into_iter().map(|(name, slot)| (name, shapes[slot.0])).collect();
    let traffic = outline::traffic(program, &layout, (&tuning, &recipe.train), master);
    let sent = [&traffic.buckets, &traffic.norms].map(|list| list.iter().sum::<usize>());
    let values = at.batch.len as usize * outline::value_bytes(program, shape, value);
    let found = json!({
        "dry_run": recipe.name,
        "model": recipe.model.title(),
        "parameters": program.num_parameters(),
        "frozen": frozen,
        "data": { "name": identity.name, "train": identity.num_train, "classes": identity.num_classes, "image": shape,
                  "open_s": opened },
        "batch": at.batch.len,
        "chunks": chunks,
        "threads": threads,
        "isa": isa,
        "total_steps": course.total_steps(),
        "shapes": outputs,
        "bytes": { "parameters": layout.len * master, "gradient": layout.len * master,
                   "optimizer": buffers * layout.len * master, "values": values, "peak": peak() },
        "traffic": { "gradient": sent[0], "buckets": traffic.buckets.len(), "norm": sent[1],
                     "norm_messages": traffic.norms.len() },
        "step": { "loss": step.loss, "error": step.wrong as f64 / step.samples as f64, "lr": at.lr,
                  "samples": step.samples, "skipped": step.skipped.len(),
                  "data_s": step.times.data, "compute_s": step.times.compute, "wall_s": step.times.wall },
        "evaluation": { "loss": evaluation.loss, "error": evaluation.error, "samples": evaluation.samples,
                        "skipped": evaluation.skipped.len(),
                        "seconds": evaluation.seconds },
    });
    if args.json {
        println!("{found}");
        return Ok(());
    }
    let count = |key: &str| found[key].as_u64().unwrap_or(0);
    println!("model       {}, {} parameters, {frozen} of them frozen", recipe.model.title(), count("parameters"));
    let [h, w, c] = shape;
    println!(
        "data        {}: {} training images of {h}×{w}×{c}, {} classes; opened in {opened:.1} s",
        identity.name, identity.num_train, identity.num_classes
    );
    println!(
        "run         {} steps; a batch of {} is {chunks} chunks, {threads} threads",
        course.total_steps(),
        at.batch.len
    );
    for (name, [c, h, w]) in &outputs {
        println!("  {name:<10}{c:>5} × {h} × {w}");
    }
    let bytes = |key: &str| megabytes(found["bytes"][key].as_u64().unwrap_or(0));
    println!(
        "memory      parameters {}, gradient {}, optimizer {}, values kept for backward {}; peak of the process {}",
        bytes("parameters"),
        bytes("gradient"),
        bytes("optimizer"),
        bytes("values"),
        bytes("peak")
    );
    println!(
        "traffic     of a step, with more than one worker: gradient {} in {} buckets, {} of BatchNorm in {} messages",
        megabytes(sent[0] as u64),
        traffic.buckets.len(),
        megabytes(sent[1] as u64),
        traffic.norms.len()
    );
    println!(
        "step 1      loss {:.4}, rate {}; data {:.2} s, compute {:.2} s (the first step is slower than later ones)",
        step.loss, at.lr, step.times.data, step.times.compute
    );
    println!(
        "evaluation  loss {:.4}, error {:.4} on {} test images, {:.2} s",
        evaluation.loss, evaluation.error, evaluation.samples, evaluation.seconds
    );
    for Skipped { file, reason, .. } in step.skipped.iter().chain(&evaluation.skipped) {
        println!("skipped     {file}: {reason}");
    }
    println!("Nothing was written.");
    Ok(())
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// The most memory that this process had, bytes; 0 where the system does not tell.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}
