//! What classes are called: for people, and for programs that show predictions.

use std::path::Path;

use lockstep_proto::recipe::{self, DataKind};

use crate::error::DataError;
use crate::tree::Tree;

/// The classes of CIFAR-10, in the order of their labels (its `batches.meta.txt`).
const CIFAR10: [&str; 10] = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// CIFAR-100's own list, beside its binary files.
const CIFAR100: &str = "fine_label_names.txt";

/// Names of a set's classes in the order of their labels, where it has such: an image folder's are its folders.
///
/// # Errors
/// The folder cannot be listed (66).
pub fn class_names(data: &recipe::Data) -> Result<Option<Vec<String>>, DataError> {
    let owned = |name: &str| name.trim().to_owned();
    Ok(match data.kind {
        DataKind::Cifar10 => Some(CIFAR10.map(owned).to_vec()),
        DataKind::Cifar100 => {
            let text = std::fs::read_to_string(Path::new(&data.path).join(CIFAR100)).ok();
            text.map(|text| text.lines().map(owned).filter(|name| !name.is_empty()).collect())
        }
        DataKind::ImageFolder => {
            let tree = Tree::read(Path::new(&data.path))?;
            Some(tree.classes().iter().map(|name| name.to_string_lossy().into_owned()).collect())
        }
        _ => None,
    })
}
