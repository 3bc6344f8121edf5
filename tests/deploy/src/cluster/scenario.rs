//! What is promised of the manifests in a cluster, each with the way to see it.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::show::Show;
use crate::policy::workloads;
use crate::render::{self, kubernetes};

type Scenario = fn(&mut Show) -> Result<String>;

/// In this order: later ones go on with the namespace of earlier ones, and Kubernetes waits longer for a new Pod with
/// every one of a Job that failed, counted or not: 10 s, 20 s, 40 s …
pub(super) const ALL: [(&str, Scenario); 12] = [
    ("the restricted level admits every overlay and component, and refuses a broken copy", restricted),
    ("kubectl apply -k overlays/cpu: two workers train", apply),
    ("a second kubectl apply changes nothing", apply_again),
    ("a worker's Pod deleted: leaves with 75, which is not counted; the Job replaces it and the run goes on", delete),
    ("a worker's process killed: counted as a failure, and replaced", kill),
    ("parallelism 2 → 3 while the run lasts", grow),
    ("the coordinator's Pod deleted: another goes on with the run", coordinator),
    ("parallelism 3 → 1 while the run lasts", shrink),
    ("the run completes: both Jobs complete, the audit passes", complete),
    ("kubectl apply after the end starts nothing", apply_last),
    ("exit 64 fails the Job at once", wrong_recipe),
    ("no Secret: the Job fails at once, and says which command makes one", no_token),
];

const NS: &str = "train";
const WORKERS: &str = "/apis/batch/v1/namespaces/train/jobs/lockstep-worker";
const COORDINATOR: &str = "/apis/batch/v1/namespaces/train/jobs/lockstep-coordinator";

fn restricted(show: &mut Show) -> Result<String> {
    show.namespace("admission", true)?;
    let api = show.api.clone();
    let crds = show.tools.crds.display().to_string();
    // By the server: the definitions are longer than what kubectl would note in an annotation.
    api.must(&["apply", "--server-side", "-f", &crds], None)?;
    api.must(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"], None)?;
    let (mut num_objects, mut num_pods) = (0, 0);
    let dry = ["-n", "admission", "apply", "--dry-run=server", "-f", "-"];
    for (name, objects) in everything(show)? {
        show.beat()?;
        let said = api.must(&dry, Some(&text_of(&objects))).with_context(|| name.clone())?;
        ensure!(!said.contains("Warning"), "{name}: {said}");
        num_objects += said.lines().count();
        for workload in workloads(&objects, &mut Vec::new()) {
            // `enforce` judges Pods alone, so each is shown as the Pod that its controller would make.
            let pod =
                json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "one" }, "spec": workload.pod() });
            api.must(&dry, Some(&pod.to_string())).with_context(|| format!("{name}: {}", workload.place))?;
            num_pods += 1;
        }
    }
    let objects = render::overlay(&show.tools, "cpu")?;
    for workload in workloads(&objects, &mut Vec::new()) {
        let mut pod =
            json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "one" }, "spec": workload.pod() });
        pod["spec"]["containers"][0]["securityContext"]["capabilities"] = Value::Null;
        let (is_admitted, said) = api.kubectl(&dry, Some(&pod.to_string()))?;
        ensure!(!is_admitted && said.contains("violates PodSecurity"), "a broken copy was admitted: {said}");
    }
    Ok(format!("{num_objects} objects and {num_pods} Pods; broken copies refused"))
}

/// All overlays, and the base with each component.
fn everything(show: &Show) -> Result<Vec<(String, Vec<Value>)>> {
    let mut all = Vec::new();
    for name in render::overlays()? {
        let objects = render::overlay(&show.tools, &name)?;
        all.push((format!("overlay {name}"), objects));
    }
    for name in render::components()? {
        let objects = render::with_components(&show.tools, &[&name])?;
        all.push((format!("component {name}"), objects));
    }
    Ok(all)
}

fn text_of(objects: &[Value]) -> String {
    let text: Vec<String> = objects.iter().map(Value::to_string).collect();
    text.join("\n---\n")
}

fn overlay_cpu() -> String {
    kubernetes().join("overlays/cpu").display().to_string()
}

