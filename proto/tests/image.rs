//! `[data.image]` of a recipe.

use lockstep_proto::recipe::{DataKind, Decode, Recipe};

fn recipe(keys: &str) -> Result<Recipe, String> {
    let text = format!("[data]\nkind = \"image-folder\"\nnormalize = \"channel\"\n[data.image]\n{keys}\n");
    Recipe::from_toml(&text, "r.toml").map_err(|error| error.to_string())
}

#[test]
fn an_image_folder_has_the_usual_transforms_by_default() {
    let data = recipe("").unwrap().data;
    assert_eq!((data.kind, &*data.path), (DataKind::ImageFolder, "data/imagenet"));
    let image = data.image;
    assert_eq!((image.crop, image.resize, image.decode), (224, 256, Decode::Scaled));
    assert_eq!((image.scale, image.ratio), ([0.08, 1.0], [0.75, 4.0 / 3.0]));
    let written = recipe("crop = 96\nresize = 112\nlighting = 0.1").unwrap();
    assert_eq!(Recipe::from_toml(&written.to_toml(), "r.toml").unwrap(), written);
}

#[test]
fn keys_of_images_count_in_the_hash_and_their_defaults_do_not() {
    let plain = recipe("").unwrap().sha256();
    assert_eq!(recipe("crop = 224\nscale = [0.08, 1.0]").unwrap().sha256(), plain);
    for keys in [
        "crop = 192",
        "scale = [0.25, 1.0]",
        "decode = \"full\"",
        "exif = true",
        "random_crop = false",
        "bad = \"skip\"",
        "auto_augment = \"rand_augment\"",
        "erase = 0.1",
    ] {
        assert_ne!(recipe(keys).unwrap().sha256(), plain, "{keys}");
    }
}

#[test]
fn how_far_is_read_ahead_decides_nothing_and_may_differ_on_resume() {
    let (plain, other) = (recipe("").unwrap(), recipe("prefetch = 0\nthreads = 7").unwrap());
    assert_eq!(other.sha256(), plain.sha256());
    assert_eq!(plain.differences(&other), Vec::<String>::new());
    assert_eq!(plain.differences(&recipe("bad = \"skip\"").unwrap()).len(), 1);
}

#[test]
fn what_makes_no_sense_is_refused_with_what_would() {
    for (keys, expected) in [
        ("crop = 4", "r.toml, line 5: `data.image.crop` is 4, expected at least 8 pixels and at most 4096"),
        ("resize = 200", "`data.image.resize` is 200, expected at least data.image.crop = 224 and at most 8192"),
        ("scale = [0.5, 0.2]", "`data.image.scale` is [0.5, 0.2], expected [least, greatest] fractions of the area"),
        ("scale = [0.5]", "`data.image.scale` is [0.5], expected"),
        ("ratio = [0.0, 1.0]", "`data.image.ratio` is [0.0, 1.0], expected [least, greatest] width ÷ height"),
        ("hue = 0.6", "`data.image.hue` is 0.6, expected at least 0 and at most 0.5"),
        ("std = [0.2, 0.0, 0.2]", "`data.image.std` is [0.2, 0.0, 0.2], expected three fractions"),
        ("decode = \"fast\"", "`data.image.decode` is \"fast\", expected \"scaled\", \"full\""),
        ("bad = \"drop\"", "`data.image.bad` is \"drop\", expected \"error\", \"skip\""),
        ("auto_augment = \"ra\"", "is \"ra\", expected one of \"none\", \"rand_augment\", \"trivial_augment_wide\""),
        ("auto_magnitude = 31", "`data.image.auto_magnitude` is 31, expected a bin below data.image.auto_bins = 31"),
        ("erase = 1.5", "`data.image.erase` is 1.5, expected a probability 0 … 1"),
        (
            "erase_ratio = [3.0, 0.3]",
            "`data.image.erase_ratio` is [3.0, 0.3], expected [least, greatest] height ÷ width",
        ),
        ("corp = 3", "unknown key `data.image.corp`; did you mean `data.image.crop`?"),
    ] {
        let error = recipe(keys).unwrap_err();
        assert!(error.contains(expected), "{keys}: {error}");
    }
}

#[test]
fn images_of_a_folder_have_no_mean_image_and_other_sets_no_such_keys() {
    let error = Recipe::from_toml("[data]\nkind = \"image-folder\"\n", "r.toml").unwrap_err().to_string();
    assert!(error.contains("`data.normalize` is \"pixel_mean\", expected \"channel\""), "{error}");
    let error = Recipe::from_toml("[data.image]\ncrop = 32\n", "r.toml").unwrap_err().to_string();
    assert!(error.contains("they are for kind = \"image-folder\" or \"webdataset\" only"), "{error}");
}

#[test]
fn shards_have_the_keys_of_image_files_and_those_of_stores() {
    let of = |keys: &str| {
        let text = format!("[data]\nkind = \"webdataset\"\nnormalize = \"channel\"\n{keys}\n");
        Recipe::from_toml(&text, "r.toml")
    };
    let plain = of("").unwrap();
    assert_eq!((plain.data.kind, &*plain.data.path), (DataKind::Webdataset, "data/imagenet-shards"));
    assert_eq!((plain.data.cache_bytes, plain.data.read_timeout_s, plain.data.block), (8 << 30, 120.0, 1024));
    // where data lies and how they are fetched may differ on resume, the order may not
    let elsewhere = of("path = \"s3://b/x\"\ncache_bytes = 0\ncache_dir = \"/x\"\nread_timeout_s = 1.5").unwrap();
    assert_eq!((plain.differences(&elsewhere), plain.sha256()), (vec![], elsewhere.sha256()));
    let blocks = of("order = \"blocks\"").unwrap();
    assert_eq!(plain.differences(&blocks), ["data.order: \"full\" → \"blocks\""]);
    assert_ne!(plain.sha256(), blocks.sha256());
    for (keys, said) in [
        ("block = 5", "it is for data.order = \"blocks\" only"),
        ("order = \"blocks\"\nblock_window = 0", "at least 1 and at most 2^32"),
        ("order = \"blocks\"\nsampling = \"with_replacement\"", "draws with replacement have no order"),
        ("read_timeout_s = 0.0", "seconds, above 0"),
    ] {
        let error = of(keys).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}
