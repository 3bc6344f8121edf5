//! A Pod: what it may, what it may use, how it is judged and how long it may take to go.

use serde_json::{Value, json};

use super::{Component, UID, Workload, expect};

/// Seconds from SIGTERM to SIGKILL that a checkpoint needs, generously.
const GRACE_S: [(Component, i64); 2] = [(Component::Coordinator, 180), (Component::Worker, 120)];

pub(super) fn check(workload: &Workload, findings: &mut Vec<String>) {
    let pod = workload.pod();
    let identity = &pod["securityContext"];
    expect(pod["restartPolicy"] == "Never", findings, "restartPolicy is not Never");
    expect(pod["enableServiceLinks"] == false, findings, "enableServiceLinks is not false");
    expect(pod["automountServiceAccountToken"] == false, findings, "automountServiceAccountToken is not false");
    expect(identity["runAsNonRoot"] == true, findings, "runAsNonRoot is not true");
    for key in ["runAsUser", "runAsGroup", "fsGroup"] {
        expect(identity[key] == UID, findings, format!("{key} is not {UID}"));
    }
    expect(identity["seccompProfile"]["type"] == "RuntimeDefault", findings, "seccompProfile is not RuntimeDefault");
    for key in ["hostNetwork", "hostPID", "hostIPC"] {
        expect(pod[key].is_null(), findings, format!("{key} is set"));
    }
    for volume in list(&pod["volumes"]) {
        let name = &volume["name"];
        expect(volume["hostPath"].is_null(), findings, format!("volume {name} is a hostPath"));
        let is_bounded = volume["emptyDir"].is_null() || volume["emptyDir"]["sizeLimit"].is_string();
        expect(is_bounded, findings, format!("volume {name} has no sizeLimit"));
    }
    for container in list(&pod["initContainers"]).iter().chain(list(&pod["containers"])) {
        of_container(container, findings);
    }
    for (component, least) in GRACE_S.iter().filter(|(component, _)| *component == workload.component) {
        let grace = pod["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
        let finding = format!("{grace} s of grace are too few for a {component:?}'s checkpoint: {least}");
        expect(grace >= *least, findings, finding);
    }
    match workload.component {
        Component::Coordinator => probes(workload, findings),
        Component::Worker => {
            for key in ["startupProbe", "readinessProbe", "livenessProbe"] {
                let finding = format!("a worker has a {key}: the coordinator judges it by its work");
                expect(workload.container()[key].is_null(), findings, finding);
            }
            shared_memory(workload, findings);
        }
    }
    token(workload, findings);
}

fn of_container(container: &Value, findings: &mut Vec<String>) {
    let name = container["name"].as_str().unwrap_or("?");
    let rights = &container["securityContext"];
    for (key, wanted) in [("allowPrivilegeEscalation", false), ("readOnlyRootFilesystem", true)] {
        expect(rights[key] == wanted, findings, format!("{name}: {key} is not {wanted}"));
    }
    let is_bare = rights["capabilities"] == json!({ "drop": ["ALL"] });
    expect(is_bare, findings, format!("{name}: capabilities are not `drop: [ALL]` and nothing else"));
    expect(rights["privileged"] != true, findings, format!("{name}: is privileged"));
    for kind in ["requests", "limits"] {
        for resource in ["cpu", "memory", "ephemeral-storage"] {
            let is_set = !container["resources"][kind][resource].is_null();
            expect(is_set, findings, format!("{name}: resources.{kind} lacks {resource}"));
        }
    }
    let image = container["image"].as_str().unwrap_or_default();
    let (_, tag) = image.rsplit_once(':').unwrap_or((image, ""));
    expect(!["", "latest"].contains(&tag), findings, format!("{name}: the image {image} has no fixed tag"));
}

/// gRPC tells that workers are served; behind TLS only HTTP can be asked.
fn probes(workload: &Workload, findings: &mut Vec<String>) {
    let container = workload.container();
    let startup = &container["startupProbe"];
    let is_ready = |probe: &Value| probe["httpGet"] == json!({ "path": "/readyz", "port": "http" });
    if workload.variable("LOCKSTEP_TLS_CERT").is_some() {
        let finding = "behind TLS the startupProbe is not /readyz on http";
        expect(is_ready(startup) && startup["grpc"].is_null(), findings, finding);
    } else {
        expect(startup["grpc"]["port"] == 7070, findings, "the startupProbe is not gRPC on 7070");
    }
    expect(is_ready(&container["readinessProbe"]), findings, "the readinessProbe is not /readyz on http");
    let is_alive = container["livenessProbe"]["httpGet"] == json!({ "path": "/healthz", "port": "http" });
    expect(is_alive, findings, "the livenessProbe is not /healthz on http");
    let seconds =
        |probe: &Value| probe["periodSeconds"].as_i64().unwrap_or(10) * probe["failureThreshold"].as_i64().unwrap_or(3);
    expect(seconds(startup) >= 300, findings, "the startupProbe gives up within five minutes");
    expect(seconds(&container["livenessProbe"]) >= 60, findings, "the livenessProbe gives up within a minute");
}

fn shared_memory(workload: &Workload, findings: &mut Vec<String>) {
    let mounts = list(&workload.container()["volumeMounts"]);
    let name = mounts.iter().find(|mount| mount["mountPath"] == "/dev/shm").map(|mount| &mount["name"]);
    let volume = list(&workload.pod()["volumes"]).iter().find(|volume| Some(&volume["name"]) == name);
    let is_memory = volume.is_some_and(|volume| volume["emptyDir"]["medium"] == "Memory");
    expect(is_memory, findings, "no volume of memory at /dev/shm");
}

/// By a named Secret, which the program itself misses in words that help.
fn token(workload: &Workload, findings: &mut Vec<String>) {
    let wanted = json!({ "secretKeyRef": { "name": "lockstep-token", "key": "token", "optional": true } });
    let is_so = workload.variable("LOCKSTEP_TOKEN").is_some_and(|variable| variable["valueFrom"] == wanted);
    expect(is_so, findings, "LOCKSTEP_TOKEN is not the key token of the Secret lockstep-token, optional");
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
