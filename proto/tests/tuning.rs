//! Fine-tuning keys: what they name, what is refused, and that they leave the hash of other recipes alone.

#![allow(clippy::unwrap_used)]

use lockstep_proto::recipe::{Group, Recipe};

fn recipe(text: &str) -> Result<Recipe, String> {
    Recipe::from_toml(text, "my.toml").map_err(|error| error.to_string())
}

const WEIGHTS: &str = "[model]\narch = \"resnet18\"\nweights = \"a.safetensors\"\n";

#[test]
fn groups_are_named_by_tensors_and_every_model_says_which_it_has() {
    let recipe = recipe(&format!(
        "{WEIGHTS}head = \"replace\"\nfreeze = [\"stem\", \"layer1\"]\n[optim]\nlr_scale = {{ head = 10.0, layer4 = 2 }}"
    ))
    .unwrap();
    assert_eq!(recipe.model.freeze, [Group::Stem, Group::Layer1]);
    let scales: Vec<f64> = recipe.model.groups().into_iter().map(|group| recipe.optim.lr_scale.of(group)).collect();
    assert_eq!(scales, [1.0, 1.0, 1.0, 1.0, 2.0, 10.0]);
    for group in Group::ALL {
        assert!(
            ["conv1", "bn1", "fc", group.name()]
                .iter()
                .any(|prefix| { Group::of(&format!("{prefix}.weight")) == Some(group) })
        );
    }
    assert_eq!(Group::of("layer4.1.downsample.0.weight"), Some(Group::Layer4));
    assert_eq!(Group::of("layer44.weight"), None);
    assert_eq!(Recipe::default().model.groups().len(), 5, "resnet-cifar has three stages");
}

#[test]
fn what_makes_no_sense_is_refused_by_key_and_names_what_would_do() {
    for (text, said) in [
        (
            "[model]\nfreeze = [\"layer4\"]",
            "my.toml, line 2: `model.freeze` is [\"layer4\"], expected parts of this model: stem, layer1, layer2, layer3, head",
        ),
        (
            "[model]\nfreeze = [\"layer9\"]",
            "my.toml, line 2: `model.freeze` is [\"layer9\"], expected one of \"stem\", \"layer1\", \"layer2\", \"layer3\", \
             \"layer4\", \"head\"",
        ),
        ("[model]\nfreeze = [\"stem\", \"stem\"]", "`model.freeze` is [\"stem\", \"stem\"], expected each part once"),
        (
            "[model]\nfreeze = [\"stem\",\"layer1\",\"layer2\",\"layer3\",\"head\"]",
            "expected at least one part left to train",
        ),
        (
            "[optim]\nlr_scale = { hed = 2.0 }",
            "my.toml, line 2: unknown key `optim.lr_scale.hed`; did you mean `optim.lr_scale.head`?",
        ),
        ("[optim.lr_scale]\nlayer4 = 2.0", "`optim.lr_scale.layer4` is 2, expected 1: this model has no such part"),
        ("[optim.lr_scale]\nhead = 0.0", "`optim.lr_scale.head` is 0, expected a finite number above 0"),
        (
            "model.freeze = [\"stem\"]\noptim.lr_scale.stem = 0.1",
            "`optim.lr_scale.stem` is 0.1, expected 1: the part is in model.freeze",
        ),
        ("[model]\nhead = \"replace\"", "`model.head` is \"replace\", expected a file of model.weights with it"),
        ("[model]\nhead = \"new\"", "`model.head` is \"new\", expected \"keep\", \"replace\""),
        ("[model]\nfrozen_bn = \"none\"", "`model.frozen_bn` is \"none\", expected \"running\", \"batch\""),
    ] {
        let refused = recipe(text).expect_err(text);
        assert!(refused.contains(said), "{text}: {refused}");
    }
}

#[test]
fn defaults_are_not_in_the_hash_and_everything_else_is() {
    let hash = |more: &str| recipe(&format!("{WEIGHTS}{more}")).unwrap().sha256();
    let plain = hash("");
    assert_eq!(hash("head = \"keep\"\nfreeze = []\n[optim.lr_scale]\nhead = 1.0\n[data]\noverfit_batches = 0"), plain);
    for more in [
        "head = \"replace\"",
        "freeze = [\"stem\"]",
        "frozen_bn = \"batch\"",
        "[optim.lr_scale]\nhead = 2.0",
        "[data]\noverfit_batches = 1",
    ] {
        assert_ne!(hash(more), plain, "{more}");
    }
}

#[test]
fn a_resolved_recipe_reads_back_with_its_groups() {
    let recipe = recipe(&format!("{WEIGHTS}freeze = [\"layer1\"]\n[optim.lr_scale]\nhead = 3.5")).unwrap();
    let again = Recipe::from_toml(&recipe.to_toml(), "recipe.toml").unwrap();
    assert_eq!((&again.model, &again.optim), (&recipe.model, &recipe.optim));
}
