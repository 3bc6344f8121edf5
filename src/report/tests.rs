//! Reports on runs made by hand: finished, cut short, absent, failed.

use std::path::{Path, PathBuf};

use lockstep_coordinator::engine::{CommittedStep, Record};
use lockstep_coordinator::provenance::Provenance;
use lockstep_coordinator::store::Store;
use lockstep_proto::ids::{Epoch, Generation, Lineage, Rank, StateId, Step, WorkerId};
use lockstep_proto::message::{DataIdentity, Member, StepTimes};
use lockstep_proto::plan::Course;
use lockstep_proto::recipe::Recipe;

use super::inputs::Inputs;
use super::model::{Row, Run, State, Stats, Table};
use super::{Args, Report, Section, X, data, html, markdown};
use crate::sweep::file::Reference;

const NUM_TRAIN: u64 = 256;

/// A run with one worker: four epochs of eight steps, or as many steps as `until`. Test errors by epoch.
fn make(dir: &Path, sets: &[&str], errors: &[f64], until: Option<u64>) -> Recipe {
    std::fs::create_dir_all(dir).unwrap();
    let sets: Vec<String> = ["train.batch=32", "train.epochs=4"].iter().chain(sets).map(|s| (*s).to_owned()).collect();
    let recipe = Recipe::load("demo", &sets).unwrap();
    let course = Course::new(&recipe, NUM_TRAIN);
    let data = DataIdentity {
        name: "shapes".into(),
        num_train: NUM_TRAIN,
        num_test: 100,
        num_classes: 10,
        fingerprint: "f1".repeat(32),
    };
    let worker = WorkerId("w".into());
    let mut records = vec![
        Record::Settled { worker: worker.clone(), data: data.clone(), isa: "avx2".into(), canary: None },
        Record::Opened {
            generation: Generation(1),
            lineage: Lineage(1),
            base: StateId { lineage: Lineage(1), generation: Generation(0), step: Step(0) },
            members: vec![Member { rank: Rank(0), worker, replica: 0, address: "127.0.0.1:1".into() }],
        },
    ];
    let last = until.unwrap_or(course.total_steps());
    for step in (1..=last).map(Step) {
        let planned = course.at(step);
        records.push(Record::Committed(Box::new(CommittedStep {
            step,
            epoch: planned.epoch,
            generation: Generation(1),
            lr: planned.lr,
            loss: 2.0 / step.0 as f64,
            wrong: 3,
            samples: planned.batch.len,
            skipped: Vec::new(),
            digest: 0,
            ready: None,
            shards: vec![planned.batch],
            times: StepTimes { wall: 0.5, ..StepTimes::default() },
        })));
        if planned.ends_epoch {
            records.push(evaluated(planned.epoch, step, errors[planned.epoch.0 as usize - 1]));
            records.push(Record::EpochEnded { epoch: planned.epoch, step });
        }
    }
    if until.is_none() {
        records.push(Record::Finished { step: Step(last), state_sha256: "ab".repeat(32) });
    }
    std::fs::write(dir.join("recipe.toml"), recipe.to_toml()).unwrap();
    let mut store = Store::open(dir).unwrap();
    store.write(&records).unwrap();
    store.close().unwrap();
    let provenance = Provenance {
        created: "20260101T000000Z".into(),
        commit: Some("c0".repeat(20)),
        diff: Some("+ <b>changed</b>".into()),
        build: "lockstep 0.1.0 (test)".into(),
        instruction_set: Some("avx2".into()),
        data: Some(data),
        ..Provenance::default()
    };
    std::fs::write(dir.join("provenance.json"), serde_json::to_string(&provenance).unwrap()).unwrap();
    recipe
}

fn evaluated(epoch: Epoch, step: Step, error: f64) -> Record {
    Record::Evaluated {
        epoch,
        step,
        generation: Generation(1),
        world_size: 1,
        loss: 1.0,
        error,
        error_top5: 0.0,
        skipped: Vec::new(),
    }
}

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

fn args(words: &[&str]) -> Args {
    let words = std::iter::once("report").chain(words.iter().copied());
    <Line as clap::Parser>::try_parse_from(words).unwrap().args
}

fn report(tables: Vec<Table>) -> Report {
    let mut report = Report::new(tables, X::Epochs).unwrap();
    (report.made, report.build) = ("20260101T000000Z".into(), "lockstep 0.1.0".into());
    report
}

