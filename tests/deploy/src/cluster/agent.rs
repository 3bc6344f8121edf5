//! In place of a kubelet: runs the Pods that are bound to its nodes, as processes in sandboxes, and reports on them.
//!
//! ```text
//! look:  Pods of the API ──► start │ SIGTERM, later SIGKILL │ probe ──► status: phase, exit code, Ready
//!        Services ──► the hosts files of Pods, in place of DNS
//! ```
//! What a kubelet does besides and this does not: several containers, liveness, limits, logs and exec.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::api::Api;
use super::{clock, probe};
use crate::net::Net;
use crate::pod::{Cluster, Container, Identity};
use crate::sandbox::{Image, Running};

const NODES: [&str; 2] = ["node-1", "node-2"];
const RENEW: Duration = Duration::from_secs(5);

/// A Pod that is or was here.
#[derive(Debug)]
struct Local {
    running: Option<Running>,
    ip: String,
    started: String,
    finished: Option<(i32, String)>,
    is_ready: bool,
    kill_at: Option<Instant>,
    reported: Value,
}

/// The nodes and their Pods.
#[derive(Debug)]
pub struct Agent {
    api: Api,
    net: Net,
    folder: PathBuf,
    images: Vec<(&'static str, Image)>,
    pods: BTreeMap<String, Local>,
    renewed: Option<Instant>,
}

/// What the API knows for a Pod of a namespace.
struct Here<'a> {
    api: &'a Api,
    namespace: &'a str,
}

impl Cluster for Here<'_> {
    fn secret(&self, name: &str) -> Option<BTreeMap<String, String>> {
        let secret = self.api.get(&format!("/api/v1/namespaces/{}/secrets/{name}", self.namespace)).ok()??;
        let values = secret["data"].as_object()?.iter();
        values.map(|(key, value)| Some((key.clone(), clock::from_base64(value.as_str()?)?))).collect()
    }

    fn claim(&self, name: &str) -> Option<PathBuf> {
        let path = format!("/api/v1/namespaces/{}/persistentvolumeclaims/{name}", self.namespace);
        let claim = self.api.get(&path).ok()??;
        let volume = claim["spec"]["volumeName"].as_str()?;
        let volume = self.api.get(&format!("/api/v1/persistentvolumes/{volume}")).ok()??;
        volume["spec"]["hostPath"]["path"].as_str().map(PathBuf::from)
    }
}

