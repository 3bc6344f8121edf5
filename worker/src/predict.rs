//! What a model says of every test image, one by one: for comparisons with other programs.

use std::path::Path;
use std::sync::Arc;

use lockstep_data::{Dataset, Delivered};
use lockstep_proto::ids::{SampleRange, Step};
use lockstep_proto::recipe::{Head, Precision, Recipe};
use lockstep_proto::split;
use rayon::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype as Stored, SafeTensorError};

use crate::compute::{Compute, ComputeError};
use crate::evaluate::infer;
use crate::exec::Chunk;
use crate::number::Number;
use crate::program::Program;
use crate::state::State;
use crate::step::{StepError, Stepper};
use crate::trainer::{Trainer, step_error};

/// Logits of the test set, in its order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Predictions {
    /// Row by row.
    pub logits: Vec<f64>,
    /// Columns.
    pub num_classes: usize,
    /// Class of each image.
    pub labels: Vec<i64>,
    /// Images as the model saw them, NHWC, if asked for.
    pub images: Option<Vec<f32>>,
    /// Height, width, channels.
    pub shape: [usize; 3],
}

impl Predictions {
    /// The classes of an image and their probabilities, best first.
    pub fn best(&self, image: usize, count: usize) -> Vec<(usize, f64)> {
        let row = &self.logits[image * self.num_classes..][..self.num_classes];
        let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|logit| (logit - most).exp()).sum();
        let mut all: Vec<(usize, f64)> = row.iter().map(|logit| (logit - most).exp() / sum).enumerate().collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        all.truncate(count);
        all
    }

    /// A safetensors file: `logits` F32 or F64 `[n, classes]`, `labels` I64 `[n]`, and with images `images` F32
    /// `[n, channels, height, width]`, normalised.
    ///
    /// # Errors
    /// What the format refuses.
    pub fn serialize(&self, precision: Precision) -> Result<Vec<u8>, SafeTensorError> {
        let n = self.labels.len();
        let (dtype, logits): (Stored, Vec<u8>) = match precision {
            Precision::Fp64 => (Stored::F64, self.logits.iter().flat_map(|x| x.to_le_bytes()).collect()),
            Precision::Fp32 | Precision::Bf16 => {
                (Stored::F32, self.logits.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect())
            }
        };
        let labels: Vec<u8> = self.labels.iter().flat_map(|label| label.to_le_bytes()).collect();
        let [h, w, c] = self.shape;
        let planar: Option<Vec<u8>> = self.images.as_ref().map(|images| {
            let plane = |image: &[f32], channel: usize| -> Vec<u8> {
                image.iter().skip(channel).step_by(c).flat_map(|x| x.to_le_bytes()).collect()
            };
            images.chunks_exact(h * w * c).flat_map(|image| (0..c).flat_map(move |i| plane(image, i))).collect()
        });
        let mut views = vec![
            ("logits", TensorView::new(dtype, vec![n, self.num_classes], &logits)?),
            ("labels", TensorView::new(Stored::I64, vec![n], &labels)?),
        ];
        if let Some(planar) = &planar {
            views.push(("images", TensorView::new(Stored::F32, vec![n, c, h, w], planar)?));
        }
        safetensors::serialize(views, None)
    }
}

/// A replica that also says what it predicts.
pub trait Predictor: Compute {
    /// As [`Trainer::take_weights`].
    ///
    /// # Errors
    /// A file that is missing or of another model.
    fn take_weights(&mut self, path: &Path, head: Head) -> Result<Vec<String>, ComputeError>;

    /// Logits of every test image, and the images themselves if wanted.
    ///
    /// # Errors
    /// An image that cannot be read; libtorch.
    fn predict(&mut self, step: Step, with_images: bool) -> Result<Predictions, ComputeError>;

    /// Its program.
    fn program(&self) -> &Program;
}

/// A replica on the CPU, of `threads` compute threads.
///
/// # Errors
/// libtorch refuses, or threads cannot be started.
pub fn cpu(
    recipe: &Recipe,
    dataset: Arc<dyn Dataset>,
    threads: usize,
) -> Result<Box<dyn Predictor + Send>, ComputeError> {
    Ok(match recipe.train.precision {
        Precision::Fp64 => Box::new(Trainer::<f64>::new(recipe, dataset, threads)?),
        Precision::Fp32 | Precision::Bf16 => Box::new(Trainer::<f32>::new(recipe, dataset, threads)?),
    })
}

