//! What a recipe does to an image: training with draws, evaluation without.

use lockstep_proto::draws::Draws;
use lockstep_proto::ids::Epoch;
use lockstep_proto::recipe::{self, Decode};

use super::auto;
use super::colour::Jitter;
use super::cut;
use super::erase::Erased;
use super::error::ImageError;
use super::normal::Normal;
use super::render::{Quality, Rendering, Workspace};

/// Evaluation decodes at a smaller scale only what would still be reduced by this factor afterwards: results as from all
/// pixels, in memory that does not grow with the image.
const EVALUATION_GAP: f64 = 2.0;

/// Branches of an image's draws.
const AUTO: u64 = 1;
const ERASE: u64 = 2;

/// What is still to be done to a square of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Left {
    /// Left and right change places.
    pub flip: bool,
    /// To be added to red, green, blue: fractions of full light.
    pub light: [f32; 3],
}

/// From bytes to floats, as a recipe says.
#[derive(Clone, Debug)]
pub struct Transform {
    image: recipe::Image,
    flip: bool,
    normal: Normal,
}

impl Transform {
    /// For a recipe's `[data]`.
    pub fn new(data: &recipe::Data) -> Self {
        Self { image: data.image.clone(), flip: data.augment.flip, normal: Normal::new(data) }
    }

    /// Side of the squares of an epoch, pixels.
    pub fn train_side(&self, epoch: Epoch) -> usize {
        self.image.train_side(epoch) as usize
    }

    /// Side of the squares of an evaluation, pixels.
    pub fn eval_side(&self) -> usize {
        self.image.eval_side() as usize
    }

    /// Writes an image as side × side × 3 floats: the length of `out` says which side. With draws, in this order: the coin
    /// of the flip, those of [`Jitter::draw`], those of [`cut::random`]; and from branches of their own those of
    /// [`auto::draw`] and [`Erased::draw`]. Without, the centre.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn apply(
        &self,
        bytes: &[u8],
        draws: Option<&mut Draws>,
        workspace: &mut Workspace,
        out: &mut [f32],
    ) -> Result<(), ImageError> {
        let side = (out.len() / 3).isqrt();
        let erased =
            draws.as_deref().and_then(|draws| Erased::draw(&self.image, side as u32, &mut draws.branch(ERASE)));
        let mut rgb = std::mem::take(&mut workspace.pixels);
        let result = self.square(bytes, (side as u32, draws), workspace, &mut rgb);
        if let Ok(left) = &result {
            self.normal.write(&rgb, left.light, (side, left.flip), out);
            erased.iter().for_each(|erased| erased.apply(side, out));
        }
        workspace.pixels = rgb;
        result.map(drop)
    }

    /// The square of `side` pixels as bytes, before it is flipped and normalised, and what is still to be done.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn square(
        &self,
        bytes: &[u8],
        (side, draws): (u32, Option<&mut Draws>),
        workspace: &mut Workspace,
        rgb: &mut Vec<u8>,
    ) -> Result<Left, ImageError> {
        let image = &self.image;
        let centre = |size| cut::centre(size, image.resize.max(side), side);
        let evaluation =
            Rendering { side, quality: Quality::Scaled(EVALUATION_GAP), cut_first: false, exif: image.exif };
        let Some(draws) = draws else {
            rgb.clear();
            rgb.extend_from_slice(workspace.render(bytes, evaluation, centre)?);
            return Ok(Left::default());
        };
        let operations = auto::draw(image, side as usize, &mut draws.branch(AUTO));
        let flip = draws.coin() && self.flip;
        let jitter = Jitter::draw(image, draws);
        let square = if image.random_crop {
            let quality = match image.decode {
                Decode::Scaled => Quality::Scaled(1.0),
                Decode::Full => Quality::Full,
            };
            let how = Rendering { quality, cut_first: true, ..evaluation };
            workspace.render(bytes, how, |size| cut::random(size, image.scale, image.ratio, draws))?
        } else {
            workspace.render(bytes, evaluation, centre)?
        };
        rgb.clear();
        rgb.extend_from_slice(square);
        if jitter.is_wanted() {
            jitter.apply(rgb);
        }
        if operations.is_empty() {
            return Ok(Left { flip, light: jitter.light });
        }
        if flip {
            rgb.chunks_exact_mut(side as usize * 3).for_each(mirror);
        }
        for (operation, magnitude) in operations {
            operation.apply(magnitude, image.auto_interpolation, rgb, &mut workspace.room);
        }
        Ok(Left { flip: false, light: jitter.light })
    }
}

/// Left and right of a row of RGB pixels change places.
pub fn mirror(row: &mut [u8]) {
    let middle = row.len() / 3 / 2 * 3;
    let (front, back) = row.split_at_mut(middle);
    front.chunks_exact_mut(3).zip(back.rchunks_exact_mut(3)).for_each(|(a, b)| a.swap_with_slice(b));
}
