//! Runs scenarios, one after another, and writes down what was seen. One that fails does not hide the next.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::agent::Agent;
use super::api::Api;
use super::control_plane::ControlPlane;
use super::{Places, scenario};
use crate::net::Net;
use crate::process::LOOK;
use crate::render;
use crate::sandbox::{Image, libraries};
use crate::tools::Tools;

/// Between two looks of the agent; a kubelet is told at once, but seconds are what its controllers take, too.
const BEAT: Duration = Duration::from_millis(200);

/// A row of the table.
#[derive(Clone, Debug)]
pub struct Line {
    /// What is promised.
    pub what: &'static str,
    /// What was seen, or what went wrong.
    pub seen: String,
    /// Whether it held.
    pub held: bool,
}

/// The cluster, and whoever looks at it.
#[derive(Debug)]
pub(super) struct Show {
    pub api: Api,
    pub tools: Tools,
    /// What the agent keeps of Pods: `NAMESPACE.POD/log`.
    pub pods: PathBuf,
    /// Holds the folder behind each volume.
    pub volumes: PathBuf,
    /// The command.
    pub lockstep: PathBuf,
    agent: Agent,
    plane: ControlPlane,
    looked: Option<Instant>,
}

pub(super) fn run(places: &Places, net: Net) -> Result<Vec<Line>> {
    let folder = tempfile::Builder::new().prefix("lockstep-kubernetes-").tempdir()?;
    crate::process::run("chmod", &["755", &folder.path().to_string_lossy()])?;
    let at = |name: &str| folder.path().join(name);
    let tools = Tools::at(&places.tools);
    let plane = ControlPlane::start(&places.control_plane, &tools.kubectl, &at("control-plane"))?;
    let api = plane.api.clone();
    let [lockstep, worker] = ["lockstep", "lockstep-worker"].map(|name| places.executables.join(name));
    let libraries = Some(libraries(&worker)?);
    let images = vec![
        ("/lockstep-coordinator:", Image { executables: vec![lockstep.clone()], libraries: None }),
        ("/lockstep-worker:", Image { executables: vec![lockstep.clone(), worker], libraries }),
    ];
    let agent = Agent::new(api.clone(), net, at("pods"), images)?;
    let (pods, volumes) = (at("pods"), at("volumes"));
    let mut show = Show { api, tools, pods, volumes, lockstep, agent, plane, looked: None };
    show.wait("a scheduler that uses the nodes", 60, |api| {
        let nodes = api.list("/api/v1/nodes")?;
        Ok(nodes.iter().all(|node| node["spec"]["taints"].is_null()).then_some(()))
    })?;
    let mut lines = Vec::new();
    for (what, scenario) in scenario::ALL {
        let began = Instant::now();
        let (held, seen) = match scenario(&mut show) {
            Ok(seen) => (true, seen),
            Err(error) => (false, format!("{error:#}")),
        };
        let mark = if held { "held" } else { "MISS" };
        eprintln!("{mark}  {what}: {seen} ({:.0} s)", began.elapsed().as_secs_f64());
        lines.push(Line { what, seen, held });
    }
    if std::env::var_os("LOCKSTEP_KEEP").is_some() {
        eprintln!("kept: {}", folder.keep().display());
    }
    Ok(lines)
}

impl Show {
    /// Looks until there is something to see; the agent works meanwhile.
    pub fn wait<T>(&mut self, what: &str, seconds: u64, mut look: impl FnMut(&Api) -> Result<Option<T>>) -> Result<T> {
        let end = Instant::now() + Duration::from_secs(seconds);
        loop {
            if self.beat()?
                && let Some(seen) = look(&self.api)?
            {
                return Ok(seen);
            }
            if Instant::now() > end {
                bail!("{what}: not within {seconds} s");
            }
            std::thread::sleep(LOOK); // between two looks
        }
    }

    /// Lets the agent work, if it is time; nodes that say nothing for long are not used any more.
    pub fn beat(&mut self) -> Result<bool> {
        if self.looked.is_some_and(|looked| looked.elapsed() < BEAT) {
            return Ok(false);
        }
        self.plane.check()?;
        self.agent.look()?;
        self.looked = Some(Instant::now());
        Ok(true)
    }

    /// A namespace on which the restricted level is enforced, with a Secret and a volume.
    pub fn namespace(&mut self, name: &str, has_token: bool) -> Result<()> {
        let api = self.api.clone();
        api.must(&["create", "namespace", name], None)?;
        let level = |mode: &str| format!("pod-security.kubernetes.io/{mode}=restricted");
        api.must(&["label", "namespace", name, &level("enforce"), &level("warn")], None)?;
        if has_token {
            let token = "--from-literal=token=0123456789abcdef0123456789abcdef";
            api.must(&["-n", name, "create", "secret", "generic", "lockstep-token", token], None)?;
        }
        let folder = self.volumes.join(name);
        std::fs::create_dir_all(&folder)?;
        let volume = serde_json::json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": format!("runs-{name}") },
            "spec": {
                "capacity": { "storage": "100Gi" }, "accessModes": ["ReadWriteOnce"],
                "hostPath": { "path": folder }, "claimRef": { "namespace": name, "name": "lockstep-runs" },
            },
        });
        api.must(&["apply", "-f", "-"], Some(&volume.to_string()))?;
        // Controllers make the account that Pods run as.
        let account = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
        self.wait("a service account", 60, |api| Ok(api.get(&account)?.map(drop)))
    }

    /// The run directory of a namespace.
    pub fn run_dir(&self, namespace: &str) -> PathBuf {
        self.volumes.join(namespace).join("run")
    }

    /// Applies the overlay `cpu` with something changed.
    pub fn apply_changed(&self, namespace: &str, change: impl Fn(&mut Value)) -> Result<String> {
        let mut objects = render::overlay(&self.tools, "cpu")?;
        objects.iter_mut().for_each(change);
        let text: Vec<String> = objects.iter().map(Value::to_string).collect();
        self.api.must(&["-n", namespace, "apply", "-f", "-"], Some(&text.join("\n---\n")))
    }

    /// A condition that a Job has come to: its type and its reason.
    pub fn job_ends(&mut self, namespace: &str, name: &str, seconds: u64) -> Result<(String, String)> {
        let path = format!("/apis/batch/v1/namespaces/{namespace}/jobs/{name}");
        self.wait(&format!("the end of {name}"), seconds, |api| {
            let job = api.get(&path)?.with_context(|| format!("no {name}"))?;
            let conditions = job["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let end =
                conditions.iter().find(|c| c["status"] == "True" && (c["type"] == "Complete" || c["type"] == "Failed"));
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            Ok(end.map(|end| (text(&end["type"]), text(&end["reason"]))))
        })
    }

    /// The names of a component's Pods that run and are not being deleted.
    pub fn running(api: &Api, namespace: &str, component: &str) -> Result<Vec<String>> {
        let selector = format!("labelSelector=app.kubernetes.io%2Fcomponent%3D{component}");
        let pods = api.list(&format!("/api/v1/namespaces/{namespace}/pods?{selector}"))?;
        let runs = |pod: &&Value| pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null();
        Ok(pods.iter().filter(runs).filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)).collect())
    }

    /// Ends a Pod's process with SIGKILL, as running out of memory would.
    pub fn kill(&self, namespace: &str, pod: &str) -> Result<()> {
        self.agent.kill(namespace, pod)
    }

    /// All that a Pod said.
    pub fn log(&self, namespace: &str, pod: &str) -> String {
        std::fs::read_to_string(self.pods.join(format!("{namespace}.{pod}")).join("log")).unwrap_or_default()
    }
}