fn apply(show: &mut Show) -> Result<String> {
    show.namespace(NS, true)?;
    let said = show.api.must(&["-n", NS, "apply", "-k", &overlay_cpu()], None)?;
    ensure!(!said.contains("Warning"), "{said}");
    let step = train(show, 2, 10)?;
    let pods = show.api.must(&["-n", NS, "get", "pods", "-o", "wide"], None)?;
    eprintln!("{pods}");
    Ok(format!("{} objects; step {step}", said.lines().count()))
}

/// Waits until some steps more were committed, by so many workers; gives the last one's number.
fn train(show: &mut Show, world: u64, more: usize) -> Result<u64> {
    let run = show.run_dir(NS);
    let from = steps(&run).len();
    show.wait(&format!("{more} steps of {world} workers"), 400, |_| {
        let new = steps(&run);
        let num = new.iter().skip(from).filter(|(_, size)| *size == world).count();
        Ok((num >= more).then(|| new.last().map_or(0, |(step, _)| *step)))
    })
}

fn steps(run: &Path) -> Vec<(u64, u64)> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter_map(|line| Some((line["step"].as_u64()?, line["world_size"].as_u64()?))).collect()
}

fn apply_again(show: &mut Show) -> Result<String> {
    let before = pod_names(show)?;
    let said = show.api.must(&["-n", NS, "apply", "-k", &overlay_cpu()], None)?;
    ensure!(said.lines().all(|line| line.ends_with("unchanged")), "{said}");
    let step = train(show, 2, 5)?;
    ensure!(pod_names(show)? == before, "other Pods run now");
    Ok(format!("{} objects unchanged, the same Pods; step {step}", said.lines().count()))
}

fn pod_names(show: &Show) -> Result<Vec<String>> {
    let mut names = Show::running(&show.api, NS, "worker")?;
    names.extend(Show::running(&show.api, NS, "coordinator")?);
    names.sort();
    Ok(names)
}

fn failed(show: &Show, job: &str) -> Result<i64> {
    Ok(show.api.get(job)?.context("no Job")?["status"]["failed"].as_i64().unwrap_or(0))
}

fn delete(show: &mut Show) -> Result<String> {
    let before = Show::running(&show.api, NS, "worker")?;
    let victim = before.first().context("no worker runs")?.clone();
    show.api.must(&["-n", NS, "delete", "pod", &victim, "--wait=false"], None)?;
    let other = replaced(show, "worker", &before)?;
    let step = train(show, 2, 5)?;
    let failed = failed(show, WORKERS)?;
    let words = show.log(NS, &victim);
    let words = words.lines().last().unwrap_or_default().to_owned();
    Ok(format!("{victim} → {other}; failures counted: {failed}; its last words: {words:?}; step {step}"))
}

/// Waits for a Pod that was not there before; gives its name.
fn replaced(show: &mut Show, component: &str, before: &[String]) -> Result<String> {
    show.wait("another Pod", 300, |api| {
        Ok(Show::running(api, NS, component)?.into_iter().find(|name| !before.contains(name)))
    })
}

fn scale(show: &mut Show, workers: u64) -> Result<String> {
    let patch = json!({ "spec": { "parallelism": workers } }).to_string();
    show.api.must(&["-n", NS, "patch", "job", "lockstep-worker", "-p", &patch], None)?;
    let step = train(show, workers, 5)?;
    let pods = Show::running(&show.api, NS, "worker")?.len();
    ensure!(pods as u64 == workers, "{pods} Pods run");
    Ok(format!("{pods} Pods, world size {workers}; failures counted: {}; step {step}", failed(show, WORKERS)?))
}

fn grow(show: &mut Show) -> Result<String> {
    scale(show, 3)
}

fn shrink(show: &mut Show) -> Result<String> {
    scale(show, 1)
}

