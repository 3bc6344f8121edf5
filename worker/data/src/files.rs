//! Image files that somebody named, as a test set without labels: for predictions.

use std::path::PathBuf;

use lockstep_proto::draws::Draws;
use lockstep_proto::message::DataIdentity;
use lockstep_proto::recipe;

use crate::error::DataError;
use crate::image::Transform;
use crate::image_folder::{read, with_workspace};
use crate::{Dataset, Split};

/// Files in the order in which they were named, transformed as a recipe's evaluation does. There is no training split, and
/// every label is 0.
pub struct Files {
    paths: Vec<PathBuf>,
    identity: DataIdentity,
    transform: Transform,
}

impl Files {
    /// For a model of so many classes; no file is opened.
    pub fn new(paths: Vec<PathBuf>, num_classes: u32, data: &recipe::Data) -> Self {
        let identity = DataIdentity {
            name: "files".to_owned(),
            num_train: 0,
            num_test: paths.len() as u64,
            num_classes,
            fingerprint: String::new(),
        };
        Self { paths, identity, transform: Transform::new(data) }
    }
}

impl Dataset for Files {
    fn identity(&self) -> &DataIdentity {
        &self.identity
    }

    fn shape(&self) -> [usize; 3] {
        let side = self.transform.eval_side();
        [side, side, 3]
    }

    fn label(&self, _split: Split, _sample: u64) -> u32 {
        0
    }

    fn image(&self, _split: Split, sample: u64, draws: Option<&mut Draws>, out: &mut [f32]) -> Result<(), DataError> {
        let path = &self.paths[sample as usize];
        let mut bytes = Vec::new();
        read(path, &mut bytes)?;
        let result = with_workspace(|workspace| self.transform.apply(&bytes, draws, workspace, out));
        let root = path.parent().unwrap_or(path).to_owned();
        result.map_err(|error| DataError::Image { path: path.clone(), error, root })
    }
}
