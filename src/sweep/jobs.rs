//! One run as a child process: `lockstep train RECIPE --run-dir DIR --resume`, from its start to its end.
//!
//! The child ends when this process does, however that happens: it watches its standard input, whose other end is held
//! here. Its progress is read from its standard output; what it says to people goes to `seed-<k>.log`.

use std::fs::OpenOptions;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use lockstep_coordinator::status_file::StatusFile;
use lockstep_proto::exit::ExitCode;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};

use crate::failure::Failure;

/// A training that a killed sweep left behind saves and ends; so long is that waited for.
const LEFT_BEHIND: Duration = Duration::from_secs(120);
/// Between two looks at it.
const PAUSE: Duration = Duration::from_millis(200);
/// It may hold the directory for a moment after it is out of reach: so often is a start tried again.
const RETRIES: u32 = 5;
/// Ours; a training would take them for its own.
const FOREIGN: [&str; 6] =
    ["LOCKSTEP_SET", "LOCKSTEP_LIST", "LOCKSTEP_OUT", "LOCKSTEP_SEEDS", "LOCKSTEP_ONLY", "LOCKSTEP_JOBS"];

/// What to run, and how.
#[derive(Clone, Debug)]
pub struct Job {
    /// Index of the run.
    pub run: usize,
    /// This executable.
    pub program: PathBuf,
    /// The recipe, as a file.
    pub recipe: PathBuf,
    /// The run directory.
    pub dir: PathBuf,
    /// Takes what the child says on stderr.
    pub log: PathBuf,
    /// Its one device.
    pub device: String,
    /// Its compute threads.
    pub threads: usize,
}

/// A run that is no longer worked on.
#[derive(Debug)]
pub struct Ended {
    /// Index of the run.
    pub run: usize,
    /// Nothing is wrong when there is none.
    pub failure: Option<Failure>,
}

impl Job {
    /// Runs it to its end; asked to `leave`, it saves first.
    pub async fn live(self, news: mpsc::Sender<(usize, Value)>, leave: watch::Receiver<bool>) -> Ended {
        self.wait_for_orphan(leave.clone()).await;
        let mut result = self.once(&news, leave.clone()).await;
        for _ in 0..RETRIES {
            let is_held = matches!(&result, Err(failure) if failure.code == ExitCode::CantCreate);
            if !is_held || *leave.borrow() {
                break;
            }
            tokio::time::sleep(PAUSE * 5).await;
            result = self.once(&news, leave.clone()).await;
        }
        Ended { run: self.run, failure: result.err() }
    }

    /// Waits while a coordinator of the run answers.
    async fn wait_for_orphan(&self, mut leave: watch::Receiver<bool>) {
        let until = Instant::now() + LEFT_BEHIND;
        while Instant::now() < until {
            let Ok(file) = StatusFile::read(&self.dir) else { return };
            let address = file.address.trim_start_matches("http://").to_owned();
            let reached = tokio::time::timeout(PAUSE, TcpStream::connect(address)).await;
            if !matches!(reached, Ok(Ok(_))) {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                () = asked(&mut leave) => return,
            }
        }
    }

    async fn once(&self, news: &mpsc::Sender<(usize, Value)>, mut leave: watch::Receiver<bool>) -> Result<(), Failure> {
        if *leave.borrow() {
            return Err(Failure::new(ExitCode::TempFail, "not begun"));
        }
        let opened = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = opened.map_err(|error| Failure::unwritable(&self.log, error))?;
        // What stands there already is of earlier starts.
        let said_before = log.metadata().map_or(0, |metadata| metadata.len());
        let mut child = self.command().stderr(log).spawn().map_err(|error| {
            Failure::new(ExitCode::Config, format!("cannot start {}: {error}", self.program.display()))
        })?;
        // Held until its end; `wait` would close it.
        let _stdin = child.stdin.take();
        let mut is_asked = false;
        if let Some(stdout) = child.stdout.take() {
            let mut lines = BufReader::new(stdout).lines();
            loop {
                tokio::select! {
                    line = lines.next_line() => {
                        let Ok(Some(line)) = line else { break };
                        if let Ok(value) = serde_json::from_str(&line) {
                            // Nobody listens any more when all is over.
                            let _ = news.send((self.run, value)).await;
                        }
                    }
                    () = asked(&mut leave), if !is_asked => {
                        is_asked = true;
                        terminate(&child);
                    }
                }
            }
        }
        let status = loop {
            tokio::select! {
                status = child.wait() => break status,
                () = asked(&mut leave), if !is_asked => {
                    is_asked = true;
                    terminate(&child);
                }
            }
        };
        let status = status.map_err(|error| Failure::new(ExitCode::Software, error.to_string()))?;
        if status.success() { Ok(()) } else { Err(self.failure(status, said_before)) }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("train").arg(&self.recipe).arg("--run-dir").arg(&self.dir).args(["--resume", "--json"]);
        command.args(["--workers", "1", "--devices", &self.device, "--threads", &self.threads.to_string()]);
        command.arg("--until-stdin-closes").stdin(Stdio::piped()).stdout(Stdio::piped());
        FOREIGN.iter().for_each(|name| {
            command.env_remove(name);
        });
        // A group of its own: Ctrl-C reaches this process alone, which then ends all in order.
        command.process_group(0).kill_on_drop(true);
        command
    }

    /// The error that the child named, else what ended it.
    fn failure(&self, status: ExitStatus, said_before: u64) -> Failure {
        let code = status.code().and_then(|code| u8::try_from(code).ok()).and_then(ExitCode::from_code);
        let said = std::fs::read(&self.log).unwrap_or_default();
        let said = String::from_utf8_lossy(said.get(said_before as usize..).unwrap_or_default()).into_owned();
        let error = said.lines().rev().find_map(|line| line.strip_prefix("error: "));
        let reason = match (error, status.signal()) {
            (_, Some(signal)) => format!("killed by signal {signal}"),
            (Some(error), None) => error.to_owned(),
            (None, None) => format!("ended with {status}"),
        };
        Failure::new(code.unwrap_or(ExitCode::Software), reason)
    }
}

/// Returns once all are to leave.
async fn asked(leave: &mut watch::Receiver<bool>) {
    if leave.wait_for(|leave| *leave).await.is_err() {
        // Nobody is left to ask.
        std::future::pending().await
    }
}

/// Asks a child to save and end.
fn terminate(child: &Child) {
    // It has a pid until it was waited for, so this reaches no other process.
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::TERM);
    }
}
