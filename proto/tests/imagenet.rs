//! Recipes for ImageNet against their sources.

use lockstep_proto::ids::{Epoch, Step};
use lockstep_proto::plan::Course;
use lockstep_proto::recipe::{AutoAugment, DataKind, Evaluate, Interpolation, Recipe, builtin};

const IMAGENET: u64 = 1_281_167;

#[test]
fn recipes_for_imagenet_say_what_they_aim_at_and_where_that_is_from() {
    let all: Vec<_> = builtin().iter().filter(|recipe| recipe.name.starts_with("imagenet/")).collect();
    assert_eq!(all.len(), 8);
    for builtin in all {
        let header: String =
            builtin.toml.lines().take_while(|line| line.starts_with('#')).collect::<Vec<_>>().join("\n");
        for word in ["target: top-1 ", "(source: ", "Not measured here."] {
            assert!(header.contains(word), "{}: no {word:?} in its header", builtin.name);
        }
        let recipe = Recipe::load(builtin.name, &[]).unwrap();
        assert_eq!(recipe.data.kind, DataKind::ImageFolder, "{}", builtin.name);
        assert_eq!(recipe.name, builtin.name.replace('/', "-"));
        let course = Course::new(&recipe, IMAGENET);
        assert_eq!(course.total_epochs(), recipe.train.epochs);
    }
}

#[test]
fn recipes_for_imagenet_take_the_steps_and_rates_of_their_sources() {
    let course = |name: &str| Course::new(&Recipe::load(name, &[]).unwrap(), IMAGENET);
    let v1 = course("imagenet/resnet50-torchvision-v1");
    assert_eq!((v1.steps_per_epoch(), v1.total_steps()), (5_005, 450_450));
    assert_eq!(v1.at(Step(5_005 * 30)).lr, 0.1);
    assert!((v1.at(Step(5_005 * 30 + 1)).lr - 0.01).abs() < 1e-15);

    let recipe = Recipe::load("imagenet/resnet50-torchvision-v2", &[]).unwrap();
    let v2 = course("imagenet/resnet50-torchvision-v2");
    // torchvision's epochs have 1,251 steps
    assert!(v2.total_steps().abs_diff(600 * 1_251) < 600, "{}", v2.total_steps());
    assert!((0.499..=0.5).contains(&v2.at(Step(5 * 1_251 + 10)).lr));
    assert_eq!((recipe.train.evaluate, recipe.data.image.eval_side()), (Evaluate::Ema, 224));
    let image = &recipe.data.image;
    assert_eq!(
        (image.auto_augment, image.auto_interpolation),
        (AutoAugment::TrivialAugmentWide, Interpolation::Bilinear)
    );
    assert_eq!((image.auto_bins, image.erase, image.erase_scale), (31, 0.1, [0.02, 0.33]));
    let alpha = 2e-5 * 1024.0 * 32.0 / 600.0;
    assert!((recipe.train.ema_decay - (1.0 - alpha)).abs() < 1e-7);

    let large = course("imagenet/resnet50-batch-8k");
    let per_epoch = large.steps_per_epoch();
    assert_eq!(per_epoch, 157);
    assert!((large.at(Step(1)).lr - 0.1).abs() < 0.01 && large.at(Step(5 * per_epoch)).lr == 3.2);

    // FFCV's own rule, epochs from 0: linear between its ramp's ends, to the nearest multiple of 32 (halves to even).
    for (epochs, start, end) in [(16, 11.0, 13.0), (40, 29.0, 34.0), (88, 65.0, 76.0)] {
        let image = Recipe::load(&format!("imagenet/resnet50-resizing-{epochs}"), &[]).unwrap().data.image;
        for epoch in 0..epochs {
            let along = ((epoch as f64 - start) / (end - start)).clamp(0.0, 1.0);
            let side = ((160.0 + along * 32.0) / 32.0).round_ties_even() * 32.0;
            assert_eq!(f64::from(image.train_side(Epoch(epoch + 1))), side, "{epochs} epochs, epoch {epoch}");
        }
    }
}
