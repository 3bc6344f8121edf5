//! Weights of another training to begin with: a safetensors file with torchvision's names, as `lockstep export` writes it.
//!
//! ```text
//! file ─► by name and shape ─► parameters, running statistics      step 0
//!                └ the classifier's are left out with model.head = "replace" (fine-tuning on other classes)
//! ```

use std::path::{Path, PathBuf};

use lockstep_proto::exit::ExitCode;
use lockstep_proto::recipe::{Group, Head};
use safetensors::tensor::TensorView;
use safetensors::{Dtype as Stored, SafeTensors};

use crate::compute::{Dtype, Named};

/// PyTorch counts batches there; it decides nothing.
const COUNTERS: &str = "num_batches_tracked";
const OTHER_CLASSES: &str = "with model.head = \"replace\" the model begins with a classifier of its own";
const CONVERT: &str = "in Python `safetensors.torch.save_file(model.state_dict(), …)` writes one";

/// Its first extent is the number of classes.
pub const CLASSIFIER: &str = "fc.weight";

/// Why a file is no start for a model.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// It is not there, or cannot be read.
    #[error("weights {}: {error}; every worker that may begin the run must see model.weights", path.display())]
    Unreadable {
        /// Where.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// It is something else, or of another model.
    #[error("weights {}: {what}", path.display())]
    Unfit {
        /// Where.
        path: PathBuf,
        /// Which tensor, and what is wrong.
        what: String,
    },
}

impl WeightsError {
    /// What the process exits with.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Unreadable { .. } => ExitCode::NoInput,
            Self::Unfit { .. } => ExitCode::Data,
        }
    }
}

/// Puts what is in the file in the place of `model`'s numbers, but for a classifier that is to be replaced. Gives the names
/// that kept their own start.
///
/// # Errors
/// A file that is missing, is no safetensors file, lacks a tensor, or has one of another shape or one that the model does
/// not know.
pub fn put_into(model: &mut [Named], path: &Path, head: Head) -> Result<Vec<String>, WeightsError> {
    let unfit = |what: String| WeightsError::Unfit { path: path.to_owned(), what };
    let bytes = std::fs::read(path).map_err(|error| WeightsError::Unreadable { path: path.to_owned(), error })?;
    let file =
        SafeTensors::deserialize(&bytes).map_err(|error| unfit(format!("no safetensors file: {error}; {CONVERT}")))?;
    let is_head = |name: &str| Group::of(name) == Some(Group::Head);
    let remedy = |name: &str, differs_in_classes: bool| {
        if is_head(name) && differs_in_classes { OTHER_CLASSES } else { "another arch or width" }
    };
    let mut kept = Vec::new();
    for named in model.iter_mut() {
        if head == Head::Replace && is_head(&named.name) {
            kept.push(named.name.clone());
            continue;
        }
        match file.tensor(&named.name) {
            Ok(view) if view.shape() == named.shape => {
                named.bytes = numbers(&view, named.dtype).map_err(|what| unfit(format!("{}: {what}", named.name)))?;
            }
            Ok(view) => {
                let (have, want) = (view.shape(), &named.shape);
                let remedy = remedy(&named.name, view.shape().get(1..) == named.shape.get(1..));
                return Err(unfit(format!("`{}` is {have:?}, the model's is {want:?}: {remedy}", named.name)));
            }
            Err(_) if is_head(&named.name) => {
                return Err(unfit(format!("`{}` is missing: {OTHER_CLASSES}", named.name)));
            }
            Err(_) => return Err(unfit(format!("`{}` is missing: it is of another model", named.name))),
        }
    }
    let is_known = |name: &str| model.iter().any(|named| named.name == name);
    let is_dropped = |name: &str| name.ends_with(COUNTERS) || head == Head::Replace && is_head(name);
    let unknown = file.names().into_iter().find(|name| !is_known(name) && !is_dropped(name));
    match unknown {
        Some(name) => Err(unfit(format!("`{name}` is not in the model: it is of another one"))),
        None => Ok(kept),
    }
}

/// Classes of the classifier in a file.
///
/// # Errors
/// A file that is missing, is no safetensors file, or has no classifier.
pub fn num_classes(path: &Path) -> Result<usize, WeightsError> {
    let unfit = |what: String| WeightsError::Unfit { path: path.to_owned(), what };
    let bytes = std::fs::read(path).map_err(|error| WeightsError::Unreadable { path: path.to_owned(), error })?;
    let file =
        SafeTensors::deserialize(&bytes).map_err(|error| unfit(format!("no safetensors file: {error}; {CONVERT}")))?;
    let head =
        file.tensor(CLASSIFIER).map_err(|_| unfit(format!("`{CLASSIFIER}` is missing: it is of another model")))?;
    head.shape().first().copied().ok_or_else(|| unfit(format!("`{CLASSIFIER}` has no extent")))
}

/// The recipe that `lockstep export` put into a file.
pub fn recipe_in(path: &Path) -> Option<String> {
    let bytes = std::fs::read(path).ok()?;
    let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
    let identity: serde_json::Value = serde_json::from_str(header.metadata().as_ref()?.get("lockstep")?).ok()?;
    Some(identity.get("recipe")?.as_str()?.to_owned())
}

