//! Runs of the real executables: started, waited for with a deadline, compared.
#![allow(dead_code, clippy::unwrap_used)] // each test file uses its part; a panic is how a test fails

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

/// No process of these tests takes longer, however slow the machine.
const DEADLINE: Duration = Duration::from_secs(300);

/// A small run: four steps an epoch, the last short (batch 32, 100 samples), chunks of 8.
pub const SMALL: [&str; 12] = [
    "data.limit=100",
    "data.test_limit=40",
    "model.n=1",
    "model.width=8",
    "schedule.kind=constant",
    "train.batch=32",
    "train.chunk=8",
    "train.epochs=3",
    "train.seed=7",
    "log.every_s=0.1",
    "elastic.join_timeout_s=60",
    "checkpoint.every_steps=3",
];

/// The command, deaf to the environment of whoever runs the tests, and to whatever launched those.
pub fn lockstep(args: &[&str]) -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_lockstep"));
    let worker = program.with_file_name("lockstep-worker");
    assert!(worker.exists(), "{}: build it first: cargo build -p lockstep-worker", worker.display());
    let mut command = Command::new(program);
    let from_outside = ["LOCKSTEP_", "SLURM", "PET_", "RANK", "WORLD_SIZE", "MASTER_", "JOB_COMPLETION_INDEX"];
    for (name, _) in std::env::vars_os() {
        if from_outside.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// `lockstep train demo` with the small run's keys, then `sets`, into `dir`.
pub fn train(dir: &Path, workers: u32, sets: &[&str]) -> Command {
    let mut command = lockstep(&["train", "demo", "--json", "--threads", "1"]);
    command.arg("--run-dir").arg(dir).arg("--workers").arg(workers.to_string());
    with_sets(&mut command, sets);
    command
}

/// Adds the small run's keys, then `sets`.
pub fn with_sets(command: &mut Command, sets: &[&str]) {
    for set in SMALL.iter().chain(sets) {
        command.arg("--set").arg(set);
    }
}

/// How a process ended, and what it said.
#[derive(Debug)]
pub struct Ended {
    /// `None`: a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ended {
    /// Fails the test unless it ended with 0.
    #[track_caller]
    pub fn succeeded(self) -> Self {
        assert_eq!(self.code, Some(0), "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// The last line of JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(self.stdout.lines().last().unwrap_or_default()).unwrap()
    }

    /// From `error: ` on, with names of this run replaced.
    pub fn error(&self, names: &[(&Path, &str)]) -> String {
        let from = self.stderr.find("error: ").unwrap_or(0);
        let mut text = self.stderr[from..].trim_end().to_owned();
        for (path, name) in names {
            text = text.replace(&path.display().to_string(), name);
        }
        text
    }
}

/// A process that runs.
pub struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
    seen: String,
    stderr: JoinHandle<String>,
}

impl Running {
    /// Starts it.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let (send, lines) = mpsc::channel();
        let stdout: ChildStdout = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                if line.map(|line| send.send(line)).is_err() {
                    return;
                }
            }
        });
        let mut stderr = child.stderr.take().unwrap();
        let stderr = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = stderr.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        });
        Self { child, lines, seen: String::new(), stderr }
    }

    /// Waits for a line that `wanted` likes; `None` when there was none.
    pub fn wait_for(&mut self, wanted: impl Fn(&str) -> bool) -> Option<String> {
        loop {
            match self.lines.recv_timeout(DEADLINE) {
                Ok(line) => {
                    self.seen.push_str(&line);
                    self.seen.push('\n');
                    if wanted(&line) {
                        return Some(line);
                    }
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => return None,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    self.kill();
                    panic!("no such line within {DEADLINE:?}:\n{}", self.seen);
                }
            }
        }
    }

    /// Waits until it reports a committed step of at least `step`.
    pub fn wait_for_step(&mut self, step: u64) {
        let reached = |line: &str| {
            let value: Value = serde_json::from_str(line).unwrap_or_default();
            value["step"].as_u64().is_some_and(|at| at >= step)
        };
        assert!(self.wait_for(reached).is_some(), "it ended before step {step}:\n{}", self.seen);
    }

    /// Ends its standard input, where it was given one.
    pub fn close_stdin(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
    }

    /// A signal by name.
    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Waits for its end.
    pub fn end(mut self) -> Ended {
        while self.wait_for(|_| false).is_some() {}
        let status = self.child.wait().unwrap();
        Ended { code: status.code(), stdout: self.seen, stderr: self.stderr.join().unwrap() }
    }
}

/// Sends a signal by name; a process that is gone is no error.
pub fn signal(pid: u32, name: &str) {
    let _ = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).stderr(Stdio::null()).status();
}

/// Starts a command and waits for its end.
pub fn end(command: &mut Command) -> Ended {
    Running::start(command).end()
}

/// Processes of the workers of a run, as its database has them.
pub fn worker_pids(run: &Path) -> Vec<u32> {
    let connection = rusqlite::Connection::open(run.join("run.db")).unwrap();
    let mut statement = connection.prepare("SELECT pid FROM members WHERE left_at IS NULL").unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

/// What decides whether two runs were the same: figures of every step, and hashes of the final state.
#[derive(Debug, PartialEq)]
pub struct Course {
    /// Step, epoch, samples, and the bits of rate, loss and error.
    pub steps: Vec<[u64; 6]>,
    /// Files of the last checkpoint with their hashes.
    pub state: Vec<(String, String)>,
}

/// Reads it from a run directory.
pub fn course(run: &Path) -> Course {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let steps = text.lines().map(|line| {
        let value: Value = serde_json::from_str(line).unwrap();
        let count = |key: &str| value[key].as_u64().unwrap();
        let bits = |key: &str| value[key].as_f64().unwrap().to_bits();
        [count("step"), count("epoch"), count("samples"), bits("lr"), bits("loss"), bits("error")]
    });
    let steps: Vec<_> = steps.collect();
    let manifest = checkpoint(run, steps.last().unwrap()[0]).join("manifest.json");
    let manifest: Value = serde_json::from_str(&std::fs::read_to_string(manifest).unwrap()).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let files = manifest["files"].as_array().unwrap().iter();
    let mut state: Vec<_> = files.map(|file| (text(&file["name"]), text(&file["sha256"]))).collect();
    state.push(("state".into(), text(&manifest["state_sha256"])));
    Course { steps, state }
}

/// Every byte of the last checkpoint's tensors: parameters, BatchNorm's buffers, momentum.
pub fn last_tensors(run: &Path) -> [Vec<u8>; 2] {
    let folder = checkpoint(run, course(run).steps.last().unwrap()[0]);
    ["model.safetensors", "optimizer.safetensors"].map(|name| std::fs::read(folder.join(name)).unwrap())
}

/// One number out of `run.db`.
#[track_caller]
pub fn count(run: &Path, sql: &str) -> u64 {
    let connection = rusqlite::Connection::open(run.join("run.db")).unwrap();
    connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap().try_into().unwrap()
}

/// The folder of a checkpoint.
pub fn checkpoint(run: &Path, step: u64) -> PathBuf {
    run.join("checkpoints").join(format!("step-{step}"))
}

/// `lockstep audit`, which must succeed.
#[track_caller]
pub fn audited(run: &Path) {
    end(lockstep(&["audit"]).arg(run)).succeeded();
}
