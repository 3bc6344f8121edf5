//! Kubernetes' own kinds against the schemas of its versions: `kubernetes-validate`, strict.

use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::tools::Tools;

/// Minor versions of Kubernetes that manifests must be valid for.
pub const VERSIONS: [&str; 3] = ["1.33", "1.34", "1.35"];

/// What does not fit a version, as the validator says it; empty when all is well.
pub fn findings(tools: &Tools, objects: &[Value], version: &str) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("objects.yaml");
    // JSON is YAML, and the validator takes several documents.
    let documents: Vec<String> = objects.iter().map(Value::to_string).collect();
    std::fs::write(&file, documents.join("\n---\n"))?;
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", &tools.validate).args(["-m", "kubernetes_validate", "--strict", "-k", version]);
    let output = command.arg("--quiet").arg(&file).output().context("cannot start python3")?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    Ok(match (output.status.success(), said.is_empty()) {
        (true, _) if !said.contains("Couldn't find schema") => String::new(),
        (false, true) => format!("kubernetes-validate: {}", output.status),
        _ => said,
    })
}