fn coordinator(show: &mut Show) -> Result<String> {
    let before = Show::running(&show.api, NS, "coordinator")?;
    let workers = Show::running(&show.api, NS, "worker")?;
    let victim = before.first().context("no coordinator runs")?.clone();
    let start = Instant::now();
    show.api.must(&["-n", NS, "delete", "pod", &victim, "--wait=false"], None)?;
    let other = replaced(show, "coordinator", &before)?;
    let step = train(show, 3, 5)?;
    let seconds = start.elapsed().as_secs();
    let still = Show::running(&show.api, NS, "worker")?;
    ensure!(still == workers, "workers were {workers:?}, are {still:?}: a coordinator that hands over ends none");
    let failures = [failed(show, COORDINATOR)?, failed(show, WORKERS)?];
    Ok(format!(
        "{victim} → {other}, the same {} workers; training again after {seconds} s; failures counted: coordinator {}, \
         workers {}; step {step}",
        workers.len(),
        failures[0],
        failures[1]
    ))
}

fn kill(show: &mut Show) -> Result<String> {
    let before = Show::running(&show.api, NS, "worker")?;
    let counted = failed(show, WORKERS)?;
    let victim = before.first().context("no worker runs")?.clone();
    show.kill(NS, &victim)?;
    let other = replaced(show, "worker", &before)?;
    let step = train(show, 2, 5)?;
    let counted = failed(show, WORKERS)? - counted;
    ensure!(counted == 1, "{counted} failures were counted");
    Ok(format!("{victim} (137) → {other}; failures counted: {counted}; step {step}"))
}

fn complete(show: &mut Show) -> Result<String> {
    let coordinator = show.job_ends(NS, "lockstep-coordinator", 900)?;
    let workers = show.job_ends(NS, "lockstep-worker", 120)?;
    ensure!(coordinator.0 == "Complete" && workers.0 == "Complete", "{coordinator:?}, {workers:?}");
    let output = Command::new(&show.lockstep).arg("audit").arg(show.run_dir(NS)).output()?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    ensure!(output.status.success(), "audit: {said}");
    let said = said.rsplit_once("run: ").map_or(said.clone(), |(_, rest)| rest.to_owned());
    Ok(format!("both Complete; audit: {said}"))
}

fn apply_last(show: &mut Show) -> Result<String> {
    let said = show.api.must(&["-n", NS, "apply", "-k", &overlay_cpu()], None)?;
    let end = show.job_ends(NS, "lockstep-coordinator", 5)?;
    let pods = pod_names(show)?;
    ensure!(end.0 == "Complete" && pods.is_empty(), "{end:?}, {pods:?}");
    ensure!(said.lines().all(|line| line.ends_with("unchanged") || line.ends_with("configured")), "{said}");
    Ok(format!("{} objects, no Pod runs", said.lines().count()))
}

fn wrong_recipe(show: &mut Show) -> Result<String> {
    show.namespace("wrong", true)?;
    show.apply_changed("wrong", |object| {
        if object["metadata"]["name"] == "lockstep-coordinator"
            && let Some(args) = object["spec"]["template"]["spec"]["containers"][0]["args"].as_array_mut()
        {
            args.push("--set=train.batch=0".into());
        }
    })?;
    fails_at_once(show, "wrong", &[64], "batch")
}

fn no_token(show: &mut Show) -> Result<String> {
    show.namespace("secretless", false)?;
    show.apply_changed("secretless", |_| ())?;
    fails_at_once(show, "secretless", &[64, 77], "kubectl create secret")
}

fn fails_at_once(show: &mut Show, namespace: &str, allowed: &[i64], words: &str) -> Result<String> {
    let (kind, reason) = show.job_ends(namespace, "lockstep-coordinator", 60)?;
    ensure!((&*kind, &*reason) == ("Failed", "PodFailurePolicy"), "{kind}: {reason}");
    let selector = "labelSelector=app.kubernetes.io%2Fcomponent%3Dcoordinator";
    let pods = show.api.list(&format!("/api/v1/namespaces/{namespace}/pods?{selector}"))?;
    let [pod] = pods.as_slice() else { bail!("{} Pods were started in place of one", pods.len()) };
    let ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"].as_i64();
    let code = ended.filter(|code| allowed.contains(code)).with_context(|| format!("exit code {ended:?}"))?;
    let said = show.log(namespace, pod["metadata"]["name"].as_str().unwrap_or_default());
    let line = said.lines().find(|line| line.contains(words)).with_context(|| format!("it said: {said}"))?;
    Ok(format!("one Pod, exit {code}, Failed by PodFailurePolicy: {line}"))
}
