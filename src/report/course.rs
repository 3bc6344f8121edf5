//! What a run is, in words, and whether published figures may be held against it.

use lockstep_proto::message::DataIdentity;
use lockstep_proto::recipe::{BatchNorm, DataKind, Precision, Recipe, ScheduleKind, Solver, Warmup};

/// The published figures are of runs of so many epochs …
const EPOCHS: u64 = 200;
/// … with drops after these …
const MILESTONES: [u64; 2] = [80, 120];
/// … and a global batch of so many images.
const BATCH: u64 = 128;

/// Data set, network, solver, length, schedule, and what else is unusual. What the run saw of the data set, if anything
/// did.
pub fn describe(recipe: &Recipe, data: Option<&DataIdentity>) -> [String; 6] {
    let mut other = Vec::new();
    match recipe.train.batch_norm {
        BatchNorm::Global => {}
        BatchNorm::Chunk => other.push("batch norm over chunks"),
        BatchNorm::Local => other.push("batch norm over each rank"),
    }
    match recipe.train.precision {
        Precision::Fp32 => {}
        Precision::Bf16 => other.push("bf16"),
        Precision::Fp64 => other.push("fp64"),
    }
    [data_set(recipe, data), network(recipe), solver(recipe), length(recipe), schedule(recipe), other.join(", ")]
}

/// In what a run differs from the protocol under which the published figures came about, as far as it makes them
/// incomparable: data, length, batch and schedule. What the tables vary (network, solver, initialisation) does not.
pub fn departures(recipe: &Recipe) -> Vec<String> {
    let mut found = Vec::new();
    if recipe.data.kind != DataKind::Cifar10 {
        found.push(format!("{} in place of cifar10", kind(recipe)));
    }
    for (limit, set) in [(recipe.data.limit, "training"), (recipe.data.test_limit, "test")] {
        if limit > 0 {
            found.push(format!("{} {set} images only", grouped(limit)));
        }
    }
    if recipe.train.epochs != EPOCHS {
        found.push(format!("{}, not {EPOCHS}", counted(recipe.train.epochs, "epoch")));
    }
    if recipe.train.max_steps > 0 {
        found.push(format!("{} at most", counted(recipe.train.max_steps, "step")));
    }
    if recipe.train.batch != BATCH {
        found.push(format!("batch {}, not {BATCH}", recipe.train.batch));
    }
    match recipe.schedule.kind {
        ScheduleKind::Step if recipe.schedule.milestones != MILESTONES => {
            let [first, second] = MILESTONES;
            found.push(format!("{}, not after {first} and {second}", drops(&recipe.schedule.milestones)));
        }
        ScheduleKind::Step if recipe.schedule.gamma != 0.1 => {
            found.push(format!("drops by {}, not by 0.1", recipe.schedule.gamma));
        }
        ScheduleKind::Step => {}
        // Adadelta has no learning rate to drop: as published.
        ScheduleKind::Constant if recipe.optim.solver == Solver::Adadelta => {}
        ScheduleKind::Constant => found.push("constant learning rate".to_owned()),
        ScheduleKind::Cosine => found.push("cosine schedule".to_owned()),
        ScheduleKind::Polynomial => found.push("polynomial schedule".to_owned()),
    }
    found
}

/// Epochs after which the learning rate drops within the run, and the factor.
pub fn rate_drops(recipe: &Recipe, total_epochs: u64) -> Option<(Vec<u64>, f64)> {
    if recipe.schedule.kind != ScheduleKind::Step {
        return None;
    }
    let inside = recipe.schedule.milestones.iter().copied().filter(|milestone| *milestone < total_epochs);
    Some((inside.collect(), recipe.schedule.gamma))
}

/// 50,000
pub fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// 1 epoch, 2 epochs
fn counted(value: u64, of: &str) -> String {
    format!("{} {of}{}", grouped(value), if value == 1 { "" } else { "s" })
}

fn kind(recipe: &Recipe) -> &'static str {
    recipe.data.kind.name()
}

fn data_set(recipe: &Recipe, data: Option<&DataIdentity>) -> String {
    match data {
        Some(data) => {
            format!("{}, {} training and {} test images", kind(recipe), grouped(data.num_train), grouped(data.num_test))
        }
        None => kind(recipe).to_owned(),
    }
}

fn network(recipe: &Recipe) -> String {
    let wider = match recipe.model.width {
        width if width == recipe.model.usual_width() => String::new(),
        width => format!(", width {width}"),
    };
    format!("{}{wider}", recipe.model.title())
}

fn solver(recipe: &Recipe) -> String {
    let optim = &recipe.optim;
    let name = match optim.solver {
        Solver::Sgd if optim.momentum == 0.0 => "SGD".to_owned(),
        Solver::Sgd if optim.nesterov => format!("SGD, Nesterov momentum {}", optim.momentum),
        Solver::Sgd => format!("SGD, momentum {}", optim.momentum),
        Solver::Rmsprop => "RMSprop".to_owned(),
        Solver::Adagrad => "Adagrad".to_owned(),
        Solver::Adadelta => "Adadelta".to_owned(),
        Solver::Adam => "Adam".to_owned(),
        Solver::Adamw => "AdamW".to_owned(),
        Solver::Lars => "LARS".to_owned(),
        Solver::Lamb => "LAMB".to_owned(),
    };
    format!("{name}, batch {}", recipe.train.batch)
}

