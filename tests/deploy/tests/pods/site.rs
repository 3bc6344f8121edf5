//! A site: the base with components, its Pods as processes, a Secret, a folder behind the claim.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use lockstep_deploy::net::Net;
use lockstep_deploy::pod::{Cluster, Container, Identity};
use lockstep_deploy::policy::{Component, workloads};
use lockstep_deploy::render;
use lockstep_deploy::sandbox::{Image, PROGRAMS, Running, libraries};
use lockstep_deploy::tools::{Tools, executables, skip};
use serde_json::Value;

/// Nothing here takes longer, however slow the machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub struct Site {
    pub net: Net,
    pub folder: tempfile::TempDir,
    specs: BTreeMap<Component, Value>,
    images: BTreeMap<Component, Image>,
    pub secrets: BTreeMap<String, BTreeMap<String, String>>,
    num_pods: u32,
}

impl Cluster for Site {
    fn secret(&self, name: &str) -> Option<BTreeMap<String, String>> {
        self.secrets.get(name).cloned()
    }

    fn claim(&self, name: &str) -> Option<PathBuf> {
        (name == "lockstep-runs").then(|| self.folder.path().join("runs"))
    }
}

impl Site {
    /// The overlay `cpu`, or the base with components. `None`: something is missing, which was said.
    pub fn new(components: &[&str]) -> Option<Self> {
        let tools = Tools::find()?;
        let [lockstep, worker] = executables()?;
        if !rustix::process::geteuid().is_root() {
            println!("skipped: namespaces and mounts need root");
            return None;
        }
        if let Some(missing) = PROGRAMS.iter().find(|program| Command::new(program).arg("--help").output().is_err()) {
            skip(&format!("no `{missing}`: apt-get install iproute2 util-linux"));
            return None;
        }
        let objects = match components {
            [] => render::overlay(&tools, "cpu"),
            some => render::with_components(&tools, some),
        }
        .unwrap();
        let mut findings = Vec::new();
        let specs = workloads(&objects, &mut findings).into_iter().map(|w| (w.component, w.pod().clone())).collect();
        let coordinator = Image { executables: vec![lockstep.clone()], libraries: None };
        let libraries = Some(libraries(&worker).unwrap());
        let worker = Image { executables: vec![lockstep, worker], libraries };
        let images = [(Component::Coordinator, coordinator), (Component::Worker, worker)].into();
        let folder = tempfile::tempdir().unwrap();
        // Its owner alone would otherwise get in, and containers are nobody.
        run("chmod", &["755", &folder.path().to_string_lossy()]);
        let token = [("token".to_owned(), "a-secret-of-this-test".to_owned())].into();
        let secrets = [("lockstep-token".to_owned(), token)].into();
        Some(Self { net: Net::new().unwrap(), folder, specs, images, secrets, num_pods: 0 })
    }

    pub fn identity(&mut self, component: Component) -> Identity {
        self.num_pods += 1;
        let name = format!("lockstep-{component:?}-{}", self.num_pods).to_lowercase();
        Identity { name, ip: self.net.address() }
    }

    pub fn container(&self, component: Component, identity: &Identity) -> Container {
        Container::of(&self.specs[&component], identity, self).unwrap()
    }

    /// Starts a Pod; `others` are names that its hosts file knows.
    pub fn start(&self, component: Component, container: &Container, identity: Identity, others: &str) -> Running {
        let folder = self.folder.path().join(&identity.name);
        std::fs::create_dir_all(&folder).unwrap();
        let own = format!("127.0.0.1 localhost\n{} {}\n{others}", identity.ip, identity.name);
        std::fs::write(folder.join("hosts"), own).unwrap();
        Running::start(container, &self.images[&component], identity, &self.net, &folder).unwrap()
    }

    pub fn worker(&mut self, coordinator: &str) -> Running {
        let identity = self.identity(Component::Worker);
        let container = self.container(Component::Worker, &identity);
        self.start(Component::Worker, &container, identity, &format!("{coordinator} lockstep\n"))
    }

    pub fn run_dir(&self) -> PathBuf {
        self.folder.path().join("runs/run")
    }
}

pub fn run(program: &str, args: &[&str]) -> String {
    lockstep_deploy::process::run(program, args).unwrap()
}
