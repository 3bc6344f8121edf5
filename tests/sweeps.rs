//! Sweeps: the tables of the Torch7 project row by row, what is wrong, and a sweep that is killed and goes on.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Running, count, end, lockstep};
use serde_json::Value;

/// What the Torch7 project published; `data/README.md` says where it comes from.
const PUBLISHED: &str = include_str!("data/seed_results.csv");
/// Of the lines of that file, those that stand in its README; the others are its notebook's.
const NUM_README: usize = 34;
const NOTEBOOK: &str = "in the notebook only";

fn recipes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/sweeps")
}

/// `lockstep sweep --list --json`, a value a row.
fn list(sweeps: &[&Path], out: &Path) -> Vec<Value> {
    let ended = end(lockstep(&["sweep", "--list", "--json", "--out"]).arg(out).args(sweeps)).succeeded();
    ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Fields of a line of CSV; quotes may enclose commas.
fn fields(line: &str) -> Vec<String> {
    let (mut fields, mut is_quoted) = (vec![String::new()], false);
    for c in line.chars() {
        match c {
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => fields.push(String::new()),
            c => fields.last_mut().unwrap().push(c),
        }
    }
    fields
}

fn published() -> Vec<BTreeMap<&'static str, String>> {
    let mut lines = PUBLISHED.lines();
    let names: Vec<&str> = lines.next().unwrap().split(',').collect();
    let rows = lines.map(|line| {
        let fields = fields(line);
        assert_eq!(fields.len(), names.len(), "{line}");
        names.iter().copied().zip(fields).collect()
    });
    rows.collect()
}

