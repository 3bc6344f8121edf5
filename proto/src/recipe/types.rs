//! The keys of a recipe, one struct a table.

mod image;
mod model;
mod optim;
mod order;
mod tuning;

use serde::{Deserialize, Serialize};

pub use image::*;
pub use model::*;
pub use optim::*;
pub use order::*;
pub use tuning::*;

/// A whole recipe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// Name of the run directory's parent: `runs/<name>/…`. Empty: the recipe file's name.
    pub name: String,
    /// `[data]`
    pub data: Data,
    /// `[model]`
    pub model: Model,
    /// `[optim]`
    pub optim: Optim,
    /// `[schedule]`
    pub schedule: Schedule,
    /// `[train]`
    pub train: Train,
    /// `[elastic]`
    pub elastic: Elastic,
    /// `[checkpoint]`
    pub checkpoint: Checkpoint,
    /// `[log]`
    pub log: Log,
}

/// `[data]`: which samples, in which order, how augmented.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// Which data set.
    pub kind: DataKind,
    /// Folder of the files, or for `webdataset` also a URL (`http://`, `https://`, `s3://`, `gs://`, `az://`, `file://`);
    /// unused by `shapes`. Empty: the usual one of the kind. May differ on resume.
    pub path: String,
    /// `webdataset` behind a URL: disk space for what was read from there, bytes (0: none). May differ on resume.
    pub cache_bytes: u64,
    /// Where that is; several processes may share it. Empty: `lockstep` in the user's cache folder. May differ on resume.
    pub cache_dir: String,
    /// `webdataset` behind a URL: one read that has not succeeded after so long, retries included, ends the run, seconds.
    /// May differ on resume.
    pub read_timeout_s: f64,
    /// `shapes` only: number of training samples that are drawn.
    pub train_size: u64,
    /// `shapes` only: number of test samples that are drawn.
    pub test_size: u64,
    /// Use only the first so many training samples (0: all).
    pub limit: u64,
    /// Use only the first so many test samples (0: all).
    pub test_limit: u64,
    /// Train on the first so many batches of epoch 1 over and over, augmented the same each time (0: on all): a model that
    /// cannot learn them by heart has a defect.
    pub overfit_batches: u64,
    /// `once`: each sample once an epoch. `with_replacement`: positions draw samples independently.
    pub sampling: Sampling,
    /// How far a sample may be from the one before it.
    pub order: Order,
    /// `order = "blocks"`: samples a block.
    pub block: u64,
    /// `order = "blocks"`: blocks that are shuffled together.
    pub block_window: u64,
    /// Repeated augmentation (Hoffer et al. 2020): every sample stands at so many positions in a row, each with draws of
    /// its own; an epoch has as many times the positions.
    pub repeats: u32,
    /// Subtracted and divided by, from the training set's statistics.
    pub normalize: Normalize,
    /// `[data.augment]`: training only.
    pub augment: Augment,
    /// `[data.image]`: `image-folder` and `webdataset` only.
    pub image: Image,
}

/// `data.kind`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataKind {
    /// CIFAR-10 binary files.
    Cifar10,
    /// CIFAR-100 binary files.
    Cifar100,
    /// Built-in procedural 32×32 set of 10 classes: needs no download.
    #[default]
    Shapes,
    /// Image files in `train/<class>/` and `val/<class>/`.
    ImageFolder,
    /// Tar shards of images, `NNNN.jpg` beside `NNNN.cls`, in `train/` and `val/`; `lockstep data pack` makes them.
    Webdataset,
}

impl DataKind {
    /// As recipes write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cifar10 => "cifar10",
            Self::Cifar100 => "cifar100",
            Self::Shapes => "shapes",
            Self::ImageFolder => "image-folder",
            Self::Webdataset => "webdataset",
        }
    }

    /// Whether its images are files of any size, for which `[data.image]` is.
    pub fn has_files(self) -> bool {
        matches!(self, Self::ImageFolder | Self::Webdataset)
    }
}

/// `data.sampling`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampling {
    /// Each sample exactly once an epoch.
    #[default]
    Once,
    /// As the Torch7 original drew them.
    WithReplacement,
}

/// `data.normalize`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalize {
    /// Mean image of the training set; one scalar standard deviation over every training value.
    #[default]
    PixelMean,
    /// Mean and standard deviation of each channel; of image files those of `data.image.mean` and `data.image.std`.
    Channel,
    /// Values 0…1 as they are.
    None,
}

/// `[data.augment]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augment {
    /// Largest shift in x and in y, pixels, zero fill after normalisation (0: none). Unused by image files.
    pub shift: u32,
    /// Horizontal flip with probability one half.
    pub flip: bool,
}

