//! Reading: nothing is believed before its hash is.

use std::fs;
use std::path::Path;

use lockstep_proto::manifest::Manifest;
use safetensors::SafeTensors;

use super::{CheckpointError, MODEL_FILE, OPTIMIZER_FILE};
use crate::compute::{Dtype, Named};

/// A checkpoint in memory.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Which state, and from where.
    pub manifest: Manifest,
    /// Parameters and running statistics, sorted by name.
    pub model: Vec<Named>,
    /// The optimizer's state, sorted by name.
    pub optimizer: Vec<Named>,
}

/// Reads the checkpoint in the folder `dir` after checking every file against the manifest.
///
/// # Errors
/// A file is missing, was changed, or does not parse: the file is named.
pub fn read(dir: &Path) -> Result<Loaded, CheckpointError> {
    let manifest = Manifest::verify(dir)?;
    let model = tensors(&dir.join(MODEL_FILE))?;
    let optimizer = tensors(&dir.join(OPTIMIZER_FILE))?;
    Ok(Loaded { manifest, model, optimizer })
}

/// The text of the recipe of the run that a checkpoint lies in, if it still does.
pub fn recipe_of(checkpoint: &Path) -> Option<String> {
    fs::read_to_string(checkpoint.canonicalize().ok()?.parent()?.parent()?.join("recipe.toml")).ok()
}

/// The tensors of one file, sorted by name.
fn tensors(path: &Path) -> Result<Vec<Named>, CheckpointError> {
    let refuse = |reason: String| CheckpointError::Tensors { path: path.to_owned(), reason };
    let bytes = fs::read(path).map_err(|source| CheckpointError::Read { path: path.to_owned(), source })?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| refuse(error.to_string()))?;
    let mut tensors = Vec::with_capacity(file.len());
    for (name, view) in file.iter() {
        let dtype = match view.dtype() {
            safetensors::Dtype::F32 => Dtype::F32,
            safetensors::Dtype::F64 => Dtype::F64,
            other => return Err(refuse(format!("tensor {name} is {other:?}; only F32 and F64 are written here"))),
        };
        tensors.push(Named { name: name.to_owned(), dtype, shape: view.shape().to_vec(), bytes: view.data().to_vec() });
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}
