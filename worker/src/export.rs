//! `export CHECKPOINT --out FILE`: the model alone, for other programs.

use std::collections::HashMap;
use std::path::Path;

use lockstep_proto::exit::ExitCode;
use serde_json::json;

use crate::args::ExportArgs;
use crate::average::PREFIX;
use crate::checkpoint;
use crate::compute::Named;
use crate::exit::Exit;

/// Verifies the checkpoint and writes its model.
///
/// # Errors
/// A checkpoint that does not load; a file that cannot be written.
pub fn run(args: &ExportArgs) -> Result<(), Exit> {
    let bytes = export(&args.checkpoint, &args.out, args.ema)?;
    eprintln!("{}: {bytes} bytes", args.out.display());
    Ok(())
}

/// PyTorch's count of batches for every norm layer, so that nothing is missing there.
fn counters(model: &[Named], steps: u64) -> Vec<(String, i64)> {
    let of = |named: &Named| Some(format!("{}num_batches_tracked", named.name.strip_suffix("running_mean")?));
    model.iter().filter_map(of).map(|name| (name, steps.min(i64::MAX as u64) as i64)).collect()
}

/// Gives the bytes written. The header's metadata has one key, `lockstep`, with the checkpoint's identity as JSON.
fn export(checkpoint: &Path, out: &Path, ema: bool) -> Result<usize, Exit> {
    let mut loaded = checkpoint::read(checkpoint)?;
    if ema {
        let named = |tensor: &Named| Some(Named { name: tensor.name.strip_prefix(PREFIX)?.into(), ..tensor.clone() });
        loaded.model = loaded.optimizer.iter().filter_map(named).collect();
        if loaded.model.is_empty() {
            let reason = format!(
                "--ema: {} holds no average of the weights: its run had no train.ema_decay",
                checkpoint.display()
            );
            return Err(Exit::new(ExitCode::Usage, reason));
        }
    }
    let manifest = &loaded.manifest;
    let identity = json!({
        "step": manifest.step,
        "weights": if ema { "ema" } else { "model" },
        "epoch": manifest.epoch,
        "recipe_sha256": manifest.recipe_sha256,
        "state_sha256": manifest.state_sha256,
        "recipe": checkpoint::recipe_of(checkpoint),
    });
    let metadata = HashMap::from([("lockstep".to_owned(), identity.to_string())]);
    let counters = counters(&loaded.model, manifest.step.0);
    let bytes = checkpoint::serialize_counted(out, (&loaded.model, &counters), Some(metadata))?;
    checkpoint::replace(out, &bytes)?;
    Ok(bytes.len())
}
