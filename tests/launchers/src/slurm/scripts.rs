//! What the scripts decide, tried without a Slurm: `srun`, `scontrol` and `lockstep` are stand-ins here.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use lockstep_proto::exit::ExitCode;

const SCRIPTS: [&str; 3] = ["cifar.sbatch", "imagenet.sbatch", "imagenet-pyxis.sbatch"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/slurm")
}

fn text(script: &str) -> String {
    fs::read_to_string(folder().join(script)).unwrap()
}

/// How a job goes.
#[derive(Clone, Copy, Default)]
struct Course {
    /// srun's code.
    tasks: u8,
    /// What the run says; `None`: there is no run.
    run: Option<u8>,
    restarts: u32,
}

struct Ended {
    code: i32,
    is_requeued: bool,
    /// Arguments of the first srun.
    launched: String,
}

/// Runs a script as Slurm would.
fn job(script: &str, course: Course, variables: &[(&str, &str)]) -> Ended {
    let dir = tempfile::tempdir().unwrap();
    let stand_in = |name: &str, body: &str| {
        let path = dir.path().join(name);
        fs::write(&path, format!("#!/usr/bin/env bash\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    stand_in(
        "srun",
        "case \" $* \" in *\" status \"*) exit \"$RUN_CODE\";; esac
         printf '%s\\n' \"$@\" > launched; env > environment; [ -z \"$RUN_CODE\" ] || touch run/run.db; exit \"$TASKS_CODE\"",
    );
    stand_in("lockstep", "[ \"$*\" = \"status $LOCKSTEP_RUN_DIR --exit-code\" ] || exit 99; exit \"$RUN_CODE\"");
    stand_in("scontrol", "[ \"$*\" = 'requeue 7' ] && touch requeued");
    fs::create_dir(dir.path().join("run")).unwrap();
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("bash");
    command.arg(folder().join(script)).current_dir(dir.path()).env("PATH", path);
    command.env("SLURM_JOB_ID", "7").env("SLURM_JOB_NAME", "lockstep").env("SLURM_SUBMIT_DIR", dir.path());
    command.env("SLURM_CPUS_PER_TASK", "3").env("LOCKSTEP_RUN_DIR", dir.path().join("run"));
    command.env("LOCKSTEP_RECIPE", "demo").env("TASKS_CODE", course.tasks.to_string());
    command.env("RUN_CODE", course.run.map_or(String::new(), |code| code.to_string()));
    if course.restarts > 0 {
        command.env("SLURM_RESTART_COUNT", course.restarts.to_string());
    }
    let output = command.envs(variables.iter().copied()).output().unwrap();
    Ended {
        code: output.status.code().unwrap(),
        is_requeued: dir.path().join("requeued").exists(),
        launched: fs::read_to_string(dir.path().join("launched")).unwrap_or_default(),
    }
}

/// Codes after which the same job may succeed.
const AGAIN: [u8; 3] = [69, 70, 75];

#[test]
fn every_exit_code_of_a_run_is_requeued_or_not_as_the_readme_says() {
    let readme = text("README.md");
    assert!(readme.contains("64 – 66, 73, 76 – 78") && readme.contains("| 69, 70 |"), "{readme}");
    for script in SCRIPTS {
        for code in ExitCode::ALL.iter().map(|code| code.code()) {
            // 137: a worker was killed, whatever became of the run.
            for tasks in [code, 137] {
                let ended = job(script, Course { tasks, run: Some(code), ..Course::default() }, &[]);
                assert_eq!(ended.code, i32::from(code), "{script}, tasks {tasks}");
                assert_eq!(ended.is_requeued, AGAIN.contains(&code), "{script}, run {code}");
            }
        }
    }
}

#[test]
fn a_start_that_was_refused_is_not_taken_for_the_interruption_before_it() {
    for script in SCRIPTS {
        for tasks in [64, 65, 66] {
            let ended = job(script, Course { tasks, run: Some(75), restarts: 1 }, &[]);
            assert_eq!((ended.code, ended.is_requeued), (i32::from(tasks), false), "{script}");
            let never_began = job(script, Course { tasks, ..Course::default() }, &[]);
            assert_eq!((never_began.code, never_began.is_requeued), (i32::from(tasks), false), "{script}");
        }
        let complete = job(script, Course { tasks: 66, run: Some(0), restarts: 0 }, &[]);
        assert_eq!((complete.code, complete.is_requeued), (0, false), "{script}: one task lacked the data");
    }
}

#[test]
fn a_job_goes_back_into_the_queue_a_bounded_number_of_times() {
    for script in SCRIPTS {
        for (restarts, most, is_requeued) in [(29, "30", true), (30, "30", false), (0, "0", false), (1, "2", true)] {
            let course = Course { tasks: 75, run: Some(75), restarts };
            let ended = job(script, course, &[("LOCKSTEP_MAX_RESTARTS", most)]);
            assert_eq!((ended.code, ended.is_requeued), (75, is_requeued), "{script}: {restarts} of {most}");
        }
    }
}

#[test]
fn every_script_launches_tasks_that_outlive_one_another_and_see_all_gpus() {
    for script in SCRIPTS {
        let ended =
            job(script, Course { run: Some(0), ..Course::default() }, &[("LOCKSTEP_ARGS", "--set a=1 --set b=2")]);
        let launched: Vec<&str> = ended.launched.lines().collect();
        for wanted in ["--kill-on-bad-exit=0", "--wait=0", "--gpu-bind=none", "--resume", "a=1", "b=2"] {
            assert!(launched.contains(&wanted), "{script}: {wanted}: {launched:?}");
        }
        assert!(
            launched.windows(3).any(|words| words[0].ends_with("lockstep") && words[1..] == ["train", "demo"]),
            "{script}"
        );
    }
}

/// `#SBATCH` lines.
fn directives(script: &str) -> BTreeMap<String, String> {
    let text = text(script);
    let lines = text.lines().filter_map(|line| line.strip_prefix("#SBATCH --"));
    let split =
        |line: &str| line.split_once('=').map_or((line.to_owned(), String::new()), |(a, b)| (a.into(), b.into()));
    lines.map(split).collect()
}

#[test]
fn the_scripts_ask_slurm_for_what_the_readme_explains() {
    for script in SCRIPTS {
        let directives = directives(script);
        let value = |key: &str| directives.get(key).map(String::as_str);
        assert_eq!(value("signal"), Some("USR1@120"), "{script}: to the steps");
        assert_eq!(value("open-mode"), Some("append"), "{script}");
        assert!(value("requeue").is_some() && value("gpus-per-node").is_some(), "{script}");
        assert!(!text(script).lines().any(|line| line.contains("gpus-per-task")), "{script}");
        assert_eq!(value("no-kill").is_some(), script != "cifar.sbatch", "{script}");
    }
}

#[test]
fn every_variable_of_a_script_stands_in_its_header() {
    for script in SCRIPTS {
        let text = text(script);
        let (header, body) = text.split_once("\nset -euo pipefail\n").unwrap();
        let names = |text: &str| -> Vec<String> {
            let rest = text.split("LOCKSTEP_").skip(1);
            let name = |rest: &str| rest.chars().take_while(|c| c.is_ascii_uppercase() || *c == '_').collect();
            rest.map(name).collect()
        };
        let documented = names(header);
        for name in names(body) {
            assert!(documented.contains(&name), "{script}: LOCKSTEP_{name}");
        }
    }
}

#[test]
fn what_follows_srun_is_the_same_in_every_script() {
    let tail = |script: &str| text(script).split_once("# --- the same in every script").unwrap().1.to_owned();
    for script in SCRIPTS {
        assert_eq!(tail(script), tail("cifar.sbatch"), "{script}");
    }
}