/// A sweep of four rows below `dir`: three seeds finished, one row half done, one failed, one not run.
fn sweep(dir: &Path) -> Vec<Table> {
    let file = dir.join("blocks.toml");
    let text = "title = \"Blocks <b>&</b> | more\"\nrecipe = \"demo\"\nseeds = [0, 1, 2]\n[set]\n\
                train.batch = 32\ntrain.epochs = 4\n\
                [[row]]\nlabel = \"reference\"\nseed_test_error = 0.0829\npaper_test_error = 0.0875\n\
                [[row]]\nlabel = \"<i>half</i> & more\"\nset.model.n = 2\n\
                [[row]]\nlabel = \"failed\"\nset.model.n = 3\nseeds = [0]\n\
                [[row]]\nlabel = \"not run\"\nset.model.n = 4\nseeds = [0]\nnote = \"what *is* it\"\n";
    std::fs::write(&file, text).unwrap();
    let out = dir.join("out");
    let (name, to) = (file.display().to_string(), out.display().to_string());
    let words = [&*name, "--out", &*to];
    let planned = Inputs::read(&args(&words)).unwrap().tables;
    assert!(planned[0].rows.iter().flat_map(|row| &row.runs).all(|run| run.state == State::NotRun));
    let at = |row: usize, run: usize| planned[0].rows[row].runs[run].dir.clone();
    for (seed, error) in [(0, 0.30), (1, 0.32), (2, 0.31)] {
        let set = format!("train.seed={seed}");
        // The best is not the last.
        make(&at(0, seed), &[&set], &[0.6, 0.4, 0.0123, error], None);
    }
    make(&at(1, 0), &["model.n=2"], &[0.6, 0.4, 0.3, 0.5], None);
    make(&at(1, 1), &["model.n=2", "train.seed=1"], &[0.6, 0.0217], Some(20));
    make(&at(2, 0), &["model.n=3"], &[0.6, 0.0217], Some(20));
    std::fs::write(at(2, 0).with_extension("failed"), r#"{"code":70,"reason":"loss is NaN"}"#).unwrap();
    Inputs::read(&args(&words)).unwrap().tables
}

fn runs(dirs: &[PathBuf]) -> Inputs {
    let words: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    Inputs::read(&args(&words.iter().map(String::as_str).collect::<Vec<_>>())).unwrap()
}

#[test]
fn a_deviation_is_that_of_a_sample_and_one_seed_has_none() {
    assert_eq!(Stats::of(&[]), None);
    assert_eq!(Stats::of(&[0.25]), Some(Stats { num: 1, mean: 0.25, sd: None }));
    let stats = Stats::of(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).unwrap();
    assert_eq!((stats.num, stats.mean), (8, 5.0));
    assert!((stats.sd.unwrap() - (32.0f64 / 7.0).sqrt()).abs() < 1e-15);
}

#[test]
fn the_number_is_the_last_and_not_the_best() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), &[], &[0.9, 0.1, 0.2, 0.4], None);
    let table = &runs(&[dir.path().into()]).tables[0];
    assert_eq!(table.rows[0].errors(), [(0, 0.4)]);
    let text = markdown::page(&report(vec![table.clone()]));
    assert!(text.contains("| demo | 1 | 40.00 |") && !text.contains("10.00"), "{text}");
}

#[test]
fn a_last_step_without_an_evaluation_has_no_number() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), &[], &[0.9, 0.1, 0.2, 0.4], None);
    let connection = rusqlite::Connection::open(dir.path().join("run.db")).unwrap();
    connection.execute("UPDATE epochs SET test_error = NULL WHERE epoch = 4", []).unwrap();
    let row = &runs(&[dir.path().into()]).tables[0].rows[0];
    assert_eq!((row.stats(), row.runs[0].remark()), (None, Some("not evaluated at its end".into())));
}

#[test]
fn rows_that_are_not_finished_show_no_number() {
    let dir = tempfile::tempdir().unwrap();
    let tables = sweep(dir.path());
    let states: Vec<_> = tables[0].rows.iter().map(|row| super::Cells::of(row).error()).collect();
    let failed = "failed at step 20 of 32: loss is NaN";
    assert_eq!(states, ["31.00 ± 1.00", "50.00", failed, "not run"]);
    let cells = super::Cells::of(&tables[0].rows[1]);
    assert_eq!(cells.seeds, "1 of 3");
    assert_eq!(cells.remarks, ["seed 1: step 20 of 32", "seed 2: not run"]);
    assert_eq!(super::Cells::of(&tables[0].rows[3]).remarks, Vec::<String>::new());
    let report = report(tables);
    for text in [markdown::page(&report), html::page(&report), data::csv(&report).unwrap()] {
        for absent in ["2.17", "0.0217", "1.23", "0.0123"] {
            assert!(!text.contains(absent), "{absent} is of an unfinished run or the best epoch: {text}");
        }
    }
}

