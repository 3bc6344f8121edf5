//! The worker processes of a run on this machine.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use lockstep_proto::exit::ExitCode;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::failure::Failure;
use crate::launch::TOKEN;

/// As much of a log's end is looked at as any error needs.
const TAIL_BYTES: u64 = 8 * 1024;
/// So many lines of it are shown.
const TAIL_LINES: usize = 20;
/// A worker that the coordinator did not tell of the end, because it had not joined, is told by a signal after this.
const UNTOLD: Duration = Duration::from_secs(1);

/// How each worker is started.
pub struct Spec {
    /// The executable.
    pub program: PathBuf,
    /// Its arguments, but for the devices.
    pub args: Vec<OsString>,
    /// The devices of each.
    pub devices: Vec<String>,
    /// Folder of `worker-<i>.log`.
    pub logs: PathBuf,
    /// What they show the coordinator.
    pub token: Option<String>,
}

impl Spec {
    /// Whether another worker has the same GPU.
    fn shares_gpu(&self, slot: usize) -> bool {
        let own = &self.devices[slot];
        own.starts_with("cuda") && self.devices.iter().filter(|devices| *devices == own).count() > 1
    }
}

/// A worker that ended.
pub struct Exited {
    /// Which, from 0.
    pub slot: usize,
    /// How.
    pub status: ExitStatus,
}

impl Exited {
    /// Its code, or what killed it.
    pub fn code(&self) -> Option<u8> {
        self.status.code().and_then(|code| u8::try_from(code).ok())
    }
}

/// All of them. Dropping it kills whoever is left.
pub struct Fleet {
    spec: Spec,
    waits: JoinSet<(usize, std::io::Result<ExitStatus>)>,
    /// True once all are to leave; every wait listens.
    leave: watch::Sender<bool>,
}

impl Fleet {
    /// Starts the workers.
    ///
    /// # Errors
    /// When one cannot be started (78) or its log not be written (73).
    pub fn start(spec: Spec) -> Result<Self, Failure> {
        fs::create_dir_all(&spec.logs).map_err(|error| Failure::unwritable(&spec.logs, error))?;
        let count = spec.devices.len();
        let mut fleet = Self { spec, waits: JoinSet::new(), leave: watch::Sender::new(false) };
        for slot in 0..count {
            fleet.spawn(slot, Duration::ZERO)?;
        }
        Ok(fleet)
    }

    /// Starts a worker in a slot after a wait.
    ///
    /// # Errors
    /// As [`start`](Self::start); when there is a wait, only about the log.
    pub fn spawn(&mut self, slot: usize, wait: Duration) -> Result<(), Failure> {
        let path = self.log(slot);
        let log = OpenOptions::new().create(true).append(true).open(&path);
        let (log, second) = log
            .and_then(|log| log.try_clone().map(|second| (log, second)))
            .map_err(|error| Failure::unwritable(&path, error))?;
        let mut command = Command::new(&self.spec.program);
        command
            .args(&self.spec.args)
            .arg("--devices")
            .arg(&self.spec.devices[slot])
            .stdin(Stdio::piped())
            .stdout(second)
            .stderr(log);
        // Set before libtorch loads: a chunk is computed with one intra-op thread.
        command.env("OMP_NUM_THREADS", "1");
        if self.spec.shares_gpu(slot) {
            // NCCL refuses two ranks of one host on one GPU: each says that it is a host of its own, and they talk over
            // loopback. For trying things out, not for speed.
            command.env("NCCL_HOSTID", format!("lockstep-{slot}"));
            command.envs([("NCCL_SOCKET_IFNAME", "lo"), ("NCCL_IB_DISABLE", "1"), ("NCCL_MNNVL_ENABLE", "0")]);
        }
        if let Some(token) = &self.spec.token {
            command.env(TOKEN, token);
        }
        // A group of its own: Ctrl-C reaches this process alone, which then ends the run in order.
        command.process_group(0).kill_on_drop(true);
        let leave = self.leave.subscribe();
        if wait.is_zero() {
            let child = command.spawn().map_err(|error| {
                Failure::new(ExitCode::Config, format!("cannot start {}: {error}", self.spec.program.display()))
            })?;
            self.waits.spawn(async move { (slot, wait_for(child, leave).await) });
        } else {
            self.waits.spawn(async move {
                let mut asked = leave.clone();
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    Ok(_) = asked.wait_for(|leave| *leave) => return (slot, Ok(ExitStatus::default())),
                }
                match command.spawn() {
                    Ok(child) => (slot, wait_for(child, leave).await),
                    Err(error) => (slot, Err(error)),
                }
            });
        }
        Ok(())
    }

    /// The next worker that ends; `None` when none is left.
    pub async fn next_exit(&mut self) -> Option<Exited> {
        let (slot, status) = self.waits.join_next().await?.ok()?;
        // A worker that could not be started again counts as one that failed.
        let status = status.unwrap_or_else(|_| ExitStatus::from_raw(i32::from(ExitCode::Config.code()) << 8));
        Some(Exited { slot, status })
    }

    /// Waits until all have ended; asks those that do not by SIGTERM, and kills the rest after `grace`.
    pub async fn end(&mut self, grace: Duration) {
        if self.all_ended(UNTOLD).await {
            return;
        }
        self.leave.send_replace(true);
        if !self.all_ended(grace).await {
            tracing::warn!("workers did not end within {} s and were killed", grace.as_secs());
            self.kill().await;
        }
    }

    /// Kills all.
    pub async fn kill(&mut self) {
        self.waits.shutdown().await;
    }

    async fn all_ended(&mut self, within: Duration) -> bool {
        let all = async { while self.waits.join_next().await.is_some() {} };
        tokio::time::timeout(within, all).await.is_ok()
    }

    /// The log of a slot.
    pub fn log(&self, slot: usize) -> PathBuf {
        self.spec.logs.join(format!("worker-{slot}.log"))
    }

    /// The last thing a worker said: its error if it named one, else what ended it.
    pub fn last_words(&self, exited: &Exited) -> String {
        let tail = tail(&self.log(exited.slot));
        let named = tail.iter().rev().find_map(|line| line.strip_prefix("error: "));
        match (named, exited.status.signal()) {
            (_, Some(signal)) => format!("killed by signal {signal}"),
            (Some(error), None) => error.to_owned(),
            (None, None) => format!("ended with {}", exited.status),
        }
    }

    /// The end of a worker's log, for a person.
    pub fn log_tail(&self, slot: usize) -> Vec<String> {
        tail(&self.log(slot))
    }
}

async fn wait_for(mut child: Child, mut leave: watch::Receiver<bool>) -> std::io::Result<ExitStatus> {
    // Held while it lives, whatever becomes of this process; `wait` would close it.
    let _stdin = child.stdin.take();
    let asked = tokio::select! {
        status = child.wait() => return status,
        asked = leave.wait_for(|leave| *leave) => asked.is_ok(),
    };
    // It has a pid until it was waited for, so this reaches no other process.
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid.filter(|_| asked) {
        // It may have ended meanwhile.
        let _ = kill_process(pid, Signal::TERM);
    }
    child.wait().await
}

fn tail(path: &Path) -> Vec<String> {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].iter().map(|line| (*line).to_owned()).collect()
}
