//! A coordinator and its workers, as an operator starts them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use serde_json::Value;

use crate::lab::Lab;
use crate::net::Net;
use crate::process::{Process, until};
use crate::recipe::Recipe;
use crate::watch::{Commit, Watch};

/// Nothing that a small run does takes longer, however slow the machine.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Where its processes are.
#[derive(Debug)]
pub enum Place {
    /// All on this machine's loopback.
    Loopback,
    /// The coordinator in the hub, each worker behind a cable of its own.
    Namespaces(Net),
}

/// A run with its processes. Dropping it kills them.
#[derive(Debug)]
pub struct Cluster<'a> {
    lab: &'a Lab,
    /// Where it lives; holds the run directory, too.
    dir: PathBuf,
    /// The run directory.
    pub run: PathBuf,
    /// What it trains.
    pub recipe: Recipe,
    /// Where its processes are.
    pub place: Place,
    /// `host:port` of the coordinator; the port stays over restarts.
    listen: String,
    /// The coordinator.
    pub coordinator: Option<Process>,
    /// In the order in which they were started.
    pub workers: Vec<Process>,
    /// What workers are told instead of the coordinator's own address: a proxy's.
    pub through: Option<String>,
    num_started: u32,
}

impl<'a> Cluster<'a> {
    /// Starts a coordinator on a new run.
    pub fn start(lab: &'a Lab, name: &str, recipe: Recipe, place: Place) -> Result<Self> {
        let dir = lab.fresh(name)?;
        let run = dir.join("run");
        Self::start_in(lab, (dir, run), recipe, place)
    }

    /// The same with a run directory elsewhere than in the cluster's folder.
    pub fn start_in(lab: &'a Lab, dirs: (PathBuf, PathBuf), recipe: Recipe, place: Place) -> Result<Self> {
        let mut cluster = Self::idle(lab, dirs, recipe, place);
        cluster.start_coordinator(false)?;
        Ok(cluster)
    }

    /// Goes on with a run that lies there.
    pub fn resume_in(lab: &'a Lab, dirs: (PathBuf, PathBuf), recipe: Recipe) -> Result<Self> {
        let mut cluster = Self::idle(lab, dirs, recipe, Place::Loopback);
        cluster.start_coordinator(true)?;
        Ok(cluster)
    }

    fn idle(lab: &'a Lab, (dir, run): (PathBuf, PathBuf), recipe: Recipe, place: Place) -> Self {
        let host = match &place {
            Place::Loopback => "127.0.0.1",
            Place::Namespaces(net) => net.hub_address(),
        };
        let listen = format!("{host}:0");
        let (coordinator, workers, through) = (None, Vec::new(), None);
        Self { lab, dir, run, recipe, place, listen, coordinator, workers, through, num_started: 0 }
    }

    /// Starts the coordinator again on what is in the run directory, at its old address.
    pub fn resume(&mut self) -> Result<()> {
        self.start_coordinator(true)
    }

