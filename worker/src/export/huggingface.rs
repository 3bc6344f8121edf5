//! A folder in Hugging Face's layout, as timm reads and writes it: `config.json` and `model.safetensors`.
//!
//! timm's names of tensors in plain and wide ResNets are torchvision's, so only the description is new. What timm has no
//! network for is refused: the description would promise another function.

use std::path::Path;

use lockstep_proto::exit::ExitCode;
use lockstep_proto::recipe::{Activation, Arch, BnOrder, BnPosition, Model, Normalize, Recipe, Shortcut, StrideOn};
use serde_json::{Value, json};

use crate::exit::Exit;

/// timm's name of a network.
fn architecture(arch: Arch) -> Option<&'static str> {
    Some(match arch {
        Arch::Resnet18 => "resnet18",
        Arch::Resnet34 => "resnet34",
        Arch::Resnet50 => "resnet50",
        Arch::Resnet101 => "resnet101",
        Arch::Resnet152 => "resnet152",
        Arch::WideResnet50x2 => "wide_resnet50_2",
        Arch::WideResnet101x2 => "wide_resnet101_2",
        _ => return None,
    })
}

/// Keys in which timm's networks leave no choice, and what it has there.
fn is_timms(model: &Model) -> Result<(), &'static str> {
    let bottleneck = !matches!(model.arch, Arch::Resnet18 | Arch::Resnet34);
    for (fits, key) in [
        (model.width == 64, "model.width = 64"),
        (model.shortcut == Shortcut::B, "model.shortcut = \"B\""),
        (model.stride_on == StrideOn::Middle || !bottleneck, "model.stride_on = \"3x3\""),
        (model.bn_position == BnPosition::BeforeAdd, "model.bn_position = \"before_add\""),
        (model.bn_order == BnOrder::BeforeActivation, "model.bn_order = \"before_activation\""),
        (model.final_relu, "model.final_relu = true"),
        (model.activation == Activation::Relu, "model.activation = \"relu\""),
        (!model.conv_bias, "model.conv_bias = false"),
        (model.bn_eps == 1e-5, "model.bn_eps = 1e-5"),
    ] {
        if !fits {
            return Err(key);
        }
    }
    Ok(())
}

/// `config.json` for a recipe's model with so many classes; `labels` are their names in order, where they are known.
///
/// # Errors
/// timm has no such network, or no such normalisation; another number of names (64).
pub fn config(recipe: &Recipe, num_classes: usize, labels: Option<&[String]>) -> Result<Value, Exit> {
    let usage = |reason: String| Exit::new(ExitCode::Usage, reason);
    let elsewhere = "--format safetensors takes it";
    let Some(architecture) = architecture(recipe.model.arch) else {
        return Err(usage(format!("timm has no {} of this kind; {elsewhere}", recipe.model.title())));
    };
    is_timms(&recipe.model).map_err(|key| usage(format!("timm's {architecture} has {key}; {elsewhere}")))?;
    let image = &recipe.data.image;
    let (mean, std) = match recipe.data.normalize {
        Normalize::Channel => (image.mean, image.std),
        Normalize::None => ([0.0; 3], [1.0; 3]),
        Normalize::PixelMean => {
            let reason = "data.normalize = \"pixel_mean\" subtracts an image; the layout knows a mean and a deviation of \
                          each channel";
            return Err(usage(reason.into()));
        }
    };
    if let Some(labels) = labels.filter(|labels| labels.len() != num_classes) {
        return Err(usage(format!("{} names for {num_classes} classes", labels.len())));
    }
    let side = image.crop;
    let pool = side.div_ceil(32);
    let num_features = if matches!(recipe.model.arch, Arch::Resnet18 | Arch::Resnet34) { 512 } else { 2048 };
    let mut config = json!({
        "architecture": architecture,
        "num_classes": num_classes,
        "num_features": num_features,
        "global_pool": "avg",
        "pretrained_cfg": {
            "tag": "lockstep",
            "custom_load": false,
            "input_size": [3, side, side],
            "fixed_input_size": false,
            "interpolation": "bilinear",
            "crop_pct": f64::from(side) / f64::from(image.resize),
            "crop_mode": "center",
            "mean": mean,
            "std": std,
            "num_classes": num_classes,
            "pool_size": [pool, pool],
            "first_conv": "conv1",
            "classifier": "fc",
        },
    });
    if let (Some(labels), Some(config)) = (labels, config.as_object_mut()) {
        config.insert("label_names".into(), json!(labels));
    }
    Ok(config)
}

/// The bytes of `config.json`.
pub fn text(config: &Value) -> Vec<u8> {
    // invariant: a value of JSON always serialises.
    let mut bytes = serde_json::to_vec_pretty(config).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// Names of classes from a file, a line each.
///
/// # Errors
/// It cannot be read (66).
pub fn read_labels(path: &Path) -> Result<Vec<String>, Exit> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Exit::new(ExitCode::NoInput, format!("--labels {}: {error}", path.display())))?;
    Ok(text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(more: &str) -> Recipe {
        let text = format!(
            "[data]\nkind = \"image-folder\"\nnormalize = \"channel\"\nimage = {{ crop = 64, resize = 72 }}\n[model]\n{more}"
        );
        Recipe::from_toml(&text, "test").unwrap()
    }

    #[test]
    fn a_plain_resnet_is_described_with_its_transform_and_its_names() {
        let names = ["cat".to_owned(), "dog".to_owned()];
        let config = config(&recipe("arch = \"resnet18\""), 2, Some(&names)).unwrap();
        assert_eq!((&config["architecture"], &config["label_names"][1]), (&json!("resnet18"), &json!("dog")));
        let cfg = &config["pretrained_cfg"];
        assert_eq!((&cfg["input_size"], &cfg["mean"][0]), (&json!([3, 64, 64]), &json!(0.485)));
        assert!((cfg["crop_pct"].as_f64().unwrap() - 64.0 / 72.0).abs() < 1e-12);
    }

    #[test]
    fn what_timm_does_not_have_is_refused_with_the_key() {
        let refused = |more: &str| config(&recipe(more), 2, None).unwrap_err();
        for (more, said) in [
            ("n = 3", "timm has no ResNet-20"),
            ("arch = \"resnet18\"\nwidth = 32", "model.width = 64"),
            ("arch = \"resnet50\"\nstride_on = \"1x1\"", "model.stride_on = \"3x3\""),
            ("arch = \"resnet50\"\nshortcut = \"A\"", "model.shortcut = \"B\""),
        ] {
            let exit = refused(more);
            assert!(exit.reason.contains(said) && exit.code == ExitCode::Usage, "{more}: {exit}");
        }
        let names = ["cat".to_owned()];
        assert!(config(&recipe("arch = \"resnet18\""), 2, Some(&names)).unwrap_err().reason.contains("1 names for 2"));
        let mut pixel = recipe("arch = \"resnet18\"");
        pixel.data.normalize = Normalize::PixelMean;
        assert!(config(&pixel, 2, None).unwrap_err().reason.contains("pixel_mean"));
    }
}