/// The numbers of a tensor, in the model's type.
fn numbers(view: &TensorView<'_>, dtype: Dtype) -> Result<Vec<u8>, String> {
    let data = view.data();
    let values: Vec<f64> = match view.dtype() {
        Stored::F32 => data.as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect(),
        Stored::F64 => data.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect(),
        // The upper half of a 32-bit float.
        Stored::BF16 => {
            let wide = |bytes: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
            data.as_chunks().0.iter().map(|bytes| f64::from(wide(bytes))).collect()
        }
        other => return Err(format!("is {other:?}; F32, F64 and BF16 are read")),
    };
    Ok(match dtype {
        Dtype::F64 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Dtype::F32 => values.iter().flat_map(|value| (*value as f32).to_le_bytes()).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::serialize_counted;

    fn named(name: &str, shape: &[usize], start: f32) -> Named {
        let count = shape.iter().product::<usize>();
        let bytes = (0..count).flat_map(|i| (start + i as f32).to_le_bytes()).collect();
        Named { name: name.into(), dtype: Dtype::F32, shape: shape.to_vec(), bytes }
    }

    fn file(tensors: &[Named]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), serialize_counted(file.path(), (tensors, &[]), None).unwrap()).unwrap();
        file
    }

    fn model() -> Vec<Named> {
        vec![named("conv1.weight", &[2, 3], 100.0), named("fc.bias", &[4], 200.0), named("fc.weight", &[4, 2], 300.0)]
    }

    #[test]
    fn what_fits_is_taken_and_a_classifier_of_other_classes_only_left_out_when_asked_for() {
        let counters = named("bn1.num_batches_tracked", &[1], 0.0);
        let same = file(&[
            named("conv1.weight", &[2, 3], 1.0),
            named("fc.bias", &[4], 2.0),
            named("fc.weight", &[4, 2], 3.0),
            counters,
        ]);
        let mut ours = model();
        assert_eq!(put_into(&mut ours, same.path(), Head::Keep).unwrap(), Vec::<String>::new());
        assert_eq!(ours[2], named("fc.weight", &[4, 2], 3.0));

        let headless = file(&[named("conv1.weight", &[2, 3], 1.0)]);
        let other = file(&[
            named("conv1.weight", &[2, 3], 1.0),
            named("fc.bias", &[1000], 2.0),
            named("fc.weight", &[1000, 2], 3.0),
        ]);
        for source in [&same, &other, &headless] {
            let mut ours = model();
            assert_eq!(put_into(&mut ours, source.path(), Head::Replace).unwrap(), ["fc.bias", "fc.weight"]);
            assert_eq!((&ours[0], &ours[1..]), (&named("conv1.weight", &[2, 3], 1.0), &model()[1..]));
        }
        for (source, what) in [(&other, "`fc.bias` is [1000], the model's is [4]"), (&headless, "`fc.bias` is missing")]
        {
            let error = put_into(&mut model(), source.path(), Head::Keep).unwrap_err();
            assert!(error.to_string().ends_with(&format!("{what}: {OTHER_CLASSES}")), "{error}");
            assert_eq!(error.exit_code(), ExitCode::Data);
        }
    }

    #[test]
    fn another_model_is_refused_with_the_tensor() {
        let refused = |tensors: &[Named]| put_into(&mut model(), file(tensors).path(), Head::Keep).unwrap_err();
        let head = [named("fc.bias", &[4], 2.0), named("fc.weight", &[4, 2], 3.0)];
        let [bias, weight] = head;
        let wider = refused(&[named("conv1.weight", &[4, 3], 1.0), bias.clone(), weight.clone()]);
        assert!(wider.to_string().contains("`conv1.weight` is [4, 3], the model's is [2, 3]"), "{wider}");
        assert_eq!(wider.exit_code(), ExitCode::Data);
        let narrow = [named("conv1.weight", &[2, 3], 1.0), bias.clone(), named("fc.weight", &[4, 3], 3.0)];
        let narrow = refused(&narrow).to_string();
        assert!(narrow.ends_with("`fc.weight` is [4, 3], the model's is [4, 2]: another arch or width"), "{narrow}");
        assert!(refused(&[bias.clone(), weight.clone()]).to_string().contains("`conv1.weight` is missing"));
        let more = refused(&[named("conv1.weight", &[2, 3], 1.0), named("conv2.weight", &[1], 0.0), bias, weight]);
        assert!(more.to_string().contains("`conv2.weight` is not in the model"), "{more}");
        let missing = put_into(&mut model(), Path::new("/nowhere.safetensors"), Head::Keep).unwrap_err();
        assert_eq!(missing.exit_code(), ExitCode::NoInput);
        let text = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(text.path(), "no tensors").unwrap();
        assert_eq!(put_into(&mut model(), text.path(), Head::Keep).unwrap_err().exit_code(), ExitCode::Data);
    }
}
