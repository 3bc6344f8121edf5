//! Recipes: what is read, what is refused and in which words, what is embedded.

#![allow(clippy::unwrap_used)]

use lockstep_proto::exit::ExitCode;
use lockstep_proto::recipe::{
    Arch, BatchNorm, DataKind, Precision, Recipe, RecipeError, Reduction, Sampling, ScheduleKind, Shortcut, Warmup,
    builtin,
};
use proptest::prelude::*;

fn refused(text: &str) -> String {
    let error = Recipe::from_toml(text, "my.toml").expect_err(text);
    assert_eq!(error.exit_code(), ExitCode::Usage, "{error}");
    error.to_string()
}

fn set(sets: &[&str]) -> Result<Recipe, RecipeError> {
    Recipe::load("demo", &sets.iter().map(|set| (*set).to_owned()).collect::<Vec<_>>())
}

fn set_refused(set_: &str) -> String {
    let error = set(&[set_]).expect_err(set_);
    assert_eq!(error.exit_code(), ExitCode::Usage, "{error}");
    error.to_string()
}

#[test]
fn an_empty_recipe_is_the_defaults_named_after_its_file() {
    let recipe = Recipe::from_toml("", "some/where/first.toml").unwrap();
    assert_eq!(recipe, Recipe { name: "first".to_owned(), ..Recipe::default() });
}

#[test]
fn an_unknown_key_is_named_with_path_place_and_nearest_key() {
    assert_eq!(
        refused("[train]\nepochs = 3\nbach = 3\n"),
        "my.toml, line 3: unknown key `train.bach`; did you mean `train.batch`?"
    );
    assert_eq!(refused("[optim]\nlr = 0.1\n"), "my.toml, line 2: unknown key `optim.lr`; did you mean `schedule.lr`?");
    assert_eq!(refused("[trian]\nbatch = 3\n"), "my.toml, line 1: unknown key `trian`; did you mean `train`?");
    assert_eq!(refused("batch = 3\n"), "my.toml, line 1: unknown key `batch`; did you mean `train.batch`?");
    assert_eq!(
        refused("\n\ndata.augment.shfit = 3\n"),
        "my.toml, line 3: unknown key `data.augment.shfit`; did you mean `data.augment.shift`?"
    );
    assert!(refused("[elastic]\nworkers = 2").ends_with("did you mean `elastic.max_workers`?"));
    assert_eq!(refused("[train]\nzzzzzz = 3\n"), "my.toml, line 2: unknown key `train.zzzzzz`");
}

#[test]
fn a_wrong_type_is_named_with_key_value_and_what_was_expected() {
    let whole = "a whole number that is not negative";
    assert_eq!(
        refused("[train]\nbatch = \"many\""),
        format!("my.toml, line 2: `train.batch` is \"many\", expected {whole}")
    );
    assert_eq!(refused("[train]\nbatch = -1"), format!("my.toml, line 2: `train.batch` is -1, expected {whole}"));
    assert_eq!(refused("[train]\nbatch = 1.5"), format!("my.toml, line 2: `train.batch` is 1.5, expected {whole}"));
    assert_eq!(refused("[schedule]\nlr = true"), "my.toml, line 2: `schedule.lr` is true, expected a number");
    assert_eq!(refused("[optim]\nnesterov = 1"), "my.toml, line 2: `optim.nesterov` is 1, expected true or false");
    assert_eq!(
        refused("[train]\nprecision = \"fp33\""),
        "my.toml, line 2: `train.precision` is \"fp33\", expected one of \"fp32\", \"bf16\", \"fp64\""
    );
    assert_eq!(
        refused("[train]\nreduction = \"quick\""),
        "my.toml, line 2: `train.reduction` is \"quick\", expected \"canonical\", \"fast\""
    );
    assert_eq!(refused("train = 3"), "my.toml, line 1: `train` is 3, expected a table");
    assert_eq!(refused("[schedule]\nmilestones = 3"), "my.toml, line 2: `schedule.milestones` is 3, expected a list");
    assert_eq!(
        refused("[schedule]\nmilestones = [1, \"x\"]"),
        format!("my.toml, line 2: `schedule.milestones` is [1, \"x\"], expected {whole}")
    );
    assert!(refused("[train.batch]\nx = 1").starts_with("my.toml, line 1: `train.batch` is "));
}

