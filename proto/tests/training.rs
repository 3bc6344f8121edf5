//! Keys of training beyond the plain step.

use lockstep_proto::ids::{Epoch, Step};
use lockstep_proto::plan::Course;
use lockstep_proto::recipe::Recipe;

fn recipe(text: &str) -> Result<Recipe, String> {
    Recipe::from_toml(text, "r.toml").map_err(|error| error.to_string())
}

#[test]
fn what_makes_no_sense_is_refused_with_what_would() {
    for (text, expected) in [
        ("[train]\nlabel_smoothing = 1.0", "`train.label_smoothing` is 1, expected at least 0 and below 1"),
        ("[train]\nmixup_alpha = -0.2", "`train.mixup_alpha` is -0.2, expected 0 (none) or at least 0.001"),
        ("[train]\ncutmix_alpha = inf", "`train.cutmix_alpha` is inf, expected 0 (none)"),
        ("[train]\nmix_probability = 1.5", "`train.mix_probability` is 1.5, expected at least 0 and at most 1"),
        ("[train]\nema_decay = 1.0", "`train.ema_decay` is 1, expected at least 0 (none) and below 1"),
        ("[train]\nema_every = 32", "`train.ema_every` is 32, expected 1, or a train.ema_decay above 0"),
        ("[train]\nema_decay = 0.9\nema_every = 0", "`train.ema_every` is 0, expected at least 1 step"),
        ("[train]\nema_after_epochs = 2", "`train.ema_after_epochs` is 2, expected 0, or a train.ema_decay above 0"),
        (
            "[train]\nevaluate = \"ema\"",
            "`train.evaluate` is \"ema\", expected \"model\", or a train.ema_decay above 0",
        ),
        ("[train]\nevaluate = \"both\"", "`train.evaluate` is \"both\", expected \"model\", \"ema\""),
        ("[train]\naccumulate = 0", "`train.accumulate` is 0, expected at least 1"),
        (
            "[train]\naccumulate = 2",
            "`train.accumulate` is 2, expected 1, or train.batch_norm = \"chunk\": other statistics are over samples of \
             several parts",
        ),
        ("[train]\naccumulate = 2\nbatch_norm = \"local\"", "`train.accumulate` is 2, expected 1, or"),
        ("[optim]\nclip_norm = -1", "`optim.clip_norm` is -1, expected a finite number that is not negative"),
        ("[data]\nrepeats = 0", "`data.repeats` is 0, expected at least 1 (each sample once)"),
    ] {
        let error = recipe(text).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }
    recipe("[train]\naccumulate = 4\nbatch_norm = \"chunk\"").unwrap();
    recipe("[train]\nema_decay = 0.999\nema_every = 32\nevaluate = \"ema\"").unwrap();
}

#[test]
fn sides_of_images_are_refused_where_they_make_no_sense() {
    let image = |keys: &str| {
        recipe(&format!("[data]\nkind = \"image-folder\"\nnormalize = \"channel\"\n[data.image]\n{keys}\n"))
    };
    for (keys, expected) in [
        ("crop_milestones = [3, 2]", "`data.image.crop_milestones` is [3, 2], expected epochs from 1, ascending"),
        ("crop_milestones = [2]", "`data.image.crop_sizes` is [], expected one side for each of"),
        ("crop_milestones = [2]\ncrop_sizes = [4]", "`data.image.crop_sizes` is [4], expected at least 8 pixels"),
        ("eval_crop = 7", "`data.image.eval_crop` is 7, expected 0 (that of training) or at least 8 pixels"),
        ("eval_crop = 288", "`data.image.resize` is 256, expected at least data.image.eval_crop = 288"),
        (
            "crop_milestones = [2]\ncrop_sizes = [288]",
            "`data.image.resize` is 256, expected at least the last of data.image.crop_sizes = 288",
        ),
    ] {
        let error = image(keys).unwrap_err();
        assert!(error.contains(expected), "{keys}: {error}");
    }
    let growing = image("crop = 128\ncrop_milestones = [3, 5]\ncrop_sizes = [160, 192]").unwrap().data.image;
    let sides: Vec<u32> = (1..=6).map(|epoch| growing.train_side(Epoch(epoch))).collect();
    assert_eq!(sides, [128, 128, 128, 160, 160, 192]);
    assert_eq!((growing.train_side(Epoch(0)), growing.eval_side()), (128, 192));
    let other = image("crop = 128\neval_crop = 160").unwrap().data.image;
    assert_eq!((other.train_side(Epoch(9)), other.eval_side()), (128, 160));
    let precise = "[model]\nbn_precise = 3\n[data]\nkind = \"image-folder\"\nnormalize = \"channel\"\n[data.image]\n\
                   crop_milestones = [1]\ncrop_sizes = [192]";
    assert!(recipe(precise).unwrap_err().contains("`model.bn_precise` is 3, expected 0 with data.image.crop_sizes"));
}

#[test]
fn new_keys_count_in_the_hash_away_from_their_default_and_accumulation_never() {
    let hash = |text: &str| recipe(text).unwrap().sha256();
    let plain = hash("[train]\nbatch_norm = \"chunk\"");
    for same in ["label_smoothing = 0.0", "ema_every = 1", "evaluate = \"model\"", "accumulate = 7"] {
        assert_eq!(hash(&format!("[train]\nbatch_norm = \"chunk\"\n{same}")), plain, "{same}");
    }
    for other in
        ["label_smoothing = 0.1", "mixup_alpha = 0.2", "cutmix_alpha = 1.0", "ema_decay = 0.9", "mix_probability = 0.5"]
    {
        assert_ne!(hash(&format!("[train]\nbatch_norm = \"chunk\"\n{other}")), plain, "{other}");
    }
    let [one, two] =
        [1, 2].map(|parts| recipe(&format!("[train]\nbatch_norm = \"chunk\"\naccumulate = {parts}")).unwrap());
    assert_eq!(one.differences(&two), Vec::<String>::new(), "it may differ on resume");
}

#[test]
fn repeats_make_an_epoch_longer() {
    let recipe = recipe("[data]\nrepeats = 3\n[train]\nbatch = 64\nepochs = 2").unwrap();
    let course = Course::new(&recipe, 50);
    assert_eq!((course.num_positions(), course.steps_per_epoch(), course.total_steps()), (150, 3, 6));
    assert_eq!((course.at(Step(3)).batch.start, course.at(Step(3)).batch.len), (128, 22));
}