impl<A: Number> Predictor for Trainer<A> {
    fn take_weights(&mut self, path: &Path, head: Head) -> Result<Vec<String>, ComputeError> {
        Self::take_weights(self, path, head)
    }

    fn predict(&mut self, step: Step, with_images: bool) -> Result<Predictions, ComputeError> {
        self.run(|stepper, state| stepper.predict(state, step, with_images)).map_err(step_error)
    }

    fn program(&self) -> &Program {
        Self::program(self)
    }
}

impl<A: Number> Stepper<A> {
    /// Logits of the whole test set, on this rank alone; nothing is left out.
    fn predict(&mut self, state: &State, step: Step, with_images: bool) -> Result<Predictions, StepError> {
        let samples = self.source.loader.dataset().identity().num_test;
        let size = self.recipe.train.eval_chunk;
        let all = SampleRange { start: 0, len: samples };
        let chunks = 0..split::num_chunks(samples, size);
        let ranges: Vec<SampleRange> = chunks.map(|i| split::chunk_positions(all, size, i)).collect();
        self.take_weights(state)?;
        let layers = self.layers(state, step)?;
        let mut out = Predictions {
            num_classes: self.program.num_classes,
            images: with_images.then(Vec::new),
            shape: self.source.loader.dataset().test_shape(),
            ..Predictions::default()
        };
        let num_at_once = rayon::current_num_threads().max(1);
        let mut rows: Vec<Delivered> = ranges.iter().take(num_at_once).map(|_| Delivered::default()).collect();
        for group in ranges.chunks(num_at_once) {
            self.make_room(state, group.len())?;
            let (program, loader, pulse) = (&self.program, &self.source.loader, &self.pulse);
            let image = loader.dataset().test_shape();
            let run = |((chunk, rows), range): ((&mut Chunk<A>, &mut Delivered), &SampleRange)| {
                // All of them, whatever the recipe skips: who asks for every image's logits counts on their order.
                rows.images.resize(range.len as usize * image.iter().product::<usize>(), 0.0);
                rows.labels.resize(range.len as usize, 0);
                loader.load_test(*range, &mut rows.images, &mut rows.labels)?;
                chunk.take_rows(rows, image)?;
                let logits = infer(program, chunk, &layers, pulse)?;
                chunk.clear();
                Ok(logits)
            };
            let logits: Result<Vec<Vec<A>>, StepError> =
                self.chunks.par_iter_mut().with_max_len(1).zip(&mut rows).zip(group).map(run).collect();
            out.logits.extend(logits?.into_iter().flatten().map(|logit| logit.to_f64()));
            for (chunk, rows) in self.chunks.iter().zip(&rows) {
                out.labels.extend(&chunk.labels);
                if let Some(images) = &mut out.images {
                    images.extend(&rows.images);
                }
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_planes_and_the_best_come_first() {
        let found = Predictions {
            logits: vec![0.0, 2.0, 1.0, 5.0, 5.0, -1.0],
            num_classes: 3,
            labels: vec![1, 2],
            images: Some((0..12u8).map(f32::from).collect()),
            shape: [1, 2, 3],
        };
        assert_eq!(found.best(0, 2).iter().map(|(class, _)| *class).collect::<Vec<_>>(), [1, 2]);
        assert!((found.best(0, 3).iter().map(|(_, p)| p).sum::<f64>() - 1.0).abs() < 1e-12);
        let bytes = found.serialize(Precision::Fp32).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let floats = |name: &str| -> Vec<f32> {
            let data = file.tensor(name).unwrap().data().to_vec();
            data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        };
        assert_eq!(file.tensor("images").unwrap().shape(), [2, 3, 1, 2]);
        assert_eq!(floats("images"), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0, 6.0, 9.0, 7.0, 10.0, 8.0, 11.0]);
        assert_eq!((file.tensor("logits").unwrap().shape(), floats("logits")[1]), (&[2, 3][..], 2.0));
        assert_eq!(file.tensor("labels").unwrap().data()[..8], 1i64.to_le_bytes());
    }
}
