//! Policies hold for every overlay and component, and each is seen to fail on a broken copy.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

use lockstep_deploy::render::{components, overlay, overlays, with_components};
use lockstep_deploy::tools::Tools;
use lockstep_deploy::{codes, policy};
use serde_json::{Value, json};

#[test]
fn every_overlay_and_component_keeps_every_policy() {
    let Some(tools) = Tools::find() else { return };
    let table = codes::table().unwrap();
    for name in overlays().unwrap() {
        let findings = policy::findings(&overlay(&tools, &name).unwrap(), &table);
        assert_eq!(findings, Vec::<String>::new(), "overlay {name}");
    }
    for name in components().unwrap() {
        let findings = policy::findings(&with_components(&tools, &[&name]).unwrap(), &table);
        assert_eq!(findings, Vec::<String>::new(), "component {name}");
    }
}

#[test]
fn exit_codes_are_those_of_the_readme_and_each_has_its_place() {
    let table = codes::table().unwrap();
    assert_eq!(codes::fatal(&table), [64, 65, 66, 76, 77, 78]);
    let mut known = [&[0, codes::RESUMABLE], &codes::RETRY[..], &codes::fatal(&table)].concat();
    known.sort_unstable();
    assert_eq!(known, table.keys().copied().collect::<Vec<_>>());
}

#[test]
fn another_code_in_the_readme_is_noticed() {
    let Some(tools) = Tools::find() else { return };
    let mut table = codes::table().unwrap();
    table.insert(71, "new".into());
    let findings = policy::findings(&overlay(&tools, "cpu").unwrap(), &table);
    assert_eq!(findings.len(), 2, "{findings:?}");
    assert!(findings.iter().all(|finding| finding.contains("rule 2 of podFailurePolicy")), "{findings:?}");
}

/// Where a copy is broken, how, and what must be said.
struct Broken {
    /// Object, then a JSON pointer in it.
    place: (&'static str, &'static str),
    /// What stands there; null: nothing.
    value: Value,
    says: &'static str,
}

const COORDINATOR: &str = "lockstep-coordinator";
const WORKER: &str = "lockstep-worker";

fn broken(name: &'static str, pointer: &'static str, value: Value, says: &'static str) -> Broken {
    Broken { place: (name, pointer), value, says }
}

fn copies() -> Vec<Broken> {
    let mut copies = Vec::new();
    for job in [COORDINATOR, WORKER] {
        copies.extend(security(job));
        copies.extend(policy_of_failures(job));
    }
    copies.extend(probes());
    copies.extend(jobs());
    copies.extend(wiring());
    copies
}

fn security(job: &'static str) -> Vec<Broken> {
    let of = |pointer, value, says| broken(job, pointer, value, says);
    vec![
        of("/spec/template/spec/securityContext/runAsNonRoot", json!(false), "runAsNonRoot is not true"),
        of("/spec/template/spec/securityContext/runAsUser", json!(0), "runAsUser is not 65532"),
        of("/spec/template/spec/securityContext/runAsGroup", json!(0), "runAsGroup is not 65532"),
        of("/spec/template/spec/securityContext/fsGroup", Value::Null, "fsGroup is not 65532"),
        of("/spec/template/spec/securityContext/seccompProfile/type", json!("Unconfined"), "seccompProfile is not"),
        of("/spec/template/spec/hostNetwork", json!(true), "hostNetwork is set"),
        of("/spec/template/spec/enableServiceLinks", Value::Null, "enableServiceLinks is not false"),
        of("/spec/template/spec/automountServiceAccountToken", json!(true), "automountServiceAccountToken is not"),
        of("/spec/template/spec/restartPolicy", json!("OnFailure"), "restartPolicy is not Never"),
        of("/spec/template/spec/terminationGracePeriodSeconds", json!(30), "30 s of grace are too few"),
        of("/spec/template/spec/terminationGracePeriodSeconds", Value::Null, "30 s of grace are too few"),
        of("/spec/template/spec/volumes/0", json!({ "name": "x", "hostPath": { "path": "/" } }), "is a hostPath"),
        of("/spec/template/spec/volumes/1/emptyDir", json!({}), "has no sizeLimit"),
        of(
            "/spec/template/spec/containers/0/securityContext/allowPrivilegeEscalation",
            json!(true),
            "allowPrivilegeEscalation is not false",
        ),
        of(
            "/spec/template/spec/containers/0/securityContext/readOnlyRootFilesystem",
            Value::Null,
            "readOnlyRootFilesystem is not true",
        ),
        of("/spec/template/spec/containers/0/securityContext/privileged", json!(true), "is privileged"),
        of(
            "/spec/template/spec/containers/0/securityContext/capabilities",
            json!({ "drop": ["ALL"], "add": ["IPC_LOCK"] }),
            "capabilities are not",
        ),
        of("/spec/template/spec/containers/0/resources/limits/memory", Value::Null, "resources.limits lacks memory"),
        of("/spec/template/spec/containers/0/resources/requests/cpu", Value::Null, "resources.requests lacks cpu"),
        of("/spec/template/spec/containers/0/image", json!("lockstep:latest"), "has no fixed tag"),
        of("/spec/template/spec/containers/0/image", json!("lockstep:9"), "the image is not"),
    ]
}

