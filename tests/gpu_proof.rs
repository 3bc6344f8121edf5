//! `lockstep-worker gpu-proof`, tried on the CPU at a tiny size, with stand-ins for the peers: every line runs, none hides the
//! next, and no verdict about a GPU is given.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Ended, Running, end, lockstep, signal};
use serde_json::Value;

/// What a peer prints, without computing anything.
const CIFAR: &str = "\
echo '{\"epoch\": 1, \"seconds\": 1.0, \"images_per_s\": 50.0, \"train_loss\": 2.0, \"test_error\": 0.5}'
echo '{\"peer\": \"none\", \"images_per_s_median\": 50.0}'
";
const IMAGENET: &str = "echo '{\"peer\": \"none\", \"images_per_s\": 10.0}'\n";

/// A folder with stand-ins and data.
struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    fn new(peers: &[(&str, &str)]) -> Self {
        let site = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir(site.at("peers")).unwrap();
        for (name, script) in peers {
            std::fs::write(site.at("peers").join(name), script).unwrap();
        }
        std::fs::create_dir(site.at("cifar")).unwrap();
        for name in ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"] {
            site.cifar(name);
        }
        site
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// 128 images, and a hole where the others would be.
    fn cifar(&self, name: &str) {
        let mut state = 1_u32;
        let mut byte = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let records: Vec<u8> = (0..128 * 3073).map(|at| if at % 3073 == 0 { byte() % 10 } else { byte() }).collect();
        let path = self.at("cifar").join(format!("{name}.bin"));
        std::fs::write(&path, records).unwrap();
        std::fs::File::options().write(true).open(path).unwrap().set_len(10_000 * 3073).unwrap();
    }

    /// A proof that takes `sh` for Python.
    fn proof(&self, args: &[&str]) -> Command {
        let lockstep = lockstep(&[]);
        let mut command = Command::new(Path::new(lockstep.get_program()).with_file_name("lockstep-worker"));
        for (name, value) in lockstep.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.args(["gpu-proof", "--python", "/bin/sh", "--pairs", "1"]);
        if !args.contains(&"--device") {
            command.args(["--device", "cpu"]);
        }
        command
            .arg("--peers")
            .arg(self.at("peers"))
            .arg("--data")
            .arg(self.at("cifar"))
            .arg("--out")
            .arg(self.at("proof"));
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn table(&self) -> Value {
        serde_json::from_str(&std::fs::read_to_string(self.at("proof/proof.json")).unwrap()).unwrap()
    }
}

/// A figure by its name.
#[track_caller]
fn row(table: &Value, key: &str) -> Value {
    let rows = table["rows"].as_array().unwrap();
    rows.iter().find(|row| row["key"] == key).unwrap_or_else(|| panic!("no {key}")).clone()
}

#[track_caller]
fn measured(table: &Value, key: &str) -> f64 {
    let row = row(table, key);
    assert_eq!(row["verdict"], "trial", "{row:#}");
    row["value"].as_f64().unwrap_or_else(|| panic!("{row:#}"))
}

#[track_caller]
fn unable(table: &Value, key: &str, why: &str) {
    let row = row(table, key);
    assert!(row["verdict"] == "could-not-run" && row["value"].is_null(), "{row:#}");
    assert!(row["why"].as_str().unwrap().contains(why), "{row:#}");
}

fn photographs(folder: &Path) {
    for (class, red) in [("a", 200_u8), ("b", 30)] {
        let folder = folder.join("val").join(class);
        std::fs::create_dir_all(&folder).unwrap();
        for index in 0..4_u8 {
            let pixels: Vec<u8> = (0..48 * 40_u32).flat_map(|at| [red, index * 9, at as u8]).collect();
            let file = std::fs::File::create(folder.join(format!("{index}.png"))).unwrap();
            let mut encoder = png::Encoder::new(file, 48, 40);
            encoder.set_color(png::ColorType::Rgb);
            encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
        }
    }
}