/// `[train]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Train {
    /// Number of epochs (0: no limit, then `max_steps` must be set).
    pub epochs: u64,
    /// Stop after so many steps (0: no limit).
    pub max_steps: u64,
    /// The global batch, in samples.
    pub batch: u64,
    /// Arithmetic of the replicas.
    pub precision: Precision,
    /// On GPUs: whether fp32 products may round their factors to TF32's 10 bits, as PyTorch lets convolutions do. On CPUs it
    /// changes nothing.
    pub tf32: bool,
    /// Decides initialisation, order and augmentation.
    pub seed: u64,
    /// Over which samples BatchNorm takes its statistics.
    pub batch_norm: BatchNorm,
    /// Whether sums keep the recipe's order.
    pub reduction: Reduction,
    /// Samples a chunk, the unit of computation.
    pub chunk: u32,
    /// Samples a chunk in evaluation.
    pub eval_chunk: u32,
    /// Steps that the plan runs ahead of the last committed step.
    pub window: u64,
    /// Evaluate every so many epochs, and at the end (0: never).
    pub evaluate_every_epochs: u64,
    /// Evaluate before training too, as epoch 0.
    pub evaluate_first: bool,
    /// Target size of a gradient bucket, bytes.
    pub bucket_bytes: u64,
    /// Share of the target that goes to all classes alike (Szegedy et al. 2016). The training loss that is reported is with
    /// it, the test loss without.
    pub label_smoothing: f64,
    /// Mixup (Zhang et al. 2018): a position shows `λ` of its own image and `1 − λ` of its partner's, `λ` from
    /// Beta(α, α) with this α (0: none).
    pub mixup_alpha: f64,
    /// CutMix (Yun et al. 2019): a rectangle of the partner's image, of about `1 − λ` of the area (0: none).
    pub cutmix_alpha: f64,
    /// Chance that a position is mixed. With both kinds each is as likely as the other.
    pub mix_probability: f64,
    /// Keeps an average of the weights: `average = decay · average + (1 − decay) · weights` (0: none).
    pub ema_decay: f64,
    /// The average takes in the weights after every so many steps.
    pub ema_every: u64,
    /// Until the end of this epoch the average is a copy of the weights.
    pub ema_after_epochs: u64,
    /// Which weights evaluations look at.
    pub evaluate: Evaluate,
    /// A replica computes its shard in so many parts, one after another: as much less memory, the same bits. With
    /// `batch_norm = "chunk"`. May differ on resume.
    pub accumulate: u32,
}

/// `train.evaluate`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Evaluate {
    /// Those that are trained.
    #[default]
    Model,
    /// Their average, `train.ema_decay`.
    Ema,
}

/// `train.precision`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    Fp32,
    /// bfloat16 activations and compute weights, 32-bit master weights and statistics.
    Bf16,
    /// 64-bit floats: for proofs.
    Fp64,
}

/// `train.batch_norm`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BatchNorm {
    /// Over the whole global batch.
    #[default]
    Global,
    /// Over each chunk.
    Chunk,
    /// Over each rank's shard: depends on the world.
    Local,
}

/// `train.reduction`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reduction {
    /// The fixed binary tree over chunks: the same bits on any world.
    #[default]
    Canonical,
    /// Each rank's own order, then rank order: equal to rounding.
    Fast,
}

/// `[elastic]`: membership; may differ on resume. Counts are of processes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Elastic {
    /// Training needs so many workers.
    pub min_workers: u32,
    /// More are refused (0: no limit).
    pub max_workers: u32,
    /// How long to wait for `min_workers`, seconds.
    pub join_timeout_s: f64,
    /// Give slow ranks fewer chunks.
    pub balance: bool,
    /// The most samples of a global batch that one replica can take, as its memory allows (0: any). While the world is too
    /// small for that, the run waits.
    pub max_shard: u64,
    /// A worker that shows no sign of life for so long, or a rank that does not get on though nobody keeps it waiting, is
    /// lost: seconds, or 4.5 times the median step, where that is longer.
    pub stall_timeout_s: f64,
    /// A rank that waits for others and gets on with nothing for so long ends the generation, seconds.
    pub step_timeout_s: f64,
    /// Deadline of one collective, seconds.
    pub collective_timeout_s: f64,
    /// How long a worker waits for a coordinator that went away, seconds.
    pub reconnect_timeout_s: f64,
}

/// `[checkpoint]`: may differ on resume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checkpoint {
    /// Save after every so many steps (0: never by steps).
    pub every_steps: u64,
    /// Save after every so many epochs (0: never by epochs). The last step is always saved.
    pub every_epochs: u64,
    /// Keep the last so many, besides the best and the last (0: all).
    pub keep: u32,
}

/// `[log]`: may differ on resume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Write `tensorboard/` into the run directory.
    pub tensorboard: bool,
    /// On a pipe, print a line every so many seconds.
    pub every_s: f64,
}

impl Default for Data {
    fn default() -> Self {
        Self {
            kind: DataKind::default(),
            path: String::new(),
            cache_bytes: 8 << 30,
            cache_dir: String::new(),
            read_timeout_s: 120.0,
            train_size: 10_000,
            test_size: 2_000,
            limit: 0,
            test_limit: 0,
            overfit_batches: 0,
            sampling: Sampling::default(),
            order: Order::default(),
            block: 1024,
            block_window: 16,
            repeats: 1,
            normalize: Normalize::default(),
            augment: Augment::default(),
            image: Image::default(),
        }
    }
}

impl Default for Augment {
    fn default() -> Self {
        Self { shift: 4, flip: true }
    }
}

impl Default for Train {
    fn default() -> Self {
        Self {
            epochs: 1,
            max_steps: 0,
            batch: 128,
            precision: Precision::default(),
            tf32: false,
            seed: 0,
            batch_norm: BatchNorm::default(),
            reduction: Reduction::default(),
            chunk: 16,
            eval_chunk: 50,
            window: 32,
            evaluate_every_epochs: 1,
            evaluate_first: true,
            bucket_bytes: 1 << 18,
            label_smoothing: 0.0,
            mixup_alpha: 0.0,
            cutmix_alpha: 0.0,
            mix_probability: 1.0,
            ema_decay: 0.0,
            ema_every: 1,
            ema_after_epochs: 0,
            evaluate: Evaluate::default(),
            accumulate: 1,
        }
    }
}

impl Default for Elastic {
    fn default() -> Self {
        Self {
            min_workers: 1,
            max_workers: 0,
            join_timeout_s: 60.0,
            balance: false,
            max_shard: 0,
            stall_timeout_s: 9.0,
            step_timeout_s: 300.0,
            collective_timeout_s: 120.0,
            reconnect_timeout_s: 600.0,
        }
    }
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { every_steps: 1000, every_epochs: 1, keep: 3 }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { tensorboard: true, every_s: 10.0 }
    }
}