#[test]
fn a_figure_of_another_schedule_is_shown_and_not_compared() {
    let row = |sets: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), &[], &[0.9, 0.8, 0.7, 0.0843], None);
        let mut row = runs(&[dir.path().into()]).tables[0].rows[0].clone();
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        row.recipe = Recipe::load("cifar10/resnet20", &sets).unwrap();
        row.reference = Reference { seed_test_error: Some(0.0829), paper_test_error: Some(0.0875), note: None };
        super::Cells::of(&row)
    };
    let same = row(&[]);
    assert_eq!(same.seed_figure.difference.as_deref(), Some("+0.14"));
    assert_eq!(same.paper_figure.difference.as_deref(), Some("−0.32"));
    let short = row(&["train.epochs=4"]);
    assert_eq!(short.seed_figure.value.as_deref(), Some("8.29"));
    assert_eq!(short.seed_figure.difference.as_deref(), Some("other schedule"));
    assert_eq!(short.departures, ["4 epochs, not 200"]);
}

#[test]
fn the_markdown_is_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let text = markdown::page(&report(sweep(dir.path())));
    let table = text.split("\n![").next().unwrap();
    let expected = "# Blocks &lt;b&gt;&amp;&lt;/b&gt; \\| more

|  | seeds | test error, % | Torch7, % | ours − Torch7 | paper, % | ours − paper |
|---|--:|--:|--:|--:|--:|--:|
| reference | 3 | 31.00 ± 1.00 | 8.29 | other schedule | 8.75 | other schedule |
| &lt;i&gt;half&lt;/i&gt; &amp; more | 1 of 3 | 50.00 |  |  |  |  |
| failed | 0 of 1 | failed at step 20 of 32: loss is NaN |  |  |  |  |
| not run | 0 of 1 | not run |  |  |  |  |

- Test error after the last epoch, never the best over epochs; mean ± sample standard deviation over seeds.
- shapes, 256 training and 100 test images; SGD, Nesterov momentum 0.9, batch 32; 4 epochs; learning rate 0.1, \
cosine to 0.
- “reference”: ResNet-8.
- “&lt;i&gt;half&lt;/i&gt; &amp; more”: ResNet-14.
- “failed”: ResNet-20.
- “not run”: ResNet-26.
- Torch7: figure of the public Torch7 implementation, one run.
- Paper: He et al. 2015, Deep Residual Learning, table 6.
- Other schedule than that of the published figures, so not comparable: “reference”: shapes in place of cifar10, \
4 epochs, not 200, batch 32, not 128, cosine schedule.
- “&lt;i&gt;half&lt;/i&gt; &amp; more”: seed 1: step 20 of 32; seed 2: not run.
- “not run”: what \\*is\\* it.
";
    assert_eq!(table, expected);
    for wanted in
        ["](training_loss.svg)", "](test_error.png)", "with local changes", "seed-2/recipe.toml`", &"ab".repeat(32)]
    {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
}

#[test]
fn the_csv_has_a_fixed_header_and_a_line_a_row() {
    let dir = tempfile::tempdir().unwrap();
    let text = data::csv(&report(sweep(dir.path()))).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines[0],
        "table,label,n_seeds,test_error_mean,test_error_sd,seed_test_error,paper_test_error,difference_seed,\
         difference_paper,other_schedule,seeds,test_errors,note"
    );
    assert_eq!(
        lines[1],
        "blocks,reference,3,0.31,0.01,0.0829,0.0875,,,\"shapes in place of cifar10; 4 epochs, not 200; batch 32, not \
         128; cosine schedule\",0 1 2,0.3 0.32 0.31,"
    );
    assert_eq!(lines[2], "blocks,<i>half</i> & more,1,0.5,,,,,,,0,0.5,");
    assert_eq!(lines[3], "blocks,failed,0,,,,,,,,,,");
    assert_eq!(lines[4], "blocks,not run,0,,,,,,,,,,what *is* it");
}

#[test]
fn the_page_needs_nothing_else_and_labels_are_text_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let page = html::page(&report(sweep(dir.path())));
    for reference in [" src=", " href=", "url(http", "@import", "<script", "<link", "<img", "<iframe"] {
        assert!(!page.contains(reference), "{reference}");
    }
    let addresses = page.matches("http").count();
    assert_eq!(addresses, page.matches("xmlns=\"http://www.w3.org/2000/svg\"").count());
    assert!(page.contains("&lt;i&gt;half&lt;/i&gt; &amp; more") && !page.contains("<i>half"), "labels");
    assert!(page.contains("Blocks &lt;b&gt;") && !page.contains("<b>"), "title");
    assert!(page.contains("with local changes"));
    let row = "<th scope=\"row\">reference</th><td class=\"number\">3</td><td class=\"number mean\">31.00</td>\
               <td class=\"number sd\">± 1.00</td><td class=\"number\">8.29</td>\
               <td class=\"number none\">other schedule</td>";
    assert!(page.contains(row), "{page}");
    let none = "<td class=\"number\">0 of 1</td><td class=\"none\" colspan=\"2\">not run</td>";
    assert!(page.contains(none), "{page}");
}

