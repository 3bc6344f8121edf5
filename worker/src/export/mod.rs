//! `export CHECKPOINT --out PATH`: the model alone, for other programs.

mod huggingface;

use std::collections::HashMap;
use std::path::Path;

use lockstep_proto::exit::ExitCode;
use serde_json::json;

use crate::args::{ExportArgs, ExportFormat};
use crate::average::PREFIX;
use crate::checkpoint::{self, CheckpointError, Loaded, MODEL_FILE};
use crate::compute::Named;
use crate::evaluate_cmd;
use crate::exit::Exit;
use crate::weights::CLASSIFIER;

/// Verifies the checkpoint and writes its model.
///
/// # Errors
/// A checkpoint that does not load; a file that cannot be written; a model that the format has no place for.
pub fn run(args: &ExportArgs) -> Result<(), Exit> {
    let mut loaded = checkpoint::read(&args.checkpoint)?;
    if args.ema {
        take_average(&mut loaded, &args.checkpoint)?;
    }
    if args.format == ExportFormat::Safetensors {
        spare(&args.out)?;
    }
    let bytes = match args.format {
        ExportFormat::Safetensors => file(&loaded, args)?,
        ExportFormat::Huggingface => folder(&loaded, args)?,
    };
    eprintln!("{}: {bytes} bytes", args.out.display());
    Ok(())
}

/// What is there already is written over only if it is such a file.
fn spare(out: &Path) -> Result<(), Exit> {
    let is_ours = |bytes: &[u8]| safetensors::SafeTensors::read_metadata(bytes).is_ok();
    match std::fs::read(out) {
        Ok(bytes) if !bytes.is_empty() && !is_ours(&bytes) => {
            let reason = format!("--out {}: there is a file that is no safetensors file; name another", out.display());
            Err(Exit::new(ExitCode::CantCreate, reason))
        }
        _ => Ok(()),
    }
}

/// The average of the weights in the place of the weights.
fn take_average(loaded: &mut Loaded, checkpoint: &Path) -> Result<(), Exit> {
    let named = |tensor: &Named| Some(Named { name: tensor.name.strip_prefix(PREFIX)?.into(), ..tensor.clone() });
    loaded.model = loaded.optimizer.iter().filter_map(named).collect();
    if loaded.model.is_empty() {
        let reason =
            format!("--ema: {} holds no average of the weights: its run had no train.ema_decay", checkpoint.display());
        return Err(Exit::new(ExitCode::Usage, reason));
    }
    Ok(())
}

/// PyTorch's count of batches for every norm layer, so that nothing is missing there.
fn counters(model: &[Named], steps: u64) -> Vec<(String, i64)> {
    let of = |named: &Named| Some(format!("{}num_batches_tracked", named.name.strip_suffix("running_mean")?));
    model.iter().filter_map(of).map(|name| (name, steps.min(i64::MAX as u64) as i64)).collect()
}

/// Gives the bytes written. The header's metadata has one key, `lockstep`, with the checkpoint's identity as JSON.
fn file(loaded: &Loaded, args: &ExportArgs) -> Result<usize, CheckpointError> {
    let (manifest, out) = (&loaded.manifest, args.out.as_path());
    let identity = json!({
        "step": manifest.step,
        "weights": if args.ema { "ema" } else { "model" },
        "epoch": manifest.epoch,
        "recipe_sha256": manifest.recipe_sha256,
        "state_sha256": manifest.state_sha256,
        "recipe": checkpoint::recipe_of(&args.checkpoint),
    });
    let metadata = HashMap::from([("lockstep".to_owned(), identity.to_string())]);
    let counters = counters(&loaded.model, manifest.step.0);
    let bytes = checkpoint::serialize_counted(out, (&loaded.model, &counters), Some(metadata))?;
    checkpoint::replace(out, &bytes)?;
    Ok(bytes.len())
}

/// Hugging Face's layout; gives the bytes written.
fn folder(loaded: &Loaded, args: &ExportArgs) -> Result<usize, Exit> {
    let recipe = evaluate_cmd::recipe(&args.checkpoint, args.recipe.as_deref(), &[])?;
    let head = loaded.model.iter().find(|named| named.name == CLASSIFIER);
    let num_classes = head.and_then(|named| named.shape.first().copied()).unwrap_or(0);
    let labels = match &args.labels {
        Some(path) => Some(huggingface::read_labels(path)?),
        None => match lockstep_data::class_names(&recipe.data) {
            Ok(names) => names.filter(|names| names.len() == num_classes),
            Err(error) => {
                tracing::warn!("no names of classes ({error}); --labels FILE gives some");
                None
            }
        },
    };
    let config = huggingface::config(&recipe, num_classes, labels.as_deref())?;
    let refuse = |error: std::io::Error| {
        Exit::new(ExitCode::CantCreate, format!("cannot write {}: {error}", args.out.display()))
    };
    std::fs::create_dir_all(&args.out).map_err(refuse)?;
    let model = args.out.join(MODEL_FILE);
    let counters = counters(&loaded.model, loaded.manifest.step.0);
    // Without metadata of ours: programs there look for `format = pt`, and two keys would have no fixed order.
    let tensors = checkpoint::serialize_counted(&model, (&loaded.model, &counters), None)?;
    let config = huggingface::text(&config);
    checkpoint::replace(&model, &tensors)?;
    checkpoint::replace(&args.out.join("config.json"), &config)?;
    Ok(tensors.len() + config.len())
}
