//! A Pod's container as a cluster would start it: its command, its environment, its mounts.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// What a cluster knows besides the Pod's spec.
pub trait Cluster {
    /// A Secret: its keys and values.
    fn secret(&self, name: &str) -> Option<BTreeMap<String, String>>;
    /// The folder behind a claim.
    fn claim(&self, name: &str) -> Option<PathBuf>;
}

/// Who this Pod is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its name, and its host name.
    pub name: String,
    /// Its address.
    pub ip: String,
}

/// Where something is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// In the container.
    pub path: String,
    /// What is there.
    pub source: Source,
    /// Whether it may not be written.
    pub is_read_only: bool,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An empty folder that lives as long as the Pod.
    Scratch(String),
    /// Memory, so many bytes at most.
    Memory(u64),
    /// A folder that outlives the Pod.
    Claim(PathBuf),
    /// Files of a Secret, which the group may read: the volume's name, then names and contents.
    Files(String, BTreeMap<String, String>),
}

/// A container, ready to be run.
#[derive(Clone, Debug)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// The image that it asks for.
    pub image: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// All of its environment.
    pub env: Vec<(String, String)>,
    /// Everything that is not the root.
    pub mounts: Vec<Mount>,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Whether the root may not be written.
    pub is_read_only: bool,
    /// Seconds from SIGTERM to SIGKILL.
    pub grace_s: u64,
}

impl Container {
    /// The one container of a Pod.
    ///
    /// # Errors
    /// When it asks for what is not there, or for what only a real kubelet can do.
    pub fn of(spec: &Value, identity: &Identity, cluster: &dyn Cluster) -> Result<Self> {
        ensure!(spec["initContainers"].is_null(), "containers before others cannot be run here");
        let containers = spec["containers"].as_array().context("no containers")?;
        let [container] = containers.as_slice() else { bail!("{} containers in place of one", containers.len()) };
        let mut env: Vec<(String, String)> = Vec::new();
        for variable in list(&container["env"]) {
            let name = text(&variable["name"])?;
            if let Some(value) = value_of(variable, container, identity, cluster).with_context(|| name.clone())? {
                let value = expand(&value, &env);
                env.push((name, value));
            }
        }
        let words = list(&container["command"]).iter().chain(list(&container["args"]));
        let command = words.map(|word| Ok(expand(&text(word)?, &env))).collect::<Result<Vec<_>>>()?;
        let context = &spec["securityContext"];
        let id = |key: &str| context[key].as_u64().and_then(|id| u32::try_from(id).ok());
        Ok(Self {
            name: text(&container["name"])?,
            image: text(&container["image"])?,
            command,
            env,
            mounts: mounts(spec, container, cluster)?,
            uid: id("runAsUser").context("no runAsUser")?,
            gid: id("runAsGroup").context("no runAsGroup")?,
            is_read_only: container["securityContext"]["readOnlyRootFilesystem"] == true,
            grace_s: spec["terminationGracePeriodSeconds"].as_u64().unwrap_or(30),
        })
    }
}

fn value_of(variable: &Value, container: &Value, identity: &Identity, cluster: &dyn Cluster) -> Result<Option<String>> {
    let from = &variable["valueFrom"];
    if let Some(key) = from["secretKeyRef"].as_object() {
        let value = cluster.secret(&text(&key["name"])?).and_then(|mut all| all.remove(key["key"].as_str()?));
        let is_optional = key.get("optional") == Some(&Value::Bool(true));
        ensure!(value.is_some() || is_optional, "no key {} in the Secret {}", key["key"], key["name"]);
        return Ok(value);
    }
    if let Some(path) = from["fieldRef"]["fieldPath"].as_str() {
        return Ok(Some(match path {
            "metadata.name" => identity.name.clone(),
            "status.podIP" => identity.ip.clone(),
            other => bail!("the field {other} is not known here"),
        }));
    }
    if let Some(resource) = from["resourceFieldRef"]["resource"].as_str() {
        let (kind, name) = resource.split_once('.').context("a resource without a dot")?;
        let amount = quantity(&container["resources"][kind][name])?;
        let divisor = quantity(from["resourceFieldRef"].get("divisor").unwrap_or(&Value::from("1")))?;
        return Ok(Some((amount / divisor).ceil().to_string()));
    }
    ensure!(from.is_null(), "{from} is not known here");
    Ok(Some(variable["value"].as_str().unwrap_or_default().to_owned()))
}

