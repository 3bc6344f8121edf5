//! Every overlay builds and is valid, strictly, for three versions of Kubernetes and for the fields of its CRDs.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

use lockstep_deploy::crd::Definitions;
use lockstep_deploy::render::{components, overlay, overlays, title, with_components};
use lockstep_deploy::schema;
use lockstep_deploy::tools::Tools;
use serde_json::{Value, json};

/// Components that stand for others' Jobs: tried alone; the rest are tried together, too.
const WHOLE: [&str; 2] = ["jobset", "trainjob"];

/// What is rendered, with a name.
fn all(tools: &Tools) -> Vec<(String, Vec<Value>)> {
    let mut all = Vec::new();
    for name in overlays().unwrap() {
        all.push((format!("overlay {name}"), overlay(tools, &name).unwrap()));
    }
    let names = components().unwrap();
    for name in &names {
        all.push((format!("component {name}"), with_components(tools, &[name]).unwrap()));
    }
    let other = ["data-hostpath", "tls", "podmonitor", "rdma", "networkpolicy"];
    for last in WHOLE {
        let list = [&other[..], &[last, "kueue"]].concat();
        all.push((format!("components {}", list.join(" ")), with_components(tools, &list).unwrap()));
    }
    all
}

#[test]
fn the_overlays_that_are_promised_are_there() {
    let wanted = ["cifar-1gpu", "cpu", "imagenet-8x8", "jobset", "kubeflow-trainjob"];
    assert_eq!(overlays().unwrap(), wanted);
    let wanted = [
        "data-bucket",
        "data-hostpath",
        "data-pvc",
        "jobset",
        "kueue",
        "networkpolicy",
        "podmonitor",
        "rdma",
        "tls",
        "trainjob",
    ];
    assert_eq!(components().unwrap(), wanted);
}

#[test]
fn every_object_is_valid_for_three_versions_of_kubernetes_and_for_its_definition() {
    let Some(tools) = Tools::find() else { return };
    let definitions = Definitions::read(&tools.crds).unwrap();
    let mut own = Vec::new();
    for (name, objects) in all(&tools) {
        assert!(objects.len() >= 4, "{name}: {}", objects.len());
        for object in objects {
            if definitions.knows(&object) {
                assert_eq!(definitions.findings(&object).unwrap(), Vec::<String>::new(), "{name}");
            } else if !own.contains(&object) {
                own.push(object);
            }
        }
    }
    for version in schema::VERSIONS {
        let findings = schema::findings(&tools, &own, version).unwrap();
        assert_eq!(findings, "", "for {version}");
    }
}

#[test]
fn no_custom_kind_is_left_unchecked_and_all_are_there() {
    let Some(tools) = Tools::find() else { return };
    let definitions = Definitions::read(&tools.crds).unwrap();
    let mut kinds: Vec<String> = Vec::new();
    for (_, objects) in all(&tools) {
        let custom = objects.iter().filter(|object| definitions.knows(object));
        kinds.extend(custom.map(|object| object["kind"].as_str().unwrap().to_owned()));
    }
    kinds.sort();
    kinds.dedup();
    let wanted = ["Certificate", "Issuer", "JobSet", "LocalQueue", "PodMonitor", "TrainJob", "TrainingRuntime"];
    assert_eq!(kinds, wanted);
}

#[test]
fn a_field_that_nobody_knows_is_found_in_own_and_in_custom_kinds() {
    let Some(tools) = Tools::find() else { return };
    let mut objects = overlay(&tools, "jobset").unwrap();
    let definitions = Definitions::read(&tools.crds).unwrap();
    let set = objects.iter_mut().find(|object| object["kind"] == "JobSet").unwrap();
    set["spec"]["replicatedJobs"][1]["template"]["spec"]["template"]["spec"]["enableServicelinks"] = json!(false);
    let findings = definitions.findings(set).unwrap();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(findings[0].ends_with(".enableServicelinks: unknown field"), "{findings:?}");

    let mut objects = overlay(&tools, "cpu").unwrap();
    objects.retain(|object| title(object) == "Job/lockstep-worker");
    objects[0]["spec"]["paralellism"] = json!(3);
    for version in schema::VERSIONS {
        let said = schema::findings(&tools, &objects, version).unwrap();
        assert!(said.contains("paralellism"), "{version}: {said}");
    }
}

#[test]
fn a_component_reaches_the_pods_of_a_jobset_and_of_a_trainjob() {
    let Some(tools) = Tools::find() else { return };
    for (last, kind) in [("jobset", "JobSet"), ("trainjob", "TrainingRuntime")] {
        let objects = with_components(&tools, &["tls", "rdma", last]).unwrap();
        assert!(objects.iter().all(|object| object["kind"] != "Job"), "{last}");
        let text = objects.iter().find(|object| object["kind"] == kind).unwrap().to_string();
        for wanted in ["lockstep-worker-tls", "lockstep-coordinator-tls", "rdma/hca", "https://lockstep:7070"] {
            assert!(text.contains(wanted), "{last}: {wanted}");
        }
    }
}
