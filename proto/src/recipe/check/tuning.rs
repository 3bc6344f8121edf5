//! What fine-tuning asks of a recipe.

use super::require;
use crate::recipe::error::RecipeError;
use crate::recipe::types::{Group, Head, Recipe};

pub(super) fn tuning(recipe: &Recipe) -> Result<(), RecipeError> {
    let model = &recipe.model;
    let begins = model.head == Head::Keep || !model.weights.is_empty();
    require(
        begins,
        "model.head",
        "\"replace\"",
        "a file of model.weights with it: without one every part starts anew",
    )?;

    let (groups, frozen) = (model.groups(), &model.freeze);
    let listed = list(frozen);
    let known = frozen.iter().all(|group| groups.contains(group));
    require(known, "model.freeze", &listed, format!("parts of this model: {}", names(&groups)))?;
    let once = (1..frozen.len()).all(|i| !frozen[..i].contains(&frozen[i]));
    require(once, "model.freeze", &listed, "each part once")?;
    let trains = groups.iter().any(|group| !frozen.contains(group));
    require(trains, "model.freeze", &listed, format!("at least one part left to train of {}", names(&groups)))?;

    for group in Group::ALL {
        let (key, scale) = (format!("optim.lr_scale.{}", group.name()), recipe.optim.lr_scale.of(group));
        let positive = scale.is_finite() && scale > 0.0;
        require(positive, &key, scale, "a finite number above 0 (model.freeze is what holds a part)")?;
        let is_there = scale == 1.0 || groups.contains(&group);
        require(is_there, &key, scale, format!("1: this model has no such part, only {}", names(&groups)))?;
        let trains = scale == 1.0 || !frozen.contains(&group);
        require(trains, &key, scale, "1: the part is in model.freeze, so it has no rate")?;
    }
    Ok(())
}

fn names(groups: &[Group]) -> String {
    groups.iter().map(|group| group.name()).collect::<Vec<_>>().join(", ")
}

fn list(groups: &[Group]) -> String {
    format!("{:?}", groups.iter().map(|group| group.name()).collect::<Vec<_>>())
}