fn policy_of_failures(job: &'static str) -> Vec<Broken> {
    let codes = "/spec/podFailurePolicy/rules/2/onExitCodes/values";
    vec![
        broken(job, codes, json!([64, 65, 66, 76, 77]), "rule 2 of podFailurePolicy"),
        broken(job, codes, json!([64, 65, 66, 73, 76, 77, 78]), "rule 2 of podFailurePolicy"),
        broken(job, "/spec/podFailurePolicy/rules/1/action", json!("Count"), "rule 1 of podFailurePolicy"),
        broken(job, "/spec/podFailurePolicy/rules/0", json!({ "action": "Ignore" }), "rule 0 of podFailurePolicy"),
        broken(job, "/spec/podFailurePolicy", Value::Null, "podFailurePolicy has 0 rules"),
        broken(job, "/spec/completionMode", json!("Indexed"), "completionMode is not NonIndexed"),
        broken(job, "/spec/backoffLimit", json!(0), "no backoffLimit"),
    ]
}

fn probes() -> Vec<Broken> {
    let of = |pointer, value, says| broken(COORDINATOR, pointer, value, says);
    vec![
        of("/spec/template/spec/containers/0/startupProbe", Value::Null, "startupProbe is not gRPC"),
        of("/spec/template/spec/containers/0/startupProbe/failureThreshold", json!(3), "gives up within five minutes"),
        of("/spec/template/spec/containers/0/readinessProbe/httpGet/path", json!("/"), "readinessProbe is not /readyz"),
        of("/spec/template/spec/containers/0/livenessProbe", Value::Null, "livenessProbe is not /healthz"),
        of("/spec/template/spec/containers/0/livenessProbe/failureThreshold", json!(1), "gives up within a minute"),
        broken(
            WORKER,
            "/spec/template/spec/containers/0/livenessProbe",
            json!({ "tcpSocket": { "port": 1 } }),
            "a worker has a livenessProbe",
        ),
        broken(WORKER, "/spec/template/spec/volumes/0/emptyDir/medium", json!(""), "no volume of memory at /dev/shm"),
        broken(WORKER, "/spec/template/spec/containers/0/volumeMounts/0", json!({}), "no volume of memory at /dev/shm"),
    ]
}

fn jobs() -> Vec<Broken> {
    vec![
        broken(COORDINATOR, "/spec/parallelism", json!(2), "not one coordinator"),
        broken(COORDINATOR, "/spec/podReplacementPolicy", Value::Null, "podReplacementPolicy is not Failed"),
        broken(WORKER, "/spec/completions", json!(2), "completions is set"),
        broken(WORKER, "/spec/parallelism", Value::Null, "no parallelism"),
        broken(WORKER, "/metadata/name", json!("other"), "is called neither"),
        broken(
            WORKER,
            "/spec/template/metadata/labels/app.kubernetes.io~1component",
            json!("x"),
            "0 Jobs for the Worker in place of one",
        ),
    ]
}

fn wiring() -> Vec<Broken> {
    let worker = |pointer, value, says| broken(WORKER, pointer, value, says);
    let coordinator = |pointer, value, says| broken(COORDINATOR, pointer, value, says);
    vec![
        broken("lockstep", "/spec/ports/0/port", json!(7071), "does not have the ports"),
        broken("lockstep", "/spec/selector/app.kubernetes.io~1name", json!("x"), "does not select its Pods"),
        broken("lockstep", "/metadata/name", json!("x"), "no Service/lockstep"),
        broken("lockstep-workers", "/spec/clusterIP", Value::Null, "is not headless"),
        broken("lockstep-runs", "/metadata/name", json!("x"), "no PersistentVolumeClaim/lockstep-runs"),
        coordinator("/spec/template/metadata/labels/app.kubernetes.io~1version", Value::Null, "Pods lack the label"),
        coordinator("/spec/template/spec/containers/0/command", json!(["sh"]), "the command is not lockstep"),
        coordinator("/spec/template/spec/containers/0/args/1", json!("--json"), "do not begin with"),
        coordinator("/spec/template/spec/containers/0/args/5", json!("-v"), "arguments lack --resume"),
        coordinator("/spec/template/spec/containers/0/volumeMounts/0/mountPath", json!("/x"), "no volume at /runs"),
        coordinator("/spec/template/spec/containers/0/env/0/valueFrom", Value::Null, "LOCKSTEP_TOKEN is not"),
        worker("/spec/template/spec/containers/0/env/0/value", json!("http://x:1"), "LOCKSTEP_COORDINATOR is not"),
        worker("/spec/template/spec/containers/0/env/4/valueFrom", Value::Null, "LOCKSTEP_ID is not metadata.name"),
        worker("/spec/template/spec/containers/0/env/5/valueFrom", Value::Null, "LOCKSTEP_ADVERTISE is not"),
        worker("/spec/template/spec/containers/0/args", json!(["worker", "x"]), "arguments are not `worker`"),
    ]
}

#[test]
fn every_policy_is_seen_to_fail_on_a_broken_copy() {
    let Some(tools) = Tools::find() else { return };
    let table = codes::table().unwrap();
    let whole = overlay(&tools, "cpu").unwrap();
    for copy in copies() {
        let (name, pointer) = copy.place;
        let mut objects = whole.clone();
        let object = objects.iter_mut().find(|object| object["metadata"]["name"] == name).unwrap();
        put(object, pointer, copy.value.clone());
        let findings = policy::findings(&objects, &table);
        let is_said = findings.iter().any(|finding| finding.contains(copy.says));
        assert!(is_said, "{name} {pointer} = {}: {findings:#?} lacks {:?}", copy.value, copy.says);
    }
}

/// Sets or, with null, removes what a pointer names.
fn put(object: &mut Value, pointer: &str, value: Value) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let key = key.replace("~1", "/");
    match object.pointer_mut(parent).unwrap_or_else(|| panic!("no {parent}")) {
        Value::Array(items) => items[key.parse::<usize>().unwrap()] = value,
        Value::Object(fields) if value.is_null() => drop(fields.remove(&key)),
        Value::Object(fields) => drop(fields.insert(key, value)),
        other => panic!("{parent} is {other}"),
    }
}