#[test]
fn broken_toml_names_the_line() {
    assert!(refused("[train]\nbatch = \n").starts_with("my.toml, line 2: not valid TOML: "));
    assert!(refused("[train]\nbatch = 1\nbatch = 2\n").starts_with("my.toml, line 3: not valid TOML: "));
}

#[test]
fn a_set_value_is_toml_and_a_bare_word_is_a_string() {
    let recipe = set(&[
        "train.batch=32",
        "train.precision=fp64",
        "train.batch_norm = \"chunk\"",
        "schedule.kind=step",
        "schedule.milestones=[1, 2]",
        "schedule.lr=1",
        "data.augment={ shift = 2 }",
        "data.path=/a/b c",
        "name=other",
        "train.batch=48",
    ])
    .unwrap();
    assert_eq!(recipe.train.batch, 48, "the last one counts");
    assert_eq!(recipe.train.precision, Precision::Fp64);
    assert_eq!(recipe.train.batch_norm, BatchNorm::Chunk);
    assert_eq!(recipe.schedule.milestones, [1, 2]);
    assert_eq!(recipe.schedule.lr, 1.0);
    assert_eq!((recipe.data.augment.shift, recipe.data.augment.flip), (2, true));
    assert_eq!(recipe.data.path, "/a/b c");
    assert_eq!(recipe.name, "other");
}

#[test]
fn a_wrong_set_names_the_argument() {
    assert_eq!(
        set_refused("train.bach=3"),
        "--set train.bach=3: unknown key `train.bach`; did you mean `train.batch`?"
    );
    assert_eq!(set_refused("train.batch"), "--set train.batch: no `=`; expected key=value, as in --set train.batch=64");
    assert_eq!(set_refused("=3"), "--set =3: the key is empty; expected key=value, as in --set train.batch=64");
    assert_eq!(set_refused("train.batch=0"), "--set train.batch=0: `train.batch` is 0, expected at least 1 sample");
    let message = set_refused("train.batch=1\nname = \"x\"");
    assert!(message.contains("`train.batch` is "), "one argument sets one key: {message}");
    assert_eq!(
        set_refused("data.augment={ shfit = 3 }"),
        "--set data.augment={ shfit = 3 }: unknown key `data.augment.shfit`; did you mean `data.augment.shift`?"
    );
}

#[test]
fn senseless_values_are_refused_by_name() {
    for (text, key) in [
        ("[train]\nbatch = 0", "train.batch"),
        ("[train]\nchunk = 0", "train.chunk"),
        ("[train]\nbatch = 8\nchunk = 9", "train.chunk"),
        ("[train]\nbatch = 20000000\nchunk = 1", "train.batch"),
        ("[train]\neval_chunk = 0", "train.eval_chunk"),
        ("[train]\nepochs = 0", "train.epochs"),
        ("[train]\nwindow = 0", "train.window"),
        ("[train]\nbucket_bytes = 0", "train.bucket_bytes"),
        ("[optim]\ndampening = 0.1", "optim.dampening"),
        ("[optim]\nmomentum = 0.0", "optim.nesterov"),
        ("[optim]\nmomentum = 1.0", "optim.momentum"),
        ("[optim]\nmomentum = -0.1", "optim.momentum"),
        ("[optim]\nmomentum = nan", "optim.momentum"),
        ("[optim]\nweight_decay = inf", "optim.weight_decay"),
        ("[schedule]\nlr = 0", "schedule.lr"),
        ("[schedule]\nlr = inf", "schedule.lr"),
        ("[schedule]\nlr = nan", "schedule.lr"),
        ("[schedule]\nmilestones = [3, 2]", "schedule.milestones"),
        ("[schedule]\nmilestones = [3, 3]", "schedule.milestones"),
        ("[schedule]\nmilestones = [0]", "schedule.milestones"),
        ("[schedule]\nkind = \"cosine\"\nmilestones = [3]", "schedule.milestones"),
        ("[schedule]\nwarmup = \"linear\"", "schedule.warmup"),
        ("[schedule]\nwarmup = \"held\"\nwarmup_steps = 3", "schedule.warmup_lr"),
        ("[schedule]\nwarmup_steps = 3", "schedule.warmup_steps"),
        ("[schedule]\nwarmup_epochs = 0.5", "schedule.warmup_epochs"),
        ("[model]\nn = 0", "model.n"),
        ("[model]\nwidth = 0", "model.width"),
        ("[model]\nbn_momentum = 0.0", "model.bn_momentum"),
        ("[model]\nbn_momentum = 1.1", "model.bn_momentum"),
        ("[model]\nbn_eps = 0", "model.bn_eps"),
        ("[elastic]\nmin_workers = 0", "elastic.min_workers"),
        ("[elastic]\nmin_workers = 3\nmax_workers = 2", "elastic.max_workers"),
        ("[elastic]\ncollective_timeout_s = 0", "elastic.collective_timeout_s"),
        ("[log]\nevery_s = nan", "log.every_s"),
        ("[data]\nkind = \"cifar10\"\ntrain_size = 5", "data.train_size"),
        ("[data]\ntest_size = 0", "data.test_size"),
        ("[data.augment]\nshift = 33", "data.augment.shift"),
        ("name = \"../up\"", "name"),
        ("name = \".hidden\"", "name"),
    ] {
        let message = refused(text);
        assert!(message.contains(&format!("`{key}` is ")), "{text:?} gives {message}");
    }
    assert_eq!(
        refused("[optim]\n\nmomentum = 1.0"),
        "my.toml, line 3: `optim.momentum` is 1, expected at least 0 and below 1"
    );
}

