//! Containers on a bridge network: read-only, without capabilities, as nobody in particular; gone when it is dropped.

use std::cell::RefCell;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::daemon::Daemon;
use super::images::IMAGES;
use crate::program::{reached, said};

/// User and group in the containers.
pub const UID: u32 = 65532;
/// The containers' network.
const NETWORK: &str = "lockstep-tried";
/// Shared by coordinator and workers; nobody else reaches that network.
const TOKEN: &str = "LOCKSTEP_TOKEN=only-for-this-network-0123456789abcdef";
/// How every container is started: the root read-only and nothing writable but what is mounted.
const CONFINED: [&str; 7] =
    ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network", NETWORK, "--env", TOKEN];

/// Containers of one run.
pub struct Fleet<'a> {
    daemon: &'a Daemon,
    /// On the host, what is /runs in the coordinator.
    runs: PathBuf,
    names: RefCell<Vec<String>>,
}

impl<'a> Fleet<'a> {
    /// Its network.
    ///
    /// # Errors
    /// Docker refuses it.
    pub fn new(daemon: &'a Daemon, runs: PathBuf) -> Result<Self> {
        let _ = daemon.say(&["network", "rm", NETWORK]); // of a call that was killed
        daemon.say(&["network", "create", "--driver=bridge", NETWORK])?;
        Ok(Self { daemon, runs, names: RefCell::default() })
    }

    /// `docker run` of an image by its kind.
    fn start(&self, options: &[&str], kind: &str, args: &[String]) -> Result<String> {
        let image = IMAGES.iter().find(|(name, _)| *name == kind).map_or(kind, |(_, tag)| tag);
        let mut command = self.daemon.command(&["run", "--pull=never"]);
        command.args(CONFINED).args(options).arg(image).args(args);
        said(&mut command)
    }

    fn volume(&self) -> String {
        format!("{}:/runs", self.runs.display())
    }

    fn start_named(&self, name: &str, options: &[&str], kind_and_args: (&str, &[String])) -> Result<()> {
        let _ = self.daemon.say(&["rm", "--force", name]);
        let options = [&["--detach", "--name", name], options].concat();
        self.start(&options, kind_and_args.0, kind_and_args.1)?;
        self.names.borrow_mut().push(name.to_owned());
        let is = self.daemon.say(&[
            "inspect",
            "--format",
            "{{.Config.User}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}}",
            name,
        ])?;
        ensure!(is == "65532:65532 true [ALL]", "{name} is {is}");
        Ok(())
    }

    /// The coordinator, as `lockstep`, with the run directory.
    ///
    /// # Errors
    /// It does not start.
    pub fn coordinator(&self, recipe: &str, sets: &[String]) -> Result<()> {
        let line = "--listen 0.0.0.0:7070 --http 0.0.0.0:8080 --run-dir /runs/run --resume";
        let mut args = vec!["coordinator".to_owned(), recipe.to_owned()];
        args.extend(line.split(' ').map(str::to_owned));
        args.extend_from_slice(sets);
        self.start_named("lockstep", &["--volume", &self.volume()], ("coordinator", &args))
    }

    /// A worker, which sees nothing of the run directory: checkpoints are written to /tmp before they are sent.
    ///
    /// # Errors
    /// It does not start.
    pub fn worker(&self, name: &str) -> Result<()> {
        let args = ["worker", "--coordinator", "http://lockstep:7070", "--threads", "1", "--id", name];
        self.start_named(name, &["--tmpfs=/tmp"], ("worker", &args.map(str::to_owned)))
    }

    /// One container from start to end.
    ///
    /// # Errors
    /// It does not end with 0.
    pub fn finish(&self, kind: &str, args: &[String]) -> Result<()> {
        self.start(&["--rm", "--volume", &self.volume()], kind, args).map(drop)
    }

    /// Waits until the run has committed a step that `wanted` likes, and says which.
    ///
    /// # Errors
    /// Not in time, or the coordinator has ended.
    pub fn reaches(&self, wanted: impl Fn(u64) -> bool) -> Result<u64> {
        let alive = || {
            let is_running = self.daemon.say(&["inspect", "--format", "{{.State.Running}}", "lockstep"])?;
            ensure!(is_running == "true", "the coordinator has ended");
            Ok(())
        };
        reached(&self.runs.join("run"), wanted, alive).with_context(|| self.logs())
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&self, name: &str) -> Result<()> {
        self.daemon.say(&["kill", "--signal=KILL", name]).map(drop)
    }

    /// Waits for its end, and says its code.
    ///
    /// # Errors
    /// There is no such container.
    pub fn wait(&self, name: &str) -> Result<u32> {
        let code = self.daemon.say(&["wait", name])?;
        code.parse().with_context(|| format!("{name} ended with {code}"))
    }

    /// The status of an answer of the coordinator's HTTP.
    ///
    /// # Errors
    /// Nobody answers.
    pub fn ask(&self, path: &str) -> Result<u32> {
        let of = format!("{{{{(index .NetworkSettings.Networks {NETWORK:?}).IPAddress}}}}");
        let address = self.daemon.say(&["inspect", "--format", &of, "lockstep"])?;
        let mut stream = TcpStream::connect((address.as_str(), 8080)).with_context(|| address.clone())?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: lockstep\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer);
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        status.with_context(|| format!("{path}: {answer}"))
    }

    /// The last lines of everybody.
    pub fn logs(&self) -> String {
        let names = self.names.borrow();
        let of = |name: &String| {
            let output = self.daemon.command(&["logs", "--tail", "5", name]).output().ok();
            let words = output.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
            format!("{name}: {}\n", String::from_utf8_lossy(&words).trim_end())
        };
        names.iter().map(of).collect()
    }
}

impl Drop for Fleet<'_> {
    fn drop(&mut self) {
        for name in self.names.borrow().iter() {
            let _ = self.daemon.say(&["rm", "--force", name]);
        }
        let _ = self.daemon.say(&["network", "rm", NETWORK]);
    }
}