    fn start_coordinator(&mut self, is_again: bool) -> Result<()> {
        let file = self.dir.join("recipe.toml");
        std::fs::write(&file, self.recipe.toml())?;
        // Left behind by one that was killed.
        let _ = std::fs::remove_file(self.run.join("coordinator.json"));
        let until_free = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            let mut command = match &self.place {
                Place::Loopback => Command::new(&self.lab.options.lockstep),
                Place::Namespaces(net) => net.in_hub(&self.lab.options.lockstep),
            };
            command.arg("coordinator").arg(&file).arg("--listen").arg(&self.listen).arg("--run-dir").arg(&self.run);
            command.args(["--insecure", "--json"]);
            if is_again {
                command.arg("--resume");
            }
            let mut process = Process::start("coordinator", command, &self.dir.join("coordinator.log"))?;
            let published = self.run.join("coordinator.json");
            let address = until("the coordinator listens", PATIENCE, || {
                if let Some(status) = process.ended() {
                    bail!("the coordinator ended with {status}: {}", process.last_words());
                }
                let Ok(text) = std::fs::read_to_string(&published) else { return Ok(None) };
                Ok(serde_json::from_str::<Value>(&text).ok().and_then(|v| v["address"].as_str().map(str::to_owned)))
            });
            match address {
                Ok(address) => {
                    self.listen = address.trim_start_matches("http://").to_owned();
                    self.coordinator = Some(process);
                    return Ok(());
                }
                // Its port may be some connection's for a moment.
                Err(error)
                    if is_again && error.to_string().contains("73") && std::time::Instant::now() < until_free =>
                {
                    std::thread::sleep(Duration::from_millis(100)); // between two attempts
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// `host:port` of the coordinator.
    pub fn address(&self) -> &str {
        &self.listen
    }

    /// What the next worker will be called.
    pub fn next_name(&self) -> String {
        format!("w{}", self.num_started + 1)
    }

    /// Starts a worker with these flags besides its own; gives its name.
    pub fn start_worker(&mut self, flags: &[&str]) -> Result<String> {
        let name = self.next_name();
        self.num_started += 1;
        let mut command = match &mut self.place {
            Place::Loopback => Command::new(&self.lab.options.worker),
            Place::Namespaces(net) => {
                net.add_host(&name)?;
                net.in_host(&name, &self.lab.options.worker)
            }
        };
        command.args(["worker", "--id", &name, "--until-stdin-closes"]);
        if !flags.contains(&"--coordinator") {
            let own = format!("http://{}", self.listen);
            command.arg("--coordinator").arg(self.through.as_ref().unwrap_or(&own));
        }
        if !flags.contains(&"--threads") {
            command.args(["--threads", "1"]);
        }
        command.args(flags);
        let log = self.dir.join(format!("{name}.log"));
        self.workers.push(Process::start(&name, command, &log)?);
        Ok(name)
    }

    /// Starts so many workers.
    pub fn start_workers(&mut self, count: u32) -> Result<()> {
        for _ in 0..count {
            self.start_worker(&[])?;
        }
        Ok(())
    }

    /// One of its workers.
    pub fn worker(&mut self, name: &str) -> Result<&mut Process> {
        self.workers.iter_mut().find(|worker| worker.name() == name).with_context(|| format!("no worker {name}"))
    }

    /// Takes one of its workers out: it is the caller's now.
    pub fn take_worker(&mut self, name: &str) -> Result<Process> {
        let at = self.workers.iter().position(|worker| worker.name() == name);
        Ok(self.workers.remove(at.with_context(|| format!("no worker {name}"))?))
    }

    /// Names of its workers.
    pub fn worker_names(&self) -> Vec<String> {
        self.workers.iter().map(|worker| worker.name().to_owned()).collect()
    }

    /// What the run writes down.
    pub fn watch(&self) -> Result<Watch> {
        Watch::open(&self.run)
    }

    /// Fails when the coordinator, or a worker, has ended.
    pub fn must_live(&mut self) -> Result<()> {
        for process in self.coordinator.iter_mut().chain(&mut self.workers) {
            if let Some(status) = process.ended() {
                bail!("{} ended with {status}: {}", process.name(), process.last_words());
            }
        }
        Ok(())
    }

    /// Waits for the first commit at or after `step` by a world of so many ranks (0: any).
    pub fn wait_for(&mut self, watch: &Watch, step: u64, world_size: u64) -> Result<Commit> {
        self.wait_within(watch, step, world_size, PATIENCE)
    }

    /// The same with another deadline.
    pub fn wait_within(&mut self, watch: &Watch, step: u64, world_size: u64, within: Duration) -> Result<Commit> {
        until(&format!("step {step} by a world of {world_size}"), within, || {
            if let Some(process) = &mut self.coordinator
                && let Some(status) = process.ended()
            {
                bail!("the coordinator ended with {status}: {}", process.last_words());
            }
            let seen = watch.last_commit()?;
            Ok(seen.filter(|seen| seen.step >= step && (world_size == 0 || seen.world_size == world_size)))
        })
    }

    /// Waits for the end of a run that ends by itself.
    pub fn finish(&mut self) -> Result<()> {
        let mut coordinator = self.coordinator.take().context("no coordinator")?;
        // Long runs are waited for as long as they go on.
        let watch = self.watch()?;
        let mut seen = watch.step()?;
        loop {
            if coordinator.wait(PATIENCE).is_ok() {
                break;
            }
            let now = watch.step()?;
            if now == seen {
                bail!("nothing was committed after step {now} for {PATIENCE:?}");
            }
            seen = now;
        }
        if coordinator.ended().and_then(|status| status.code()) != Some(0) {
            bail!("the coordinator did not end with 0: {}", coordinator.last_words());
        }
        for worker in &mut self.workers {
            let status = worker.wait(PATIENCE)?;
            if status.code() != Some(0) {
                bail!("{} ended with {status}: {}", worker.name(), worker.last_words());
            }
        }
        Ok(())
    }

    /// Asks the coordinator to end the run, resumable; whoever is alive must end with 75.
    pub fn stop(&mut self) -> Result<()> {
        let mut coordinator = self.coordinator.take().context("no coordinator")?;
        coordinator.signal(Signal::TERM);
        let status = coordinator.wait(PATIENCE)?;
        if status.code() != Some(75) {
            bail!("after SIGTERM the coordinator ended with {status}: {}", coordinator.last_words());
        }
        for worker in &mut self.workers {
            let status = worker.wait(PATIENCE)?;
            if status.code() != Some(75) {
                bail!("after the run had ended {} ended with {status}: {}", worker.name(), worker.last_words());
            }
        }
        self.workers.clear();
        Ok(())
    }

    /// Ends the run, audits it and compares it with the undisturbed one, to the bit.
    pub fn stop_and_prove(&mut self) -> Result<u64> {
        self.stop()?;
        Ok(self.lab.prove(&self.recipe, &self.run)?.last_step())
    }

    /// Where it lives.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}