#[test]
fn unusual_but_sensible_values_are_taken() {
    for text in [
        "[optim]\nmomentum = 0.0\nnesterov = false",
        "[optim]\nnesterov = false\ndampening = 0.5",
        "[train]\nepochs = 0\nmax_steps = 7",
        "[train]\nbatch = 1\nchunk = 1",
        "[model]\nbn_momentum = 1.0",
        "[schedule]\nwarmup = \"linear\"\nwarmup_epochs = 0.5",
        "[checkpoint]\nevery_steps = 0\nevery_epochs = 0\nkeep = 0",
    ] {
        Recipe::from_toml(text, "my.toml").unwrap();
    }
}

#[test]
fn the_resolved_recipe_repeats_itself() {
    for builtin in builtin() {
        let recipe = Recipe::load(builtin.name, &[]).unwrap();
        let again = Recipe::from_toml(&recipe.to_toml(), "recipe.toml").unwrap();
        assert_eq!(again, recipe, "{}", builtin.name);
        assert_eq!(again.sha256(), recipe.sha256());
        assert_eq!(recipe.differences(&again), Vec::<String>::new());
    }
    let odd = set(&["schedule.lr=0.30000000000000004", "train.seed=9223372036854775807", "optim.weight_decay=1e-300"]);
    let odd = odd.unwrap();
    assert_eq!(Recipe::from_toml(&odd.to_toml(), "recipe.toml").unwrap(), odd);
}

#[test]
fn the_hash_is_over_keys_that_decide_the_course() {
    let hash = |sets: &[&str]| {
        let all = [&["schedule.kind=step"], sets].concat();
        set(&all).unwrap().sha256()
    };
    let plain = hash(&[]);
    for free in [
        "elastic.min_workers=3",
        "checkpoint.keep=9",
        "log.every_s=1",
        "data.path=elsewhere",
        "train.epochs=77",
        "train.max_steps=5",
        "name=other",
    ] {
        assert_eq!(hash(&[free]), plain, "{free}");
    }
    for deciding in [
        "train.seed=1",
        "train.batch=65",
        "schedule.lr=0.11",
        "optim.momentum=0.8",
        "data.augment.shift=3",
        "model.n=2",
        "train.chunk=8",
        "train.window=31",
    ] {
        assert_ne!(hash(&[deciding]), plain, "{deciding}");
    }
    let cosine = |set_: &str| set(&["schedule.kind=cosine", set_]).unwrap().sha256();
    assert_ne!(cosine("train.epochs=4"), cosine("train.epochs=5"), "the schedule is stretched over the run");
}

/// If this fails, checkpoints of earlier versions are refused: do it knowingly.
#[test]
fn the_hash_never_changes_by_accident() {
    assert_eq!(Recipe::default().sha256(), "bed30867ebd523f1f6158e94051fd728718dc9b34f17079d65ad49dd28d098f7");
}