/// A row of `--list --json` in the words of the CSV.
fn in_its_words(row: &Value) -> BTreeMap<&'static str, String> {
    let recipe = &row["recipe"];
    let (model, optim, schedule) = (&recipe["model"], &recipe["optim"], &recipe["schedule"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let figure = |value: &Value| value.as_f64().map(|error| format!("{error:.4}")).unwrap_or_default();
    let solver = match (&*text(&optim["solver"]), &optim["nesterov"]) {
        ("sgd", Value::Bool(true)) => "sgd_nesterov".to_owned(),
        (solver, _) => solver.to_owned(),
    };
    // Adadelta has no rate of its own: one throughout.
    let lr = if solver == "adadelta" { String::new() } else { schedule["lr"].to_string() };
    let bn_momentum = model["bn_momentum"].as_str().map_or(model["bn_momentum"].to_string(), str::to_owned);
    let weight_decay = match optim["weight_decay"].as_f64().unwrap() {
        0.0 => "0".to_owned(),
        decay => format!("{decay:e}"),
    };
    BTreeMap::from([
        ("table", text(&row["table"])),
        ("label", text(&row["label"])),
        ("n", model["n"].to_string()),
        ("layers", row["layers"].to_string()),
        ("final_relu", if model["final_relu"] == true { "yes" } else { "no" }.to_owned()),
        ("bn_position", text(&model["bn_position"])),
        ("solver", solver),
        ("lr", lr),
        ("bn_momentum", bn_momentum),
        ("weight_decay", weight_decay),
        ("warmup_steps", schedule["warmup_steps"].to_string()),
        ("init", text(&model["init"])),
        ("seed_test_error", figure(&row["seed_test_error"])),
        ("paper_test_error", figure(&row["paper_test_error"])),
        ("note", text(&row["note"])),
    ])
}

#[test]
fn every_published_row_is_there_and_equal_column_by_column() {
    let out = tempfile::tempdir().unwrap();
    let folder = recipes();
    let rows = list(&[&folder], out.path());
    let published = published();
    let num_readme = published.iter().filter(|line| !line["note"].starts_with(NOTEBOOK)).count();
    assert_eq!((published.len(), num_readme), (37, NUM_README));

    let key = |row: &BTreeMap<&str, String>| (row["table"].clone(), row["label"].clone());
    let ours: BTreeMap<_, _> = rows.iter().map(in_its_words).map(|row| (key(&row), row)).collect();
    assert_eq!(ours.len(), rows.len(), "labels are unique in a table");
    let mut joined = 0;
    for line in &published {
        let row = ours.get(&key(line)).unwrap_or_else(|| panic!("no row for {line:?}"));
        assert_eq!(row, line);
        joined += 1;
    }
    eprintln!("{joined} of {} published rows, {num_readme} of them of the README", published.len());
    let tables: BTreeSet<_> = published.iter().map(|line| line["table"].clone()).collect();
    let of_tables = ours.keys().filter(|(table, _)| tables.contains(table)).count();
    assert_eq!(of_tables, published.len(), "and no row that was not published");
}

/// What the CSV has no column for, and the protocol says.
#[test]
fn every_row_of_the_tables_trains_as_the_protocol_says() {
    let out = tempfile::tempdir().unwrap();
    let tables: BTreeSet<String> = published().into_iter().map(|line| line["table"].clone()).collect();
    let rows = list(&[], out.path());
    for row in rows.iter().filter(|row| tables.contains(row["table"].as_str().unwrap())) {
        let (recipe, label) = (&row["recipe"], &row["label"]);
        let (optim, schedule) = (&recipe["optim"], &recipe["schedule"]);
        assert_eq!((&recipe["train"]["epochs"], &recipe["train"]["batch"]), (&200.into(), &128.into()), "{label}");
        assert_eq!(recipe["data"]["kind"], "cifar10", "{label}");
        let solver = optim["solver"].as_str().unwrap();
        if solver == "adadelta" {
            assert_eq!(
                (&schedule["kind"], &schedule["lr"], &optim["rho"]),
                (&"constant".into(), &1.0.into(), &0.3.into())
            );
        } else {
            assert_eq!((&schedule["kind"], &schedule["milestones"]), (&"step".into(), &Value::from(vec![80, 120])));
        }
        match solver {
            "sgd" => assert_eq!((&optim["momentum"], &optim["dampening"]), (&0.9.into(), &0.0.into()), "{label}"),
            "rmsprop" => assert_eq!(optim["alpha"], 0.9, "{label}"),
            _ => {}
        }
        let expected = if schedule["warmup_steps"] == 0 { ("none", 0.0) } else { ("held", 0.001) };
        assert_eq!((&schedule["warmup"], &schedule["warmup_lr"]), (&expected.0.into(), &expected.1.into()), "{label}");
        assert_eq!(row["runs"].as_array().unwrap().len(), row["seeds"].as_array().unwrap().len(), "{label}");
    }
}

#[test]
fn every_sweep_in_the_folder_is_inside_the_program() {
    let out = tempfile::tempdir().unwrap();
    let folder = recipes();
    let mut inside = list(&[], out.path());
    let mut outside = list(&[&folder], out.path());
    let order = |row: &Value| (row["table"].to_string(), row["label"].to_string());
    inside.sort_by_key(order);
    outside.sort_by_key(order);
    assert_eq!(inside, outside);
}

#[track_caller]
fn refused(args: &[&str], code: i32, message: &str) {
    let ended = end(lockstep(&["sweep"]).args(args));
    assert_eq!((ended.code, &*ended.error(&[])), (Some(code), message));
}

#[test]
fn what_is_wrong_with_a_sweep_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    refused(&[], 64, "error: which sweep? name a file, a folder, or one of `lockstep sweep --list`");
    refused(
        &["arch_shalow"],
        64,
        "error: no sweep is called `arch_shalow` (did you mean `arch_shallow`?); `lockstep sweep --list` shows them all",
    );
    refused(&["no/such.toml"], 66, "error: sweep no/such.toml does not exist");
    let path = file("key.toml", "recipe = \"demo\"\nseed = [1]\n[[row]]\nlabel = \"a\"\n");
    refused(&[&path], 64, &format!("error: {path}, line 2: unknown key `seed`; did you mean `seeds`?"));
    let path = file("set.toml", "recipe = \"demo\"\n\n[[row]]\nlabel = \"a row\"\nset.model.n = 0\n");
    refused(
        &[&path],
        64,
        &format!(
            "error: {path}, line 3: row \"a row\": --set model.n=0: `model.n` is 0, expected at least 1 (depth is 6n + 2) \
             and at most 1000"
        ),
    );
    let path = file("base.toml", "recipe = \"base/none.toml\"\n[[row]]\nlabel = \"a\"\n");
    let base = dir.path().join("base/none.toml");
    let expected = format!("error: {path}, line 2: row \"a\": recipe {} does not exist", base.display());
    refused(&[&path], 66, &expected);
    let ended = end(&mut lockstep(&["sweep", "short", "--jobs", "0"]));
    assert_eq!(ended.code, Some(64));
    assert!(ended.stderr.contains("expected a number above 0, or auto"), "{}", ended.stderr);
}

