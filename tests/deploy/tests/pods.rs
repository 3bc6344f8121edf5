//! Pods as processes: the commands and the environment of the overlay `cpu`, as its manifests give them, in network
//! namespaces, as user 65532, on a root that cannot be written.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use lockstep_deploy::net::Net;
use lockstep_deploy::pod::{Cluster, Container, Identity};
use lockstep_deploy::policy::{Component, workloads};
use lockstep_deploy::process::until;
use lockstep_deploy::render;
use lockstep_deploy::sandbox::{Image, PROGRAMS, Running, libraries};
use lockstep_deploy::tools::{Tools, executables, skip};
use rustix::process::Signal;
use serde_json::Value;

/// Nothing here takes longer, however slow the machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A small net, and enough steps for all that happens to the Pods.
const SETS: [&str; 11] = [
    "data.train_size=400",
    "data.test_size=40",
    "model.n=1",
    "model.width=8",
    "schedule.kind=constant",
    "train.batch=32",
    "train.chunk=8",
    "train.epochs=40",
    "train.evaluate_every_epochs=0",
    "checkpoint.every_steps=200",
    "log.every_s=0.1",
];

struct Site {
    net: Net,
    folder: tempfile::TempDir,
    specs: BTreeMap<Component, Value>,
    images: BTreeMap<Component, Image>,
    num_pods: u32,
}

impl Cluster for Site {
    fn secret(&self, name: &str, key: &str) -> Option<String> {
        (name == "lockstep-token" && key == "token").then(|| "a-secret-of-this-test".into())
    }

    fn claim(&self, name: &str) -> Option<PathBuf> {
        (name == "lockstep-runs").then(|| self.folder.path().join("runs"))
    }
}

impl Site {
    /// `None`: something is missing, which was said.
    fn new() -> Option<Self> {
        let tools = Tools::find()?;
        let [lockstep, worker] = executables()?;
        if !rustix::process::geteuid().is_root() {
            skip("namespaces and mounts need root");
            return None;
        }
        if let Some(missing) = PROGRAMS.iter().find(|program| Command::new(program).arg("--help").output().is_err()) {
            skip(&format!("no `{missing}`: apt-get install iproute2 util-linux"));
            return None;
        }
        let objects = render::overlay(&tools, "cpu").unwrap();
        let mut findings = Vec::new();
        let specs = workloads(&objects, &mut findings).into_iter().map(|w| (w.component, w.pod().clone())).collect();
        let coordinator = Image { executables: vec![lockstep.clone()], libraries: None };
        let libraries = Some(libraries(&worker).unwrap());
        let worker = Image { executables: vec![lockstep, worker], libraries };
        let images = [(Component::Coordinator, coordinator), (Component::Worker, worker)].into();
        let folder = tempfile::tempdir().unwrap();
        // Its owner alone would otherwise get in, and containers are nobody.
        run("chmod", &["755", &folder.path().to_string_lossy()]);
        Some(Self { net: Net::new().unwrap(), folder, specs, images, num_pods: 0 })
    }

    fn identity(&mut self, component: Component) -> Identity {
        self.num_pods += 1;
        let name = format!("lockstep-{component:?}-{}", self.num_pods).to_lowercase();
        Identity { name, ip: self.net.address() }
    }

    fn container(&self, component: Component, identity: &Identity) -> Container {
        Container::of(&self.specs[&component], identity, self).unwrap()
    }

    /// Starts a Pod; `others` are names that its hosts file knows.
    fn start(&self, component: Component, container: &Container, identity: Identity, others: &str) -> Running {
        let folder = self.folder.path().join(&identity.name);
        std::fs::create_dir_all(&folder).unwrap();
        let own = format!("127.0.0.1 localhost\n{} {}\n{others}", identity.ip, identity.name);
        std::fs::write(folder.join("hosts"), own).unwrap();
        Running::start(container, &self.images[&component], identity, &self.net, &folder).unwrap()
    }

    fn worker(&mut self, coordinator: &str) -> Running {
        let identity = self.identity(Component::Worker);
        let container = self.container(Component::Worker, &identity);
        self.start(Component::Worker, &container, identity, &format!("{coordinator} lockstep\n"))
    }

    fn run_dir(&self) -> PathBuf {
        self.folder.path().join("runs/run")
    }
}

fn run(program: &str, args: &[&str]) -> String {
    lockstep_deploy::process::run(program, args).unwrap()
}

/// The committed steps: their numbers and the world sizes at them.
fn steps(run: &Path) -> Vec<(u64, u64)> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter_map(|line| Some((line["step"].as_u64()?, line["world_size"].as_u64()?))).collect()
}