fn length(recipe: &Recipe) -> String {
    match (recipe.train.epochs, recipe.train.max_steps) {
        (0, steps) => counted(steps, "step"),
        (epochs, 0) => counted(epochs, "epoch"),
        (epochs, steps) => format!("{}, at most {}", counted(epochs, "epoch"), counted(steps, "step")),
    }
}

fn schedule(recipe: &Recipe) -> String {
    let schedule = &recipe.schedule;
    let mut text = format!("learning rate {}", schedule.lr);
    match schedule.kind {
        ScheduleKind::Constant => text.push_str(", constant"),
        ScheduleKind::Step if schedule.milestones.is_empty() => text.push_str(", constant"),
        ScheduleKind::Step => text.push_str(&format!(", × {} {}", schedule.gamma, after(&schedule.milestones))),
        ScheduleKind::Cosine => text.push_str(&format!(", cosine to {}", schedule.final_lr)),
        ScheduleKind::Polynomial => {
            text.push_str(&format!(", polynomial of power {} to {}", schedule.power, schedule.final_lr));
        }
    }
    let length = match schedule.warmup_steps {
        0 => format!("{} epochs", schedule.warmup_epochs),
        steps => counted(steps, "step"),
    };
    match schedule.warmup {
        Warmup::None => {}
        Warmup::Linear => text.push_str(&format!(", rising from {} over {length}", schedule.warmup_lr)),
        Warmup::Held => text.push_str(&format!(", {} for the first {length}", schedule.warmup_lr)),
        Warmup::UntilError => text.push_str(&format!(
            ", {} until the training error is below {} %",
            schedule.warmup_lr,
            schedule.warmup_error * 100.0
        )),
    }
    text
}

fn drops(milestones: &[u64]) -> String {
    if milestones.is_empty() { "no drops".to_owned() } else { format!("drops {}", after(milestones)) }
}

fn after(milestones: &[u64]) -> String {
    let all: Vec<String> = milestones.iter().map(ToString::to_string).collect();
    match all.split_last() {
        Some((last, [])) => format!("after epoch {last}"),
        Some((last, before)) => format!("after epochs {} and {last}", before.join(", ")),
        None => "never".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(name: &str, sets: &[&str]) -> Recipe {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        Recipe::load(name, &sets).unwrap()
    }

    #[test]
    fn a_run_is_told_in_words() {
        assert_eq!(
            describe(&recipe("cifar10/resnet110", &[]), None).join("; "),
            "cifar10; ResNet-110; SGD, Nesterov momentum 0.9, batch 128; 200 epochs; learning rate 0.1, × 0.1 after \
             epochs 80 and 120, 0.001 for the first 400 steps; "
        );
        let data = DataIdentity {
            name: "shapes".into(),
            num_train: 10_000,
            num_test: 2_000,
            num_classes: 10,
            fingerprint: String::new(),
        };
        assert_eq!(
            describe(&recipe("demo", &["model.width=8", "train.max_steps=1", "train.precision=bf16"]), Some(&data))
                .join("; "),
            "shapes, 10,000 training and 2,000 test images; ResNet-8, width 8; SGD, Nesterov momentum 0.9, batch 64; \
             4 epochs, at most 1 step; learning rate 0.1, cosine to 0; bf16"
        );
    }

    #[test]
    fn the_rows_of_the_published_tables_are_comparable_and_short_forms_are_not() {
        for sweep in crate::sweep::find::load(&[]).unwrap() {
            let plan = crate::sweep::plan::Plan::new(&[sweep], &crate::sweep::plan::Options::default()).unwrap();
            for row in plan.sweeps.iter().flat_map(|sweep| &sweep.rows) {
                if row.reference.seed_test_error.is_some() {
                    assert_eq!(departures(&plan.configs[row.config].recipe), Vec::<String>::new(), "{}", row.label);
                }
            }
        }
        let short = ["train.epochs=4", "schedule.milestones=[2,3]", "data.limit=5000", "train.batch=64"];
        assert_eq!(
            departures(&recipe("cifar10/resnet20", &short)),
            [
                "5,000 training images only",
                "4 epochs, not 200",
                "batch 64, not 128",
                "drops after epochs 2 and 3, not after 80 and 120"
            ]
        );
        let other = ["schedule.kind=cosine", "schedule.milestones=[]", "data.kind=cifar100", "data.path="];
        let found = departures(&recipe("cifar10/resnet20", &other));
        assert_eq!(found, ["cifar100 in place of cifar10", "cosine schedule"]);
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!([0, 999, 1000, 50_000, 1_234_567].map(grouped), ["0", "999", "1,000", "50,000", "1,234,567"]);
    }
}
