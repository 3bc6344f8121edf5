//! `[data.image]`: from a file of any size to the square that a model sees. For `data.kind` `image-folder` and `webdataset`.

use serde::{Deserialize, Serialize};

use crate::ids::Epoch;

/// `[data.image]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Image {
    /// Side of the square that the model sees, pixels.
    pub crop: u32,
    /// Progressive resizing: epochs ≤ m keep the side, epoch m + 1 has the next one of `crop_sizes`. Ascending.
    pub crop_milestones: Vec<u64>,
    /// Side after each milestone, pixels.
    pub crop_sizes: Vec<u32>,
    /// Side of the square in evaluation, pixels (0: `crop`, or the last of `crop_sizes`).
    pub eval_crop: u32,
    /// Evaluation scales the short side to this many pixels, then cuts the square out of the centre.
    pub resize: u32,
    /// Training cuts a random part and scales it to the square (Szegedy et al. 2015); else as in evaluation.
    pub random_crop: bool,
    /// Least and greatest area of the random part, as fractions of the image.
    pub scale: [f64; 2],
    /// Least and greatest width ÷ height of the random part.
    pub ratio: [f64; 2],
    /// How training decodes.
    pub decode: Decode,
    /// Turn images as their EXIF says; other tools ignore it.
    pub exif: bool,
    /// Colour jitter: brightness is multiplied by a factor between 1 − this and 1 + this (0: none).
    pub brightness: f64,
    /// The same for contrast.
    pub contrast: f64,
    /// The same for saturation.
    pub saturation: f64,
    /// Hue is turned by up to this fraction of the circle, either way; at most 0.5.
    pub hue: f64,
    /// Deviation of the weights with which principal components of ImageNet's colours are added (Krizhevsky et al. 2012,
    /// section 4.1, has 0.1; 0: none).
    pub lighting: f64,
    /// With `data.normalize = "channel"`: mean of red, green, blue, as fractions of full light. ImageNet's by default;
    /// `lockstep data verify` prints those of a folder.
    pub mean: [f64; 3],
    /// With `data.normalize = "channel"`: their standard deviations.
    pub std: [f64; 3],
    /// Operations of tone and shape after the colour jitter, as torchvision's classes of these names.
    pub auto_augment: AutoAugment,
    /// `rand_augment`: operations on an image.
    pub auto_ops: u32,
    /// `rand_augment`: their magnitude, a bin.
    pub auto_magnitude: u32,
    /// Bins of magnitudes.
    pub auto_bins: u32,
    /// How shears, shifts and rotations look between pixels. torchvision's classes have `nearest` by default, its
    /// training script has `bilinear`.
    pub auto_interpolation: Interpolation,
    /// Probability with which a rectangle of the normalised image becomes 0 (Zhong et al. 2020; 0: never).
    pub erase: f64,
    /// Least and greatest area of the rectangle, as fractions of the square.
    pub erase_scale: [f64; 2],
    /// Least and greatest height ÷ width of the rectangle.
    pub erase_ratio: [f64; 2],
    /// What to do about an image that cannot be read.
    pub bad: BadImage,
    /// Steps that are read ahead of the one in hand, at most `train.window` (0: none). May differ on resume.
    pub prefetch: u32,
    /// Threads of each replica that read ahead (0: as many as compute). May differ on resume.
    pub threads: u32,
}

/// `data.image.decode`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decode {
    /// At the smallest of 8/8, 4/8, 2/8, 1/8 that still has the square's pixels: fast, and near what `full` gives.
    #[default]
    Scaled,
    /// At full size, as other tools do.
    Full,
}

/// `data.image.auto_augment`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AutoAugment {
    /// None.
    #[default]
    None,
    /// Cubuk et al. 2020: `auto_ops` operations of one magnitude.
    RandAugment,
    /// Müller and Hutter 2021: one operation of any magnitude.
    TrivialAugmentWide,
}

/// `data.image.auto_interpolation`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// The nearest pixel.
    #[default]
    Nearest,
    /// Between four pixels.
    Bilinear,
}

/// `data.image.bad`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BadImage {
    /// End the run and name the file.
    #[default]
    Error,
    /// Leave it out, whoever is to load it, say so in an event `sample_skipped`, and count it: loss, gradient and BatchNorm
    /// are over the others. Only for what is wrong with the bytes of an image; a file that is missing or unreadable ends
    /// the run all the same.
    Skip,
}

impl Image {
    /// Side of the training squares of an epoch, pixels.
    pub fn train_side(&self, epoch: Epoch) -> u32 {
        let passed = self.crop_milestones.iter().filter(|&&milestone| epoch.0 > milestone).count();
        match passed {
            0 => self.crop,
            passed => self.crop_sizes.get(passed - 1).copied().unwrap_or(self.crop),
        }
    }

    /// Side of the squares of an evaluation, pixels.
    pub fn eval_side(&self) -> u32 {
        match self.eval_crop {
            0 => self.crop_sizes.last().copied().unwrap_or(self.crop),
            side => side,
        }
    }
}

impl Default for Image {
    fn default() -> Self {
        Self {
            crop: 224,
            crop_milestones: Vec::new(),
            crop_sizes: Vec::new(),
            eval_crop: 0,
            resize: 256,
            random_crop: true,
            scale: [0.08, 1.0],
            ratio: [3.0 / 4.0, 4.0 / 3.0],
            decode: Decode::default(),
            exif: false,
            brightness: 0.0,
            contrast: 0.0,
            saturation: 0.0,
            hue: 0.0,
            lighting: 0.0,
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
            auto_augment: AutoAugment::default(),
            auto_ops: 2,
            auto_magnitude: 9,
            auto_bins: 31,
            auto_interpolation: Interpolation::default(),
            erase: 0.0,
            erase_scale: [0.02, 0.33],
            erase_ratio: [0.3, 3.3],
            bad: BadImage::default(),
            prefetch: 2,
            threads: 0,
        }
    }
}