fn mounts(spec: &Value, container: &Value, cluster: &dyn Cluster) -> Result<Vec<Mount>> {
    let volumes: BTreeMap<&str, &Value> =
        list(&spec["volumes"]).iter().filter_map(|volume| Some((volume["name"].as_str()?, volume))).collect();
    let mut mounts = Vec::new();
    for mount in list(&container["volumeMounts"]) {
        let name = text(&mount["name"])?;
        let volume = volumes.get(name.as_str()).with_context(|| format!("no volume {name}"))?;
        let source = if let Some(claim) = volume["persistentVolumeClaim"]["claimName"].as_str() {
            Source::Claim(cluster.claim(claim).with_context(|| format!("the claim {claim} is not bound"))?)
        } else if let Some(secret) = volume["secret"]["secretName"].as_str() {
            Source::Files(name, cluster.secret(secret).with_context(|| format!("no Secret {secret}"))?)
        } else if volume["emptyDir"]["medium"] == "Memory" {
            Source::Memory(quantity(&volume["emptyDir"]["sizeLimit"])? as u64)
        } else if volume["emptyDir"].is_object() {
            Source::Scratch(name)
        } else {
            bail!("the volume {name} is of a kind that is not known here")
        };
        let is_read_only = mount["readOnly"] == true;
        mounts.push(Mount { path: text(&mount["mountPath"])?, source, is_read_only });
    }
    Ok(mounts)
}

/// `$(NAME)` of variables that are there.
fn expand(text: &str, env: &[(String, String)]) -> String {
    env.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("$({name})"), value))
}

/// `250m`, `2Gi`, `1`.
fn quantity(value: &Value) -> Result<f64> {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = match unit {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        other => bail!("{other} is not a unit that is known here"),
    };
    Ok(number.parse::<f64>().with_context(|| format!("{text} is not an amount"))? * unit)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> Result<String> {
    value.as_str().map(str::to_owned).with_context(|| format!("{value} is not a text"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct Nothing;

    impl Cluster for Nothing {
        fn secret(&self, name: &str) -> Option<BTreeMap<String, String>> {
            (name == "s").then(|| [("k".to_owned(), "hidden".to_owned())].into())
        }

        fn claim(&self, name: &str) -> Option<PathBuf> {
            (name == "c").then(|| "/there".into())
        }
    }

    fn spec(env: Value) -> Value {
        json!({
            "securityContext": { "runAsUser": 5, "runAsGroup": 6 },
            "containers": [{
                "name": "x", "image": "i", "command": ["p"], "args": ["--a=$(A)", "$(B)"], "env": env,
                "resources": { "limits": { "cpu": "1500m" } },
                "volumeMounts": [{ "name": "m", "mountPath": "/m" }, { "name": "c", "mountPath": "/c", "readOnly": true }],
            }],
            "volumes": [
                { "name": "m", "emptyDir": { "medium": "Memory", "sizeLimit": "2Mi" } },
                { "name": "c", "persistentVolumeClaim": { "claimName": "c" } },
            ],
        })
    }

    fn of(env: Value) -> Result<Container> {
        Container::of(&spec(env), &Identity { name: "pod-1".into(), ip: "10.0.0.9".into() }, &Nothing)
    }

    #[test]
    fn variables_come_from_everywhere_and_reach_the_arguments() {
        let key = |name: &str| json!({ "secretKeyRef": { "name": name, "key": "k", "optional": true } });
        let container = of(json!([
            { "name": "A", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
            { "name": "S", "valueFrom": key("s") },
            { "name": "T", "valueFrom": key("absent") },
            { "name": "N", "valueFrom": { "resourceFieldRef": { "resource": "limits.cpu", "divisor": "1" } } },
        ]))
        .unwrap();
        assert_eq!(container.command, ["p", "--a=10.0.0.9", "$(B)"]);
        let env: Vec<_> = container.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(env, ["A=10.0.0.9", "S=hidden", "N=2"]);
        assert_eq!((container.uid, container.gid, container.grace_s), (5, 6, 30));
        let memory = Mount { path: "/m".into(), source: Source::Memory(2 << 20), is_read_only: false };
        let claim = Mount { path: "/c".into(), source: Source::Claim("/there".into()), is_read_only: true };
        assert_eq!(container.mounts, [memory, claim]);
    }

    #[test]
    fn a_secret_that_is_needed_and_not_there_is_named() {
        let env = json!([{ "name": "T", "valueFrom": { "secretKeyRef": { "name": "absent", "key": "k" } } }]);
        assert_eq!(format!("{:#}", of(env).unwrap_err()), r#"T: no key "k" in the Secret "absent""#);
    }
}
