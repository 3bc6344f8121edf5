//! What a recipe may ask of a replica on the CPU and not yet of one on a device.

use lockstep_proto::recipe::{BadImage, Recipe};

/// The key that a device does not know, with its value; `None` if it can train by this recipe.
pub fn refusal(recipe: &Recipe) -> Option<String> {
    let train = &recipe.train;
    let asked = [
        ("train.accumulate", train.accumulate > 1, train.accumulate.to_string()),
        ("data.image.bad", recipe.data.image.bad == BadImage::Skip, "\"skip\"".to_owned()),
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
        recipe.data.image.bad = BadImage::Skip;
        assert!(refusal(&recipe).is_some_and(|why| why.contains("data.image.bad = \"skip\"")));
        recipe.train.accumulate = 2;
        assert!(refusal(&recipe).is_some_and(|why| why.contains("train.accumulate = 2")));
    }
}