#[test]
fn on_resume_only_free_keys_and_a_later_end_may_differ() {
    let stepped = |sets: &[&str]| set(&[&["schedule.kind=step", "train.epochs=4"], sets].concat()).unwrap();
    let run = stepped(&[]);
    let none = Vec::<String>::new();
    for free in ["elastic.balance=true", "checkpoint.every_steps=1", "log.tensorboard=false", "data.path=x"] {
        assert_eq!(run.differences(&stepped(&[free])), none, "{free}");
    }
    assert_eq!(run.differences(&stepped(&["train.epochs=5"])), none);
    let endless = stepped(&["train.epochs=0", "train.max_steps=9"]);
    assert_eq!(endless.differences(&stepped(&["train.epochs=0", "train.max_steps=10"])), none);
    assert_eq!(endless.differences(&stepped(&["train.max_steps=9"])), ["train.epochs: 0 → 4 (it may only grow)"]);
    assert_eq!(run.differences(&stepped(&["train.epochs=3"])), ["train.epochs: 4 → 3 (it may only grow)"]);
    assert_eq!(run.differences(&stepped(&["train.max_steps=3"])), ["train.max_steps: 0 → 3 (it may only grow)"]);
    assert_eq!(stepped(&["train.max_steps=3"]).differences(&run), none, "0 is no limit");
    assert_eq!(
        run.differences(&stepped(&["train.batch=128", "train.seed=1"])),
        ["train.batch: 64 → 128", "train.seed: 0 → 1"]
    );
    assert_eq!(run.differences(&stepped(&["name=other"])), ["name: \"demo\" → \"other\""]);
}

#[test]
fn a_schedule_over_the_whole_run_forbids_another_end() {
    let cosine = |epochs: &str| set(&["schedule.kind=cosine", epochs]).unwrap();
    assert_eq!(
        cosine("train.epochs=4").differences(&cosine("train.epochs=8")),
        ["train.epochs: 4 → 8 (it stretches the schedule, so every rate would change)"]
    );
}

#[test]
fn names_and_files_that_do_not_exist_are_told_apart() {
    let error = Recipe::load("dmeo", &[]).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Usage);
    assert_eq!(
        error.to_string(),
        "no recipe is called `dmeo` (did you mean `demo`?); `lockstep train --list` shows them all"
    );
    let error = Recipe::load("resnet20", &[]).unwrap_err();
    assert!(error.to_string().contains("did you mean `cifar10/resnet20`?"), "{error}");
    let error = Recipe::load("no/such/thing.toml", &[]).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::NoInput);
    assert_eq!(error.to_string(), "recipe no/such/thing.toml does not exist");
    assert_eq!(Recipe::load("./mine", &[]).unwrap_err().exit_code(), ExitCode::NoInput);
    let folder = tempfile::tempdir().unwrap();
    let error = Recipe::load(folder.path().to_str().unwrap(), &[]).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::NoInput);
}

#[test]
fn a_file_is_read_and_named_after_its_stem() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.toml");
    std::fs::write(&path, "[train]\nbatch = 32\n").unwrap();
    let recipe = Recipe::load(path.to_str().unwrap(), &["train.epochs=2".to_owned()]).unwrap();
    assert_eq!((recipe.name.as_str(), recipe.train.batch, recipe.train.epochs), ("mine", 32, 2));
}

#[test]
fn every_file_under_recipes_parses_and_is_embedded() {
    fn visit(folder: &std::path::Path, files: &mut Vec<std::path::PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                // Tables of runs are no recipes; the command embeds and checks them.
                if !path.ends_with("sweeps") {
                    visit(&path, files);
                }
            } else if path.extension().is_some_and(|extension| extension == "toml") {
                files.push(path);
            }
        }
    }
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes");
    let mut files = Vec::new();
    visit(&root, &mut files);
    assert_eq!(files.len(), builtin().len());
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# "), "{} lacks its header", path.display());
        let recipe = Recipe::load(path.to_str().unwrap(), &[]).unwrap();
        let name = path.strip_prefix(&root).unwrap().with_extension("");
        let embedded = Recipe::load(name.to_str().unwrap(), &[]).unwrap();
        assert_eq!(recipe, embedded, "{}", path.display());
        assert!(!recipe.name.is_empty());
    }
}

