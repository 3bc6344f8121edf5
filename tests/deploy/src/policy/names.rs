//! Names that objects, programs and people know each other by.

use serde_json::{Value, json};

use super::{Component, Workload, expect};
use crate::render::title;

const REGISTRY: &str = "ghcr.io/lockstep-trainer";

pub(super) fn check(objects: &[Value], workloads: &[Workload], findings: &mut Vec<String>) {
    let find = |wanted: &str| objects.iter().find(|object| title(object) == wanted);
    for wanted in ["Service/lockstep", "Service/lockstep-workers", "PersistentVolumeClaim/lockstep-runs"] {
        expect(find(wanted).is_some(), findings, format!("no {wanted}"));
    }
    for object in objects.iter().filter(|object| object["kind"] == "Job") {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let is_known = ["lockstep-coordinator", "lockstep-worker"].contains(&name);
        expect(is_known, findings, format!("Job/{name} is called neither lockstep-coordinator nor lockstep-worker"));
    }
    let service = find("Service/lockstep").unwrap_or(&Value::Null);
    let ports: Vec<_> = service["spec"]["ports"].as_array().into_iter().flatten().collect();
    let are_so = ports
        .iter()
        .map(|port| (&port["name"], &port["port"], &port["targetPort"]))
        .eq([(&json!("grpc"), &json!(7070), &json!("grpc")), (&json!("http"), &json!(8080), &json!("http"))]);
    expect(are_so, findings, "Service/lockstep does not have the ports grpc 7070 and http 8080");
    let headless = find("Service/lockstep-workers").is_some_and(|service| service["spec"]["clusterIP"] == "None");
    expect(headless, findings, "Service/lockstep-workers is not headless");
    for workload in workloads {
        let (service, image) = match workload.component {
            Component::Coordinator => ("Service/lockstep", "lockstep-coordinator"),
            Component::Worker => ("Service/lockstep-workers", "lockstep-worker"),
        };
        let place = &workload.place;
        let image = format!("{REGISTRY}/{image}:{}", env!("CARGO_PKG_VERSION"));
        let finding = format!("{place}: the image is not {image}");
        expect(workload.container()["image"] == *image, findings, finding);
        let labels = &workload.spec["template"]["metadata"]["labels"];
        let selector = find(service).and_then(|service| service["spec"]["selector"].as_object());
        let is_selected = selector.is_some_and(|all| all.iter().all(|(key, value)| labels[key] == *value));
        expect(is_selected, findings, format!("{place}: {service} does not select its Pods"));
        for key in ["name", "component", "part-of", "version"] {
            let key = format!("app.kubernetes.io/{key}");
            expect(labels[&key].is_string(), findings, format!("{place}: Pods lack the label {key}"));
        }
        command(workload, findings);
    }
}

/// What our programs are told, as far as more than one overlay must tell the same.
fn command(workload: &Workload, findings: &mut Vec<String>) {
    let container = workload.container();
    let place = &workload.place;
    let args: Vec<&str> = container["args"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    expect(container["command"] == json!(["lockstep"]), findings, format!("{place}: the command is not lockstep"));
    match workload.component {
        Component::Coordinator => {
            let is_so = args.first() == Some(&"coordinator") && args.get(1).is_some_and(|arg| !arg.starts_with('-'));
            expect(is_so, findings, format!("{place}: arguments do not begin with `coordinator RECIPE`"));
            for wanted in
                ["--listen=0.0.0.0:7070", "--http=0.0.0.0:8080", "--run-dir=/runs/run", "--resume", "--hand-over"]
            {
                expect(args.contains(&wanted), findings, format!("{place}: arguments lack {wanted}"));
            }
            let is_kept = container["volumeMounts"].as_array().into_iter().flatten().any(|m| m["mountPath"] == "/runs");
            expect(is_kept, findings, format!("{place}: no volume at /runs"));
        }
        Component::Worker => {
            expect(args == ["worker"], findings, format!("{place}: arguments are not `worker`"));
            let scheme = if workload.variable("LOCKSTEP_TLS_CERT").is_some() { "https" } else { "http" };
            let url = format!("{scheme}://lockstep:7070");
            let is_so = workload.variable("LOCKSTEP_COORDINATOR").is_some_and(|variable| variable["value"] == *url);
            expect(is_so, findings, format!("{place}: LOCKSTEP_COORDINATOR is not {url}"));
            for (name, path) in [("LOCKSTEP_ID", "metadata.name"), ("LOCKSTEP_ADVERTISE", "status.podIP")] {
                let is_so = workload.variable(name).is_some_and(|v| v["valueFrom"]["fieldRef"]["fieldPath"] == path);
                expect(is_so, findings, format!("{place}: {name} is not {path}"));
            }
        }
    }
}