#[test]
fn every_line_is_tried_on_the_cpu_and_none_gives_a_verdict_about_a_gpu() {
    let site = Site::new(&[("cifar_torch.py", CIFAR), ("imagenet_torch.py", IMAGENET)]);
    photographs(&site.at("photographs"));
    let images = site.at("photographs").display().to_string();
    let Ended { stdout, .. } = end(&mut site.proof(&["--images", &images])).succeeded();
    let table = site.table();
    assert_eq!(table["complete"], true);
    for (key, most) in [
        ("losses_fp32", 1e-3),
        ("two_fp64_losses", 1e-9),
        ("two_fp64_parameters", 1e-9),
        ("kill_committed", 1e-9),
        ("kill_final", 1e-9),
        ("kill_seconds", 20.0),
        ("kill_audit", 0.0),
        ("two_fp32_loss", 1e-6),
        ("two_fp32_parameters", 1e-5),
    ] {
        let value = measured(&table, key);
        assert!(value <= most, "{key}: {value}");
    }
    assert_eq!(measured(&table, "resume"), 1.0);
    assert_eq!(measured(&table, "error_peer"), 0.5);
    // The ratio is that of the two figures of the round.
    let detail = &row(&table, "resnet20_eager")["detail"];
    let ours = detail["ours"][0].as_f64().unwrap();
    assert_eq!(detail["peer"][0], 50.0);
    assert_eq!(measured(&table, "resnet20_eager"), ours / 50.0);
    assert!(measured(&table, "resnet20_epoch_s") > 0.0);
    for key in [
        "resnet50_images_per_s",
        "resnet50_eager",
        "fed",
        "fed_images_per_s",
        "syncbn",
        "coordinator",
        "error",
        "wall_ratio",
    ] {
        measured(&table, key);
    }
    for key in ["losses_graph", "resnet20_graph", "resnet20_compile", "resnet20_kernels_eager", "resnet50_compile"] {
        unable(&table, key, "needs a GPU");
    }
    for row in table["rows"].as_array().unwrap() {
        assert!(["trial", "could-not-run"].contains(&row["verdict"].as_str().unwrap()), "{row:#}");
    }
    let names: Vec<&str> = table["machine"].as_array().unwrap().iter().map(|pair| pair[0].as_str().unwrap()).collect();
    for name in ["device", "host", "CPU", "libtorch", "torch", "lockstep doctor"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(stdout.contains("| line | what | figure | goal |") && stdout.contains("## Commands"), "{stdout}");
    assert_eq!(std::fs::read_to_string(site.at("proof/proof.md")).unwrap().trim_end(), stdout.trim_end());
}

/// The first time it hangs, then it crashes, then it fails.
const SICK: &str = r#"
here=$(dirname "$0")
if [ ! -e "$here/hung" ]; then touch "$here/hung"; cat > /dev/null; fi
if [ ! -e "$here/crashed" ]; then touch "$here/crashed"; kill -SEGV $$; fi
echo 'ValueError: no more' >&2
exit 3
"#;

#[test]
fn what_hangs_crashes_or_fails_does_not_hide_what_comes_next() {
    let site = Site::new(&[("cifar_torch.py", SICK)]);
    end(&mut site.proof(&["--only", "3,4,5", "--limit-s", "30"])).succeeded();
    let table = site.table();
    assert_eq!(table["complete"], true);
    unable(&table, "resnet20_eager", "peer-eager-1: not done within 30 s");
    unable(&table, "resnet56_eager", "killed by signal 11");
    unable(&table, "resnet110_eager", "exit code 3: ValueError: no more");
    unable(&table, "resnet50_eager", "imagenet_torch.py: no such file");
    for key in ["resnet20_epoch_s", "resnet56_epoch_s", "resnet110_epoch_s", "resnet50_images_per_s", "syncbn"] {
        assert!(measured(&table, key) > 0.0);
    }
    assert_eq!(measured(&table, "resume"), 1.0);
}

#[test]
fn what_does_not_fit_is_named() {
    let site = Site::new(&[]);
    end(&mut site.proof(&["--only", "1,6", "--minutes", "0.00001"])).succeeded();
    for row in site.table()["rows"].as_array().unwrap() {
        assert_eq!(row["verdict"], "could-not-run", "{row:#}");
        let why = row["why"].as_str().unwrap();
        assert!(
            ["did not fit into the time of its line", "needs a GPU", "no such file"]
                .iter()
                .any(|text| why.contains(text)),
            "{row:#}"
        );
    }
}

/// Tells that it is there, and waits for the end of the proof.
const WAITING: &str = r#"
echo started > "$(dirname "$0")/pipe"
cat > /dev/null
"#;

#[test]
fn a_proof_that_is_killed_or_interrupted_leaves_what_it_had() {
    for name in ["KILL", "TERM"] {
        let site = Site::new(&[("cifar_torch.py", WAITING)]);
        let pipe = site.at("peers/pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let running = Running::start(&mut site.proof(&["--only", "1,3"]));
        // Until somebody writes.
        assert_eq!(std::fs::read_to_string(&pipe).unwrap(), "started\n");
        signal(running.pid(), name);
        let ended = running.end();
        let table = site.table();
        assert!(measured(&table, "losses_fp32") <= 1e-3);
        assert_eq!(table["complete"], false);
        let code = if name == "KILL" { None } else { Some(75) };
        assert_eq!(ended.code, code, "{}", ended.stderr);
        let why = if name == "KILL" { "not reached" } else { "interrupted" };
        unable(&table, "resnet110_eager", why);
    }
}

#[test]
fn wrong_flags_are_refused_before_anything_is_measured() {
    let site = Site::new(&[]);
    for (flags, code, says) in [
        (&["--only", "7"][..], 64, "--only 7: there is no such line; they are 1,2,3,4,5,9,6"),
        (&["--device", "tpu"], 64, "--device tpu: expected cuda:0"),
        (&["--minutes", "0"], 64, "--minutes"),
        (&["--images", "/no/such"], 66, "--images /no/such: no such folder"),
        (&["--program", "/no/such"], 78, "no `lockstep`: looked at /no/such"),
    ] {
        let ended = end(&mut site.proof(flags));
        assert_eq!(ended.code, Some(code), "{}", ended.stderr);
        assert!(ended.stderr.contains(says), "{}", ended.stderr);
    }
    std::fs::create_dir_all(site.at("proof")).unwrap();
    std::fs::write(site.at("proof/proof.json"), "{}").unwrap();
    let ended = end(&mut site.proof(&["--only", "1"]));
    assert_eq!(ended.code, Some(73), "{}", ended.stderr);
    assert!(ended.stderr.contains("holds an earlier proof"), "{}", ended.stderr);
}