#[test]
fn the_protocol_of_cifar10_is_what_the_recipes_say() {
    for (name, n) in [("resnet20", 3), ("resnet32", 5), ("resnet44", 7), ("resnet56", 9), ("resnet110", 18)] {
        let recipe = Recipe::load(&format!("cifar10/{name}"), &[]).unwrap();
        assert_eq!((recipe.model.arch, recipe.model.n, recipe.model.width), (Arch::ResnetCifar, n, 16));
        assert_eq!((recipe.model.shortcut, recipe.model.final_relu), (Shortcut::A, true));
        assert_eq!((recipe.data.kind, recipe.data.sampling), (DataKind::Cifar10, Sampling::Once));
        assert_eq!((recipe.data.augment.shift, recipe.data.augment.flip), (4, true));
        assert_eq!((recipe.train.batch, recipe.train.epochs, recipe.train.chunk), (128, 200, 16));
        assert_eq!((recipe.train.batch_norm, recipe.train.reduction), (BatchNorm::Global, Reduction::Canonical));
        assert_eq!((recipe.optim.momentum, recipe.optim.nesterov), (0.9, true));
        assert_eq!((recipe.optim.weight_decay, recipe.optim.decay_vectors), (1e-4, true));
        assert_eq!((recipe.schedule.kind, recipe.schedule.lr), (ScheduleKind::Step, 0.1));
        assert_eq!(recipe.schedule.milestones, [80, 120]);
        let held = if n == 18 { (Warmup::Held, 400, 0.001) } else { (Warmup::None, 0, 0.0) };
        assert_eq!((recipe.schedule.warmup, recipe.schedule.warmup_steps, recipe.schedule.warmup_lr), held);
    }
    let short = Recipe::load("cifar10/short", &[]).unwrap();
    assert_eq!((short.train.epochs, short.schedule.milestones), (5, vec![3]));
}

proptest! {
    #[test]
    fn whatever_a_recipe_says_it_is_read_or_refused(text in "(\\[?(train|data|x)(\\.batch|\\.augment)?\\]?( = )?[-0-9a-z\"'{}\\[\\]]{0,6}\n){0,5}") {
        let _ = Recipe::from_toml(&text, "my.toml");
    }

    #[test]
    fn whatever_is_set_is_taken_or_refused(text in "(train|schedule|data|name|é)?(\\.batch|\\.lr|\\.augment|\\.)?=?[-0-9a-z\"'{}\\[\\]\n =.é]{0,8}") {
        if let Err(error) = Recipe::load("demo", std::slice::from_ref(&text)) {
            prop_assert_eq!(error.exit_code(), ExitCode::Usage);
        }
    }

    /// One damaged byte in a good recipe: an error names a line of the file.
    #[test]
    fn a_damaged_recipe_is_refused_with_a_place_or_still_good(at in 0usize..600, byte in 32u8..127) {
        let mut text = builtin()[2].toml.as_bytes().to_vec();
        let at = at % text.len();
        text[at] = byte;
        let text = String::from_utf8_lossy(&text).into_owned();
        match Recipe::from_toml(&text, "my.toml") {
            Ok(recipe) => prop_assert!(recipe.check().is_ok()),
            Err(error) => prop_assert!(error.to_string().starts_with("my.toml, line ") || error.to_string().starts_with('`')),
        }
    }

    #[test]
    fn any_recipe_of_sensible_numbers_survives_its_own_toml(
        seed in 0u64..1 << 63, batch in 16u64..4096, lr in 1e-9f64..10.0, momentum in 0.01f64..0.99, milestones in proptest::collection::btree_set(1u64..500, 0..5),
    ) {
        let mut recipe = Recipe { name: "r".to_owned(), ..Recipe::default() };
        (recipe.train.seed, recipe.train.batch, recipe.schedule.lr, recipe.optim.momentum) = (seed, batch, lr, momentum);
        recipe.schedule.milestones = milestones.into_iter().collect();
        let again = Recipe::from_toml(&recipe.to_toml(), "recipe.toml").unwrap();
        prop_assert_eq!(again.sha256(), recipe.sha256());
        prop_assert_eq!(again, recipe);
    }
}
