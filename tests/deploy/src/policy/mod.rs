//! What every rendered set of objects must keep, whoever writes overlays later. A finding is a line; none is good.
//!
//! ```text
//! objects ──► workloads   Jobs, wherever they stand: alone, in a JobSet, in a TrainingRuntime
//!                 ├──► pod    security, limits, probes, grace, volumes
//!                 └──► job    exit codes, completions, names
//! ```

mod job;
mod names;
mod pod;

use std::collections::BTreeMap;

use serde_json::Value;

/// User and group of all containers.
pub const UID: i64 = 65532;
/// Name of the container, but in a TrainJob.
const CONTAINER: &str = "lockstep";
/// The container of that name is the one that a TrainJob changes.
const TRAINER_CONTAINER: &str = "node";

/// What a Job is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// Keeps the run.
    Coordinator,
    /// Computes.
    Worker,
}

/// A Job's spec, wherever it stands.
#[derive(Clone, Debug)]
pub struct Workload<'a> {
    /// What it is for.
    pub component: Component,
    /// Where it stands, for findings.
    pub place: String,
    /// The Job's spec.
    pub spec: &'a Value,
}

impl<'a> Workload<'a> {
    /// The Pod's spec.
    pub fn pod(&self) -> &'a Value {
        &self.spec["template"]["spec"]
    }

    /// The container that is ours.
    pub fn container(&self) -> &'a Value {
        let is_ours = |container: &&Value| {
            let name = container["name"].as_str();
            name == Some(CONTAINER) || name == Some(TRAINER_CONTAINER)
        };
        self.pod()["containers"].as_array().into_iter().flatten().find(is_ours).unwrap_or(&Value::Null)
    }

    /// A variable of our container.
    pub fn variable(&self, name: &str) -> Option<&'a Value> {
        self.container()["env"].as_array()?.iter().find(|variable| variable["name"] == name)
    }
}

/// All Jobs among objects. One without the label for its component is a finding.
pub fn workloads<'a>(objects: &'a [Value], findings: &mut Vec<String>) -> Vec<Workload<'a>> {
    let mut found = Vec::new();
    for object in objects {
        let title = crate::render::title(object);
        let parts = match object["kind"].as_str() {
            Some("Job") => vec![(title, &object["spec"])],
            Some("JobSet") => replicated(&title, &object["spec"]),
            Some("TrainingRuntime") => replicated(&title, &object["spec"]["template"]["spec"]),
            _ => continue,
        };
        for (place, spec) in parts {
            let component = match spec["template"]["metadata"]["labels"]["app.kubernetes.io/component"].as_str() {
                Some("coordinator") => Component::Coordinator,
                Some("worker") => Component::Worker,
                other => {
                    findings.push(format!("{place}: Pods' label app.kubernetes.io/component is {other:?}"));
                    continue;
                }
            };
            found.push(Workload { component, place, spec });
        }
    }
    found
}

fn replicated<'a>(title: &str, spec: &'a Value) -> Vec<(String, &'a Value)> {
    let jobs = spec["replicatedJobs"].as_array().into_iter().flatten();
    jobs.map(|job| (format!("{title}/{}", job["name"].as_str().unwrap_or("?")), &job["template"]["spec"])).collect()
}

/// Everything that is not as it must be, given the README's table of exit codes.
pub fn findings(objects: &[Value], codes: &BTreeMap<i64, String>) -> Vec<String> {
    let mut findings = Vec::new();
    let workloads = workloads(objects, &mut findings);
    for wanted in [Component::Coordinator, Component::Worker] {
        let num = workloads.iter().filter(|workload| workload.component == wanted).count();
        if num != 1 {
            findings.push(format!("{num} Jobs for the {wanted:?} in place of one"));
        }
    }
    for workload in &workloads {
        let before = findings.len();
        pod::check(workload, &mut findings);
        job::check(workload, codes, &mut findings);
        for finding in &mut findings[before..] {
            finding.insert_str(0, &format!("{}: ", workload.place));
        }
    }
    names::check(objects, &workloads, &mut findings);
    findings
}

/// Adds a finding unless `is_so`.
fn expect(is_so: bool, findings: &mut Vec<String>, finding: impl Into<String>) {
    if !is_so {
        findings.push(finding.into());
    }
}
