//! What a recipe may ask of a replica on the CPU and not yet of one on a device.

use lockstep_proto::recipe::{BadImage, Recipe};

/// The key that a device does not know, with its value; `None` if it can train by this recipe.
pub fn refusal(recipe: &Recipe) -> Option<String> {
    let train = &recipe.train;
    let asked = [
        ("train.label_smoothing", train.label_smoothing != 0.0, train.label_smoothing.to_string()),
        ("train.mixup_alpha", train.mixup_alpha != 0.0, train.mixup_alpha.to_string()),
        ("train.cutmix_alpha", train.cutmix_alpha != 0.0, train.cutmix_alpha.to_string()),
        ("train.ema_decay", train.ema_decay != 0.0, train.ema_decay.to_string()),
        ("train.accumulate", train.accumulate > 1, train.accumulate.to_string()),
        ("data.image.bad", recipe.data.image.bad == BadImage::Skip, "\"skip\"".to_owned()),
        ("model.freeze", !recipe.model.freeze.is_empty(), format!("{:?}", recipe.model.freeze)),
        ("optim.clip_norm", recipe.optim.clip_norm != 0.0, recipe.optim.clip_norm.to_string()),
    ];
    let asked = asked.into_iter().find(|(_, is_asked, _)| *is_asked);
    asked.map(|(key, _, value)| format!("{key} = {value} is known to replicas on CPUs only; use --devices cpu"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_device_does_not_do_is_refused_by_name() {
        let mut recipe = Recipe::default();
        assert_eq!(refusal(&recipe), None);
        recipe.optim.clip_norm = 1.0;
        assert!(refusal(&recipe).is_some_and(|why| why.contains("optim.clip_norm = 1")));
        recipe.data.image.bad = BadImage::Skip;
        assert!(refusal(&recipe).is_some_and(|why| why.contains("data.image.bad = \"skip\"")));
        recipe.train.mixup_alpha = 0.2;
        assert!(refusal(&recipe).is_some_and(|why| why.contains("train.mixup_alpha = 0.2")));
    }
}
