//! Recipes embedded in the binary: the same files as in `recipes/`.

/// A recipe that needs no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Builtin {
    /// `demo`, `cifar10/resnet20`, …
    pub name: &'static str,
    /// Its TOML.
    pub toml: &'static str,
    /// One line for a list.
    pub summary: &'static str,
}

macro_rules! builtins {
    ($($name:literal: $summary:literal,)*) => {
        &[$(Builtin {
            name: $name,
            toml: include_str!(concat!("../../../recipes/", $name, ".toml")),
            summary: $summary,
        }),*]
    };
}

/// All of them, in the order of a list.
pub fn builtin() -> &'static [Builtin] {
    builtins! {
        "demo": "a small net on procedural shapes: no download, three minutes on two cores",
        "cifar10/short": "ResNet-20 for 5 epochs: for comparisons",
        "cifar10/resnet20": "ResNet-20, 200 epochs (He et al. 2015)",
        "cifar10/resnet32": "ResNet-32, 200 epochs (He et al. 2015)",
        "cifar10/resnet44": "ResNet-44, 200 epochs (He et al. 2015)",
        "cifar10/resnet56": "ResNet-56, 200 epochs (He et al. 2015)",
        "cifar10/resnet110": "ResNet-110, 200 epochs, 400 steps of warm-up (He et al. 2015)",
        "imagenet/resnet50-90": "ResNet-50, 90 epochs in steps (Goyal et al. 2017)",
        "imagenet/resnet50-torchvision-v1": "ResNet-50, 90 epochs, as torchvision's first weights",
        "imagenet/resnet50-torchvision-v2": "ResNet-50, 600 torchvision epochs: smoothing, mixing, averaging, repeats",
        "imagenet/resnet50-batch-8k": "ResNet-50, batch 8,192: linear scaling, warm-up (Goyal et al. 2017)",
        "imagenet/resnet50-batch-32k": "ResNet-50, batch 32,768: LARS (You et al. 2017)",
        "imagenet/resnet50-resizing-16": "ResNet-50, 16 epochs with growing images, after FFCV",
        "imagenet/resnet50-resizing-40": "ResNet-50, 40 epochs with growing images, after FFCV",
        "imagenet/resnet50-resizing-88": "ResNet-50, 88 epochs with growing images, after FFCV",
    }
}