impl Agent {
    /// Registers the nodes. `images`: a part of an image's name, and what it stands for.
    pub fn new(api: Api, net: Net, folder: PathBuf, images: Vec<(&'static str, Image)>) -> Result<Self> {
        for node in NODES {
            api.create(
                "/api/v1/nodes",
                &json!({ "metadata": { "name": node, "labels": {
                "kubernetes.io/hostname": node, "kubernetes.io/os": "linux",
            } } }),
            )?;
            let amounts = json!({ "cpu": "8", "memory": "32Gi", "ephemeral-storage": "100Gi", "pods": "50" });
            let ready = json!([{ "type": "Ready", "status": "True", "reason": "AgentReady",
                "lastHeartbeatTime": clock::now(), "lastTransitionTime": clock::now() }]);
            let status = json!({ "status": {
                "capacity": amounts, "allocatable": amounts, "conditions": ready,
                "addresses": [{ "type": "InternalIP", "address": "10.98.0.1" }],
            } });
            api.patch(&format!("/api/v1/nodes/{node}/status"), &status)?;
            let lease = json!({ "metadata": { "name": node }, "spec": {
                "holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": clock::now_micro(),
            } });
            api.create("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", &lease)?;
        }
        Ok(Self { api, net, folder, images, pods: BTreeMap::new(), renewed: None })
    }

    /// One look at everything.
    pub fn look(&mut self) -> Result<()> {
        if self.renewed.is_none_or(|renewed| renewed.elapsed() > RENEW) {
            for node in NODES {
                let path = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{node}");
                self.api.patch(&path, &json!({ "spec": { "renewTime": clock::now_micro() } }))?;
            }
            self.renewed = Some(Instant::now());
        }
        let pods = self.api.list("/api/v1/pods")?;
        let services = self.api.list("/api/v1/services")?;
        let mut seen = BTreeSet::new();
        for pod in pods.iter().filter(|pod| NODES.iter().any(|node| pod["spec"]["nodeName"] == *node)) {
            seen.insert(uid(pod));
            self.tend(pod).with_context(|| format!("Pod {}", text(&pod["metadata"]["name"])))?;
        }
        self.pods.retain(|uid, _| seen.contains(uid));
        self.write_hosts(&pods, &services)
    }

    /// SIGKILL to a Pod's process.
    pub fn kill(&self, namespace: &str, name: &str) -> Result<()> {
        let pod = self.api.get(&format!("/api/v1/namespaces/{namespace}/pods/{name}"))?.context("no such Pod")?;
        let running = self.pods.get(&uid(&pod)).and_then(|local| local.running.as_ref());
        running.context("it does not run")?.signal(Signal::KILL);
        Ok(())
    }

    fn tend(&mut self, pod: &Value) -> Result<()> {
        let uid = uid(pod);
        let is_deleted = pod["metadata"]["deletionTimestamp"].is_string();
        if !self.pods.contains_key(&uid) {
            let is_new = pod["status"]["phase"] == "Pending" && !is_deleted;
            if !is_new {
                return if is_deleted { self.remove(pod) } else { Ok(()) };
            }
            let local = self.start(pod)?;
            self.pods.insert(uid.clone(), local);
        }
        let Some(local) = self.pods.get_mut(&uid) else { return Ok(()) };
        if let Some(running) = &mut local.running {
            if is_deleted && local.kill_at.is_none() {
                let grace = pod["metadata"]["deletionGracePeriodSeconds"].as_u64().unwrap_or(30);
                running.signal(Signal::TERM);
                local.kill_at = Some(Instant::now() + Duration::from_secs(grace));
            }
            if local.kill_at.is_some_and(|at| Instant::now() > at) {
                running.signal(Signal::KILL);
            }
            if let Some(code) = running.ended()? {
                local.finished = Some((code, clock::now()));
                local.running = None;
            }
        }
        local.is_ready = local.running.is_some() && is_ready(pod, local);
        let status = status(pod, local);
        if status != local.reported {
            self.api.patch(&format!("{}/status", path(pod)), &json!({ "status": status }))?;
            local.reported = status;
        }
        if is_deleted && local.finished.is_some() { self.remove(pod) } else { Ok(()) }
    }

    fn start(&mut self, pod: &Value) -> Result<Local> {
        let (namespace, name) = (text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
        let identity = Identity { name: name.clone(), ip: self.net.address() };
        let mut local = Local {
            running: None,
            ip: identity.ip.clone(),
            started: clock::now(),
            finished: None,
            is_ready: false,
            kill_at: None,
            reported: Value::Null,
        };
        let here = Here { api: &self.api, namespace: &namespace };
        let container = Container::of(&pod["spec"], &identity, &here)?;
        let image = self.images.iter().find(|(part, _)| container.image.contains(part));
        let (_, image) = image.with_context(|| format!("no image {}", container.image))?;
        let folder = self.folder.join(format!("{namespace}.{name}"));
        local.running = Some(Running::start(&container, image, identity, &self.net, &folder)?);
        Ok(local)
    }

    /// The last word on a Pod that was to be deleted.
    fn remove(&self, pod: &Value) -> Result<()> {
        let now = json!({ "gracePeriodSeconds": 0, "preconditions": { "uid": pod["metadata"]["uid"] } });
        let answer = self.api.request("DELETE", &path(pod), Some(("application/json", &now)))?;
        match answer {
            Err(refused) if ![404, 409].contains(&refused.status) => anyhow::bail!("{}", refused.message),
            _ => Ok(()),
        }
    }

    /// In place of DNS: the names of a namespace's Services, at the addresses of the Pods behind them.
    fn write_hosts(&self, pods: &[Value], services: &[Value]) -> Result<()> {
        for pod in pods.iter().filter(|pod| self.pods.contains_key(&uid(pod))) {
            let namespace = &pod["metadata"]["namespace"];
            let mut hosts = "127.0.0.1 localhost\n".to_owned();
            for service in services.iter().filter(|service| service["metadata"]["namespace"] == *namespace) {
                let is_early = service["spec"]["publishNotReadyAddresses"] == true;
                for other in pods.iter().filter(|other| is_behind(other, service)) {
                    let local = self.pods.get(&uid(other)).filter(|local| local.running.is_some());
                    if let Some(local) = local.filter(|local| local.is_ready || is_early) {
                        hosts += &format!("{} {}\n", local.ip, text(&service["metadata"]["name"]));
                    }
                }
            }
            let name = format!("{}.{}", text(namespace), text(&pod["metadata"]["name"]));
            let file = self.folder.join(name).join("hosts");
            if std::fs::read_to_string(&file).unwrap_or_default() != hosts {
                // In place: the file is mounted in the Pod.
                std::fs::write(&file, hosts)?;
            }
        }
        Ok(())
    }
}

fn is_behind(pod: &Value, service: &Value) -> bool {
    let Some(selector) = service["spec"]["selector"].as_object() else { return false };
    pod["metadata"]["namespace"] == service["metadata"]["namespace"]
        && selector.iter().all(|(key, value)| pod["metadata"]["labels"][key] == *value)
}

/// Started, by its startupProbe, and ready, by its readinessProbe.
fn is_ready(pod: &Value, local: &Local) -> bool {
    let container = &pod["spec"]["containers"][0];
    let named = |wanted: &Value| {
        let port = container["ports"].as_array()?.iter().find(|port| port["name"] == *wanted);
        port.map_or(wanted.as_u64(), |port| port["containerPort"].as_u64())
    };
    ["startupProbe", "readinessProbe"].iter().map(|kind| &container[*kind]).all(|check| {
        if let Some(port) = named(&check["httpGet"]["port"]) {
            let path = check["httpGet"]["path"].as_str().unwrap_or("/");
            return probe::http(&format!("{}:{port}", local.ip), path).is_ok_and(|status| (200..400).contains(&status));
        }
        let port = check["grpc"]["port"].as_u64();
        port.is_none_or(|port| probe::grpc(&format!("{}:{port}", local.ip)).is_ok())
    })
}

fn status(pod: &Value, local: &Local) -> Value {
    let phase = match local.finished {
        None => "Running",
        Some((0, _)) => "Succeeded",
        Some(_) => "Failed",
    };
    let state = match &local.finished {
        None => json!({ "running": { "startedAt": local.started } }),
        Some((code, at)) => json!({ "running": null, "terminated": {
            "exitCode": code, "startedAt": local.started, "finishedAt": at,
            "reason": if *code == 0 { "Completed" } else { "Error" },
        } }),
    };
    let container = &pod["spec"]["containers"][0];
    let is_ready = if local.is_ready { "True" } else { "False" };
    json!({
        "phase": phase, "podIP": local.ip, "podIPs": [{ "ip": local.ip }], "startTime": local.started,
        "conditions": [
            { "type": "Initialized", "status": "True" },
            { "type": "ContainersReady", "status": is_ready },
            { "type": "Ready", "status": is_ready },
        ],
        "containerStatuses": [{
            "name": container["name"], "image": container["image"], "imageID": "", "restartCount": 0,
            "ready": local.is_ready, "started": local.finished.is_none(), "state": state,
        }],
    })
}

fn path(pod: &Value) -> String {
    format!("/api/v1/namespaces/{}/pods/{}", text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]))
}

fn uid(pod: &Value) -> String {
    text(&pod["metadata"]["uid"])
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