/// Two tables: three runs, of which two stand in both. The second run is long enough to be killed in its middle.
const TABLES: [(&str, &str); 2] = [
    (
        "first.toml",
        "recipe = \"demo\"\n[set]\ndata = { limit = 100, test_limit = 40 }\nmodel = { n = 1, width = 8 }\n\
         schedule.kind = \"constant\"\ntrain = { batch = 32, chunk = 8, epochs = 2, window = 4, evaluate_every_epochs = 50 }\n\
         log.every_s = 0.05\ncheckpoint = { every_steps = 20, every_epochs = 0 }\n\
         [[row]]\nlabel = \"plain\"\n[[row]]\nlabel = \"long\"\nset.train.epochs = 60\n\
         [[row]]\nlabel = \"narrow\"\nset.model.width = 4\n",
    ),
    (
        "second.toml",
        "recipe = \"demo\"\n[set]\ndata = { limit = 100, test_limit = 40 }\nmodel = { n = 1, width = 8 }\n\
         schedule.kind = \"constant\"\ntrain = { batch = 32, chunk = 8, epochs = 2, window = 4, evaluate_every_epochs = 50 }\n\
         [[row]]\nlabel = \"the same\"\n[[row]]\nlabel = \"the same too\"\nset.train.epochs = 60\n",
    ),
];

struct Sweep {
    _dir: tempfile::TempDir,
    tables: PathBuf,
    out: PathBuf,
}

impl Sweep {
    fn new(tables: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("tables");
        fs::create_dir(&folder).unwrap();
        tables.iter().for_each(|(name, text)| fs::write(folder.join(name), text).unwrap());
        Self { tables: folder, out: dir.path().join("out"), _dir: dir }
    }

    fn command(&self) -> Command {
        let mut command = lockstep(&["sweep", "--json", "--jobs", "1", "--threads", "1", "--out"]);
        command.arg(&self.out).arg(&self.tables);
        command
    }

    /// Run directories in the order of the rows, each with its state.
    fn runs(&self) -> Vec<(PathBuf, String)> {
        let mut seen = BTreeSet::new();
        let rows = list(&[&self.tables], &self.out);
        let runs = rows.iter().flat_map(|row| row["runs"].as_array().unwrap());
        let runs =
            runs.map(|run| (PathBuf::from(run["dir"].as_str().unwrap()), run["state"].as_str().unwrap().to_owned()));
        runs.filter(|(dir, _)| seen.insert(dir.clone())).collect()
    }
}

/// Waits until the run of this row of the sweep has reached a step.
#[track_caller]
fn wait_for(running: &mut Running, label: &str, step: u64) -> u64 {
    let reached = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap_or_default();
        let runs = value["running"].as_array().cloned().unwrap_or_default();
        runs.iter().any(|run| run["label"] == label && run["step"].as_u64().unwrap() >= step)
    };
    let line = running.wait_for(reached);
    let line = line.unwrap_or_else(|| panic!("the sweep ended before step {step} of {label}"));
    let value: Value = serde_json::from_str(&line).unwrap();
    value["running"][0]["step"].as_u64().unwrap()
}

