//! A Docker: the one that runs, or one that is started here and gone when it is dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lockstep_chaos::Process;
use rustix::process::Signal;

use crate::program::said;
use crate::wait::until;

/// The client of the same package as the daemon: newer ones cannot build with BuildKit unless they have a plugin.
const CLIENT: &str = "/usr/bin/docker";
/// For the daemon to start and to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A Docker that answers.
pub struct Daemon {
    /// `None`: the machine's own.
    started: Option<(Process, PathBuf)>,
}

impl Daemon {
    /// Takes the one that runs, or starts one with its files in `dir`.
    ///
    /// # Errors
    /// It does not start: with its last words.
    pub fn start(dir: &Path) -> Result<Self> {
        let own = Self { started: None };
        if said(&mut own.command(&["version"])).is_ok() {
            return Ok(own);
        }
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let file = |flag: &str, name: &str| format!("--{flag}={}", dir.join(name).display());
        let mut command = Command::new("dockerd");
        // The file system driver that works on any file system; no bridge but those that are asked for, and the machine's
        // own rules for packets stay as they are: containers of one network reach one another without.
        command.args(["--storage-driver=vfs", "--bridge=none", "--iptables=false"]).args([
            file("data-root", "data"),
            file("exec-root", "exec"),
            file("pidfile", "dockerd.pid"),
            format!("--host=unix://{}", dir.join("docker.sock").display()),
        ]);
        let process = Process::start("dockerd", command, &dir.join("dockerd.log"))?;
        let daemon = Self { started: Some((process, dir.join("docker.sock"))) };
        let answers = until("dockerd answers", PATIENCE, || Ok(said(&mut daemon.command(&["version"])).ok()));
        answers.with_context(|| daemon.last_words())?;
        Ok(daemon)
    }

    /// `docker ARGS`
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(CLIENT);
        command.args(args).env("DOCKER_BUILDKIT", "1");
        if let Some((_, socket)) = &self.started {
            command.env("DOCKER_HOST", format!("unix://{}", socket.display()));
        }
        command
    }

    /// What `docker ARGS` printed.
    ///
    /// # Errors
    /// It does not succeed.
    pub fn say(&self, args: &[&str]) -> Result<String> {
        said(&mut self.command(args)).map(|text| text.trim().to_owned())
    }

    fn last_words(&self) -> String {
        self.started.as_ref().map_or(String::new(), |(process, _)| process.last_words())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some((process, _)) = &mut self.started {
            process.signal(Signal::TERM);
            let _ = process.wait(PATIENCE);
        }
    }
}
