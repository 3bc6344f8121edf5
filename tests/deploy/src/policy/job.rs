//! A Job: which ends it takes for what.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Component, Workload, expect};
use crate::codes::{RESUMABLE, RETRY, fatal};

pub(super) fn check(workload: &Workload, codes: &BTreeMap<i64, String>, findings: &mut Vec<String>) {
    let spec = workload.spec;
    expect(spec["completionMode"] == "NonIndexed", findings, "completionMode is not NonIndexed");
    expect(spec["backoffLimit"].as_i64().is_some_and(|limit| limit > 0), findings, "no backoffLimit");
    match workload.component {
        Component::Coordinator => {
            expect(spec["completions"] == 1 && spec["parallelism"] == 1, findings, "not one coordinator");
            let finding = "podReplacementPolicy is not Failed: two coordinators could meet on one run directory";
            expect(spec["podReplacementPolicy"] == "Failed", findings, finding);
        }
        Component::Worker => {
            let finding = "completions is set, so parallelism could not change while the run lasts";
            expect(spec["completions"].is_null(), findings, finding);
            expect(spec["parallelism"].as_i64().is_some_and(|num| num > 0), findings, "no parallelism");
        }
    }
    for code in RETRY.iter().chain([&RESUMABLE]) {
        expect(codes.contains_key(code), findings, format!("{code} is not in the README's table of exit codes"));
    }
    let name = &workload.container()["name"];
    let wanted = [
        json!({ "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }] }),
        on_codes("Ignore", name, &[RESUMABLE]),
        on_codes("FailJob", name, &fatal(codes)),
    ];
    let rules = spec["podFailurePolicy"]["rules"].as_array().map_or(&[][..], Vec::as_slice);
    for (index, wanted) in wanted.iter().enumerate() {
        let is_so = rules.get(index) == Some(wanted);
        expect(is_so, findings, format!("rule {index} of podFailurePolicy is not {wanted}"));
    }
    expect(rules.len() == wanted.len(), findings, format!("podFailurePolicy has {} rules", rules.len()));
}

fn on_codes(action: &str, container: &Value, codes: &[i64]) -> Value {
    json!({ "action": action, "onExitCodes": { "containerName": container, "operator": "In", "values": codes } })
}