/// What changes when anyone opens a run for writing.
fn touched(run: &Path) -> (u64, i64, i64) {
    let metadata = fs::metadata(run.join("run.db")).unwrap();
    (metadata.ino(), metadata.mtime(), metadata.mtime_nsec())
}

#[test]
fn a_sweep_that_is_killed_goes_on_where_it_was() {
    let sweep = Sweep::new(&TABLES);
    let states = || sweep.runs().into_iter().map(|(_, state)| state).collect::<Vec<_>>();
    assert_eq!(states(), ["absent", "absent", "absent"]);

    let mut first = Running::start(&mut sweep.command());
    wait_for(&mut first, "long", 10);
    let refused = end(&mut sweep.command());
    assert_eq!(refused.code, Some(73), "{}", refused.stderr);
    assert!(refused.stderr.contains(&format!("process {}; stop that one first", first.pid())), "{}", refused.stderr);
    first.kill();
    assert_eq!(first.end().code, None);
    let dirs: Vec<PathBuf> = sweep.runs().into_iter().map(|(dir, _)| dir).collect();
    let finished = touched(&dirs[0]);

    let mut second = Running::start(&mut sweep.command());
    // What the first one's training did until it ended is far less than 60 steps.
    let taken_up = wait_for(&mut second, "long", 10);
    wait_for(&mut second, "long", taken_up + 60);
    second.signal("TERM");
    let ended = second.end();
    assert_eq!(ended.code, Some(75), "{}", ended.stderr);
    assert_eq!(ended.error(&[]), "error: interrupted with 1 of 3 runs done; the same command goes on");
    assert_eq!(states(), ["done", "partial", "absent"]);

    let third = end(&mut sweep.command()).succeeded();
    assert_eq!(third.json()["done"], 3, "{}", third.stdout);
    assert_eq!(states(), ["done", "done", "done"]);
    assert_eq!(touched(&dirs[0]), finished, "what was done is not opened again");
    assert!(count(&dirs[1], "SELECT count(*) FROM generations") >= 3, "the cut run was resumed twice");
    assert_eq!(count(&dirs[1], "SELECT count(*) FROM steps"), 240);
    assert_eq!(count(&dirs[2], "SELECT count(*) FROM generations"), 1);

    let before: Vec<_> = dirs.iter().map(|dir| touched(dir)).collect();
    let fourth = end(&mut sweep.command()).succeeded();
    assert!(!fourth.stdout.contains("run_started"), "{}", fourth.stdout);
    assert_eq!(dirs.iter().map(|dir| touched(dir)).collect::<Vec<_>>(), before);
}

#[test]
fn a_run_that_fails_is_named_and_the_others_go_on() {
    let text = "recipe = \"demo\"\n[set]\ndata = { limit = 64, test_limit = 40 }\nmodel = { n = 1, width = 4 }\n\
                train = { batch = 32, epochs = 1 }\n\
                [[row]]\nlabel = \"no data\"\nrecipe = \"cifar10/short\"\nset.data.path = \"/no/such/folder\"\n\
                [[row]]\nlabel = \"good\"\n";
    let sweep = Sweep::new(&[("table.toml", text)]);
    let ended = end(&mut sweep.command());
    assert_eq!(ended.code, Some(66), "{}\n{}", ended.stdout, ended.stderr);
    let error = ended.error(&[(&sweep.out, "OUT")]);
    assert!(error.starts_with("error: 1 of 2 runs failed; the same command tries them again:\n  OUT/"), "{error}");
    assert!(error.contains("/no/such/folder: no such folder: run `lockstep data fetch cifar10`"), "{error}");
    let states: Vec<_> = sweep.runs().into_iter().map(|(_, state)| state).collect();
    assert_eq!(states, ["failed", "done"]);
}