#[test]
fn figures_are_there_in_both_formats() {
    let dir = tempfile::tempdir().unwrap();
    let report = report(sweep(dir.path()));
    let to = dir.path().join("to");
    report.write(&to).unwrap();
    for name in ["training_loss", "test_error"] {
        let svg = std::fs::read_to_string(to.join(format!("{name}.svg"))).unwrap();
        let document = roxmltree::Document::parse(&svg).unwrap();
        let size = |key: &str| document.root_element().attribute(key).unwrap().parse::<f64>().unwrap();
        let texts: Vec<_> = document.descendants().filter_map(|node| node.text()).collect();
        assert!(texts.iter().any(|text| text.contains("<i>half</i> & more")), "{texts:?}");
        assert!(texts.contains(&"epoch"), "{texts:?}");
        // Reference 3, half 2, failed 1.
        let lines = document.descendants().filter(|node| node.has_tag_name("path")).count();
        assert!(lines >= 6, "{lines} lines");
        let file = std::io::BufReader::new(std::fs::File::open(to.join(format!("{name}.png"))).unwrap());
        let mut png = png::Decoder::new(file).read_info().unwrap();
        let info = png.info();
        assert_eq!((f64::from(info.width), f64::from(info.height)), (2.0 * size("width"), 2.0 * size("height")));
        let mut pixels = vec![0; png.output_buffer_size().unwrap()];
        png.next_frame(&mut pixels).unwrap();
        assert!(pixels.iter().any(|value| *value < 100), "an empty picture");
    }
    let ids = html::page(&report).matches("id=\"clip-blocks-").count();
    assert_eq!(ids, 2);
}

#[test]
fn a_table_without_any_run_has_no_figure() {
    let recipe = Recipe::load("demo", &[]).unwrap();
    let runs = vec![Run { seed: 0, dir: "x".into(), state: State::NotRun, details: None }];
    let row = Row { label: "a".into(), reference: Reference::default(), recipe, runs };
    let report = report(vec![Table { name: "t".into(), title: "T".into(), rows: vec![row] }]);
    assert!(report.tables[0].figures.is_empty());
    assert!(html::page(&report).contains("not run") && !html::page(&report).contains("<figure"));
}

#[test]
fn run_directories_become_rows_by_recipe_and_no_seed_counts_twice() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    make(&at("a0"), &[], &[0.9, 0.8, 0.7, 0.30], None);
    make(&at("a1"), &["train.seed=1", "log.every_s=1"], &[0.9, 0.8, 0.7, 0.34], None);
    make(&at("b"), &["model.n=2"], &[0.9, 0.8, 0.7, 0.2], None);
    let Inputs { tables, folder } = runs(&[at("a0"), at("a1"), at("b")]);
    let labels: Vec<_> = tables[0].rows.iter().map(|row| (&*row.label, row.errors().len())).collect();
    assert_eq!(labels, [("demo, model.n = 1", 2), ("demo, model.n = 2", 1)]);
    assert_eq!(folder, Path::new("report"));
    assert_eq!(runs(&[at("a0")]).folder, at("a0").join("report"));
    let twice = runs(&[at("a0"), at("a0")]).tables;
    assert_eq!(twice[0].rows.iter().map(|row| row.errors().len()).collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn what_is_neither_run_nor_sweep_is_named() {
    let said = |word: &str| {
        let failure = Inputs::read(&args(&[word])).unwrap_err();
        (failure.code.code(), failure.reason)
    };
    assert_eq!(said("no/such"), (66, "no/such: no such run directory or sweep file".into()));
    assert_eq!(said("bn_momentun").0, 64);
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().display().to_string();
    assert_eq!(said(&empty), (66, format!("{empty}/run.db: no such file: not a run directory")));
}

#[test]
fn a_section_for_programs_has_every_run() {
    let dir = tempfile::tempdir().unwrap();
    let report = report(sweep(dir.path()));
    let section: &Section = &report.tables[0];
    let rows = serde_json::to_value(data::rows(section)).unwrap();
    assert_eq!(rows[0]["test_error_mean"], 0.31);
    assert_eq!(
        (&rows[0]["difference_seed"], &rows[1]["test_error_sd"]),
        (&serde_json::Value::Null, &serde_json::Value::Null)
    );
    let states: Vec<_> = rows[1]["runs"].as_array().unwrap().iter().map(|run| run["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["done", "unfinished", "not_run"]);
    assert_eq!(rows[2]["runs"][0]["remark"], "failed at step 20 of 32: loss is NaN");
}
