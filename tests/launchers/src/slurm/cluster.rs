//! A Slurm of two nodes on one machine: own configuration, state, key and ports; gone when it is dropped.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use lockstep_chaos::Process;
use rustix::process::Signal;

use crate::program::{forget, said};
use crate::wait::until;

/// The nodes.
pub const NODES: [&str; 2] = ["n1", "n2"];
/// Seconds that a requeued job waits; Slurm takes no less, and 120 by default.
const REQUEUE_S: u32 = 5;
/// For daemons to start and to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Daemons, and the folder of their files.
pub struct Cluster {
    dir: PathBuf,
    /// In the order in which they end: nodes, controller, munge.
    daemons: Vec<Process>,
}

impl Cluster {
    /// Starts it; the nodes are idle.
    ///
    /// # Errors
    /// A daemon does not start: with its last words.
    pub fn start(dir: &Path) -> Result<Self> {
        for folder in ["run", "state", "log", "home", "jobs"] {
            let folder = dir.join(folder);
            fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
            // munged wants a path that others can enter.
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o711))?;
        }
        fs::set_permissions(dir, fs::Permissions::from_mode(0o711))?;
        let mut cluster = Self { dir: dir.to_owned(), daemons: Vec::new() };
        cluster.start_munge()?;
        let ports = free_ports::<3>()?;
        fs::write(cluster.conf(), configuration(dir, &host(), ports))?;
        cluster.daemon("slurmctld", &["-D"])?;
        for node in NODES {
            cluster.daemon("slurmd", &["-D", "-N", node])?;
        }
        cluster.daemons.reverse();
        let idle = until("both nodes are idle", PATIENCE, || {
            let states =
                said(&mut cluster.command("sinfo", &["--noheader", "--Node", "--format=%T"])).unwrap_or_default();
            Ok((states.lines().filter(|line| *line == "idle").count() == NODES.len()).then_some(()))
        });
        idle.with_context(|| cluster.last_words())?;
        Ok(cluster)
    }

    fn start_munge(&mut self) -> Result<()> {
        let (run, key) = (self.dir.join("run"), self.dir.join("run/munge.key"));
        let mut bytes = [0; 128];
        std::io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut bytes)?;
        fs::write(&key, bytes)?;
        fs::set_permissions(&key, fs::Permissions::from_mode(0o400))?;
        let file = |flag: &str, name: &str| format!("--{flag}={}", run.join(name).display());
        let mut command = Command::new("munged");
        command.arg("--foreground").args([
            file("key-file", "munge.key"),
            file("socket", "munge.sock"),
            file("pid-file", "munged.pid"),
            file("log-file", "munged.log"),
            file("seed-file", "munge.seed"),
        ]);
        self.daemons.push(Process::start("munged", command, &self.dir.join("log/munged"))?);
        let socket = run.join("munge.sock");
        until("munged listens", PATIENCE, || Ok(socket.exists().then_some(()))).with_context(|| self.last_words())
    }

    fn daemon(&mut self, program: &str, args: &[&str]) -> Result<()> {
        let log = self.dir.join("log").join(args.last().map_or(program.to_owned(), |node| format!("{program}{node}")));
        self.daemons.push(Process::start(program, self.command(program, args), &log)?);
        Ok(())
    }

    fn conf(&self) -> PathBuf {
        self.dir.join("slurm.conf")
    }

    /// Where jobs are submitted, and write what they say.
    pub fn jobs(&self) -> PathBuf {
        self.dir.join("jobs")
    }

    /// The user's home, as jobs see it.
    pub fn home(&self) -> PathBuf {
        self.dir.join("home")
    }

    /// One of Slurm's programs, in the user's environment and without a job's.
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        for prefix in ["LOCKSTEP_", "SLURM", "SBATCH_", "SRUN_"] {
            forget(&mut command, prefix);
        }
        command.args(args).current_dir(self.jobs()).env("SLURM_CONF", self.conf()).env("HOME", self.home());
        command
    }

    fn last_words(&self) -> String {
        let words = self.daemons.iter().map(|daemon| format!("{}: {}", daemon.name(), daemon.last_words()));
        words.collect::<Vec<_>>().join("\n")
    }

    /// Whether all daemons still run.
    ///
    /// # Errors
    /// One has ended: with its last words.
    pub fn check(&mut self) -> Result<()> {
        let ended = self.daemons.iter_mut().find_map(|daemon| daemon.ended().map(|_| daemon));
        if let Some(daemon) = ended {
            bail!("{} ended: {}", daemon.name(), daemon.last_words());
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Whatever fails here, the daemons themselves are killed when they are dropped.
        let _ = said(&mut self.command("scancel", &["--full", "--signal=KILL", "--partition=all"]));
        let _ = said(&mut self.command("scancel", &["--partition=all"]));
        let _ = until("no job is left", PATIENCE, || {
            let jobs = said(&mut self.command("squeue", &["--noheader"])).unwrap_or_default();
            Ok(jobs.trim().is_empty().then_some(()))
        });
        for daemon in &mut self.daemons {
            daemon.signal(Signal::TERM);
            let _ = daemon.wait(PATIENCE);
        }
    }
}

/// This machine's name, as Slurm knows it.
fn host() -> String {
    let name = gethostname::gethostname().to_string_lossy().into_owned();
    name.split('.').next().unwrap_or_default().to_owned()
}

/// Ports that nobody has at this moment.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut listeners = Vec::new(); // held together, so that no port comes twice
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

/// `slurm.conf`.
fn configuration(dir: &Path, host: &str, [controller, first, second]: [u16; 3]) -> String {
    let user = if rustix::process::geteuid().is_root() { "root".to_owned() } else { whoami() };
    let dir = dir.display();
    let [a, b] = NODES;
    format!(
        "ClusterName=lockstep
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={dir}/run/munge.sock,cred_expire={REQUEUE_S}
CredType=cred/munge
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/run/spool-%n
SlurmctldPidFile={dir}/run/slurmctld.pid
SlurmdPidFile={dir}/run/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=3600
# Left to a site, these would end a whole job with one task: the scripts must say otherwise.
KillOnBadExit=1
WaitTime=5
NodeName={a} NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=8
NodeName={b} NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=8
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE
"
    )
}

fn whoami() -> String {
    said(Command::new("id").arg("-un")).unwrap_or_default().trim().to_owned()
}