/// Waits until some more steps were committed by so many workers.
fn await_world(run: &Path, size: u64, pods: &mut [&mut Running]) {
    let from = steps(run).len();
    until(&format!("steps of {size} workers"), PATIENCE, || {
        for pod in pods.iter_mut() {
            let ended = pod.ended()?;
            assert!(ended.is_none(), "{} ended with {ended:?}: {}", pod.identity.name, pod.log());
        }
        let new = steps(run);
        Ok((new.iter().skip(from).filter(|(_, world)| *world == size).count() >= 3).then_some(()))
    })
    .unwrap();
}

#[test]
fn a_run_of_the_cpu_overlay_loses_replaces_and_gains_pods_and_is_whole() {
    let Some(mut site) = Site::new() else { return };
    let began = Instant::now();
    let identity = site.identity(Component::Coordinator);
    let ip = identity.ip.clone();
    let mut container = site.container(Component::Coordinator, &identity);
    container.command.extend(SETS.iter().map(|set| format!("--set={set}")));
    let mut coordinator = site.start(Component::Coordinator, &container, identity, "");
    let run = site.run_dir();

    let mut first = site.worker(&ip);
    let mut second = site.worker(&ip);
    await_world(&run, 2, &mut [&mut coordinator, &mut first, &mut second]);

    // Deleted: leaves with the code that is not counted, within its grace period.
    let grace = Duration::from_secs(container.grace_s);
    assert_eq!(first.stop(grace).unwrap(), 75, "{}", first.log());
    let mut third = site.worker(&ip);
    await_world(&run, 2, &mut [&mut coordinator, &mut second, &mut third]);

    // Added.
    let mut fourth = site.worker(&ip);
    await_world(&run, 3, &mut [&mut coordinator, &mut second, &mut third, &mut fourth]);

    // Deleted while it hangs: SIGTERM does nothing, SIGKILL comes after the grace period, here a short one.
    second.signal(Signal::STOP);
    assert_eq!(second.stop(Duration::from_secs(1)).unwrap(), 137);
    await_world(&run, 2, &mut [&mut coordinator, &mut third, &mut fourth]);

    for pod in [&mut coordinator, &mut third, &mut fourth] {
        assert_eq!(pod.wait(PATIENCE).unwrap(), 0, "{}: {}", pod.identity.name, pod.log());
    }
    let [lockstep, _] = executables().unwrap();
    let audit = Command::new(lockstep).arg("audit").arg(&run).output().unwrap();
    let said = String::from_utf8_lossy(&audit.stdout);
    assert!(audit.status.success(), "{said}{}", String::from_utf8_lossy(&audit.stderr));
    println!("{} steps in {:.1} s; {}", steps(&run).len(), began.elapsed().as_secs_f64(), said.trim());
}

#[test]
fn a_container_is_nobody_and_writes_only_what_is_mounted() {
    let Some(mut site) = Site::new() else { return };
    let identity = site.identity(Component::Worker);
    let mut container = site.container(Component::Worker, &identity);
    let script = "id -u; id -g; id -G; hostname; echo pid $$; grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status
        for path in / /etc /usr/local/bin /dev /var; do touch $path/x 2>/dev/null && echo wrote $path; done
        for path in /tmp /dev/shm; do touch $path/x || echo cannot write $path; done
        df -k --output=size /dev/shm | tail -1; cat /etc/hosts; env | sort";
    container.command = vec!["sh".into(), "-c".into(), script.into()];
    let mut pod = site.start(Component::Worker, &container, identity, "10.98.9.9 lockstep\n");
    assert_eq!(pod.wait(PATIENCE).unwrap(), 0, "{}", pod.log());
    let said: Vec<String> =
        pod.log().lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let wanted = [
        "65532",
        "65532",
        "65532",
        "lockstep-worker-1",
        "pid 1",
        "CapBnd: 0000000000000000",
        "CapEff: 0000000000000000",
        "NoNewPrivs: 1",
        "262144",
        "10.98.9.9 lockstep",
        "LOCKSTEP_ADVERTISE=10.98.0.2",
        "LOCKSTEP_COORDINATOR=http://lockstep:7070",
        "LOCKSTEP_DEVICES=cpu",
        "LOCKSTEP_ID=lockstep-worker-1",
        "LOCKSTEP_THREADS=1",
        "LOCKSTEP_TOKEN=a-secret-of-this-test",
    ];
    for line in wanted {
        assert!(said.iter().any(|said| said == line), "no {line:?} in {said:#?}");
    }
    for line in &said {
        assert!(!line.starts_with("wrote") && !line.starts_with("cannot"), "{line}");
        assert!(!line.starts_with("LOCKSTEP_PORT"), "{line}");
    }
}
