//! What a cluster is told: the objects of an overlay, as `kubectl kustomize` writes them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::tools::{Tools, checkout};

/// The folder with manifests.
pub fn kubernetes() -> PathBuf {
    checkout().join("deploy/kubernetes")
}

/// All overlays, in the order of their names.
pub fn overlays() -> Result<Vec<String>> {
    names(&kubernetes().join("overlays"))
}

/// All components, in the order of their names.
pub fn components() -> Result<Vec<String>> {
    names(&kubernetes().join("components"))
}

/// An overlay, rendered.
pub fn overlay(tools: &Tools, name: &str) -> Result<Vec<Value>> {
    objects(&yaml(tools, &kubernetes().join("overlays").join(name))?)
}

/// The base with components, one after another.
pub fn with_components(tools: &Tools, names: &[&str]) -> Result<Vec<Value>> {
    let folder = tempfile::tempdir()?;
    let root = relative(folder.path(), &kubernetes())?;
    let list: Vec<String> = names.iter().map(|name| format!("{root}/components/{name}")).collect();
    let text = format!("resources: [{root}/base]\ncomponents: [{}]\n", list.join(", "));
    std::fs::write(folder.path().join("kustomization.yaml"), text)?;
    objects(&yaml(tools, folder.path())?)
}

/// A folder with a kustomization, as YAML.
pub fn yaml(tools: &Tools, folder: &Path) -> Result<String> {
    let mut command = Command::new(&tools.kubectl);
    let output = command.arg("kustomize").arg(folder).output().context("cannot start kubectl")?;
    if !output.status.success() {
        bail!("kubectl kustomize {}: {}", folder.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// The documents of a text of YAML.
pub fn objects(yaml: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).context("not YAML")?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// `Kind/name`
pub fn title(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    format!("{}/{}", text(&object["kind"]), text(&object["metadata"]["name"]))
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.path().join("kustomization.yaml").is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Kustomize takes no absolute paths.
fn relative(from: &Path, to: &Path) -> Result<String> {
    let (from, to) = (from.canonicalize()?, to.canonicalize()?);
    let up = "../".repeat(from.components().count() - 1);
    Ok(format!("{up}{}", to.strip_prefix("/")?.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_told_apart_and_empty_ones_are_none() {
        let found = objects("kind: A\nmetadata: {name: x}\n---\n---\nkind: B\nmode: 0440\n").unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(title(&found[0]), "A/x");
        assert_eq!(title(&found[1]), "B/?");
    }
}
