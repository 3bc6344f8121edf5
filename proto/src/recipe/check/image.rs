//! `[data.image]`, and what an image folder asks of the rest of `[data]`.

use super::require;
use crate::recipe::error::RecipeError;
use crate::recipe::types::{Data, Image, Normalize};

pub(super) fn image(data: &Data) -> Result<(), RecipeError> {
    let image = &data.image;
    if !data.kind.has_files() {
        let only = "no key of it: they are for kind = \"image-folder\" or \"webdataset\" only";
        return require(*image == Image::default(), "data.image", "set", only);
    }
    let sized = "\"channel\" (data.image.mean and data.image.std, ImageNet's by default) or \"none\": the images of a \
                 folder have no common size, so there is no mean image";
    require(data.normalize != Normalize::PixelMean, "data.normalize", "\"pixel_mean\"", sized)?;
    require((8..=4096).contains(&image.crop), "data.image.crop", image.crop, "at least 8 pixels and at most 4096")?;
    progressive(image)?;
    let side = image.eval_side();
    let covers = (side..=8192).contains(&image.resize);
    let key = match (image.eval_crop, image.crop_sizes.is_empty()) {
        (0, true) => "data.image.crop",
        (0, false) => "the last of data.image.crop_sizes",
        _ => "data.image.eval_crop",
    };
    let least = format!("at least {key} = {side} and at most 8192");
    require(covers, "data.image.resize", image.resize, least)?;
    let [low, high] = image.scale;
    let sense = low > 0.0 && low <= high && high <= 1.0;
    require(sense, "data.image.scale", list(&image.scale), "[least, greatest] fractions of the area, above 0 … 1")?;
    let [low, high] = image.ratio;
    let sense = low > 0.0 && low <= high && high.is_finite();
    require(sense, "data.image.ratio", list(&image.ratio), "[least, greatest] width ÷ height, above 0")?;
    require(image.prefetch <= 1000, "data.image.prefetch", image.prefetch, "at most 1000 steps")?;
    require(image.threads <= 1024, "data.image.threads", image.threads, "at most 1024 (0: as many as compute)")?;
    operations(image)?;
    colour(image)
}

fn progressive(image: &Image) -> Result<(), RecipeError> {
    let (milestones, sizes) = (&image.crop_milestones, &image.crop_sizes);
    let ascending = milestones.windows(2).all(|pair| pair[0] < pair[1]) && milestones.first() != Some(&0);
    require(ascending, "data.image.crop_milestones", format!("{milestones:?}"), "epochs from 1, ascending")?;
    let each = format!("one side for each of data.image.crop_milestones = {milestones:?}");
    require(milestones.len() == sizes.len(), "data.image.crop_sizes", format!("{sizes:?}"), each)?;
    let sense = sizes.iter().all(|side| (8..=4096).contains(side));
    require(sense, "data.image.crop_sizes", format!("{sizes:?}"), "at least 8 pixels and at most 4096")?;
    let sense = image.eval_crop == 0 || (8..=4096).contains(&image.eval_crop);
    let expected = "0 (that of training) or at least 8 pixels and at most 4096";
    require(sense, "data.image.eval_crop", image.eval_crop, expected)
}

fn operations(image: &Image) -> Result<(), RecipeError> {
    require((1..=16).contains(&image.auto_ops), "data.image.auto_ops", image.auto_ops, "at least 1 and at most 16")?;
    let bins = (2..=1000).contains(&image.auto_bins);
    require(bins, "data.image.auto_bins", image.auto_bins, "at least 2 and at most 1000")?;
    let below = format!("a bin below data.image.auto_bins = {}", image.auto_bins);
    require(image.auto_magnitude < image.auto_bins, "data.image.auto_magnitude", image.auto_magnitude, below)?;
    require((0.0..=1.0).contains(&image.erase), "data.image.erase", image.erase, "a probability 0 … 1")?;
    let [low, high] = image.erase_scale;
    let sense = low >= 0.0 && low <= high && high <= 1.0;
    let area = "[least, greatest] fractions of the area, 0 … 1";
    require(sense, "data.image.erase_scale", list(&image.erase_scale), area)?;
    let [low, high] = image.erase_ratio;
    let sense = low > 0.0 && low <= high && high.is_finite();
    require(sense, "data.image.erase_ratio", list(&image.erase_ratio), "[least, greatest] height ÷ width, above 0")
}

fn colour(image: &Image) -> Result<(), RecipeError> {
    for (key, value) in [
        ("data.image.brightness", image.brightness),
        ("data.image.contrast", image.contrast),
        ("data.image.saturation", image.saturation),
        ("data.image.lighting", image.lighting),
    ] {
        let sense = value.is_finite() && value >= 0.0;
        require(sense, key, value, "a finite number that is not negative")?;
    }
    require((0.0..=0.5).contains(&image.hue), "data.image.hue", image.hue, "at least 0 and at most 0.5")?;
    let fractions = image.mean.iter().all(|mean| (0.0..=1.0).contains(mean));
    require(fractions, "data.image.mean", list(&image.mean), "three fractions 0 … 1 of full light")?;
    let positive = image.std.iter().all(|std| *std > 0.0 && std.is_finite());
    require(positive, "data.image.std", list(&image.std), "three fractions of full light, above 0")
}

fn list(values: &[f64]) -> String {
    format!("{values:?}")
}
