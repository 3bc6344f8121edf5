//! `cargo xtask check`: the promises about this repository that the compiler does not keep.
//!
//! - every `**Invariant**` of ARCHITECTURE.md names tests, and each of them exists;
//! - `unsafe` stands only in the crates that are foreign interfaces; every other crate forbids it;
//! - no test is switched off, no file is longer than anyone reads;
//! - command and coordinator never link libtorch.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::system::{System, output};

/// Crates in which `unsafe` is allowed, because they are foreign interfaces.
const FOREIGN: [&str; 5] = ["worker/torch/", "worker/jpeg/", "worker/nccl/", "worker/kernels/", "worker/cuda/"];
/// No file is longer.
const MAX_LINES: usize = 500;

/// A source file: its path from the root, with `/`, and its text.
struct Source {
    path: String,
    text: String,
}

/// Makes all checks and reports every finding.
///
/// # Errors
/// When there is a finding, or a file cannot be read.
pub fn run(system: &System) -> Result<()> {
    let sources = sources(&system.root)?;
    let architecture =
        fs::read_to_string(system.root.join("ARCHITECTURE.md")).context("cannot read ARCHITECTURE.md")?;
    let mut findings = invariants(&architecture, &sources);
    for source in &sources {
        findings.extend(of_file(source));
    }
    findings.extend(dependencies(system)?);
    if findings.is_empty() {
        eprintln!("checks: {} source files, no finding", sources.len());
        return Ok(());
    }
    for finding in &findings {
        eprintln!("{finding}");
    }
    bail!("{} findings", findings.len())
}

fn sources(root: &Path) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
        paths.sort();
        for path in paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let top = folder == root;
            if path.is_dir() && !name.starts_with('.') && !(top && matches!(&*name, "target" | "runs" | "data")) {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
                let path = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
                sources.push(Source { path, text });
            }
        }
    }
    Ok(sources)
}

/// Each invariant is a paragraph or list item; after "test" or "tests" it names functions in backticks.
fn invariants(architecture: &str, sources: &[Source]) -> Vec<String> {
    let mut findings = Vec::new();
    let paragraphs: Vec<&str> = architecture.split("**Invariant**").skip(1).collect();
    if paragraphs.is_empty() {
        findings.push("ARCHITECTURE.md: no line with **Invariant**".into());
    }
    for paragraph in paragraphs {
        let paragraph = paragraph.split("\n\n").next().unwrap_or_default();
        let paragraph = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
        let title: String = paragraph.trim().chars().take(60).collect();
        let Some((_, tests)) = paragraph.split_once("tests `").or_else(|| paragraph.split_once("test `")) else {
            findings.push(format!("ARCHITECTURE.md: invariant without a test: {title}"));
            continue;
        };
        for name in tests.split('`').step_by(2).filter(|name| !name.is_empty()) {
            let wanted = format!("fn {}(", name.rsplit("::").next().unwrap_or(name));
            if !sources.iter().any(|source| source.text.contains(&wanted)) {
                findings.push(format!("ARCHITECTURE.md: no test `{name}`, which proves: {title}"));
            }
        }
    }
    findings
}

fn of_file(source: &Source) -> Vec<String> {
    let Source { path, text } = source;
    let mut findings = Vec::new();
    let num_lines = text.lines().count();
    if num_lines > MAX_LINES {
        findings.push(format!("{path}: {num_lines} lines; at most {MAX_LINES}: which two things are in it?"));
    }
    let foreign = FOREIGN.iter().any(|folder| path.starts_with(folder));
    let root = path.ends_with("src/lib.rs") || path.ends_with("src/main.rs");
    if root && !foreign && !text.contains("#![forbid(unsafe_code)]") {
        findings.push(format!("{path}: lacks #![forbid(unsafe_code)]"));
    }
    for (number, line) in text.lines().enumerate() {
        let number = number + 1;
        let code = line.split("//").next().unwrap_or_default();
        // In two pieces, so that this file passes its own check.
        if code.contains(concat!("#[", "ignore")) {
            findings.push(format!("{path}:{number}: a test is switched off"));
        }
        let word = concat!("un", "safe");
        let block = [" {", " fn", " impl", " extern", "("].iter().any(|next| code.contains(&format!("{word}{next}")));
        if block && !foreign {
            findings.push(format!("{path}:{number}: {word} outside a foreign interface"));
        }
    }
    findings
}

fn dependencies(system: &System) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for package in ["lockstep", "lockstep-coordinator"] {
        let tree = output(&mut system.cargo(&["tree", "-p", package, "-e", "normal,build", "--prefix", "none"]))?;
        for line in tree.lines() {
            let name = line.split(' ').next().unwrap_or_default();
            if name == "tch" || name.contains("torch") || name == "lockstep-worker" {
                findings.push(format!("{package} depends on {name}: `cargo tree -p {package} -i {name}`"));
            }
        }
    }
    findings.dedup();
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.into(), text: text.into() }
    }

    #[test]
    fn an_invariant_names_tests_that_exist() {
        let sources = [source("a/src/x.rs", "#[test]\nfn nothing_is_lost() {}\n")];
        let good = "**Invariant** Nothing is lost: tests `nothing_is_lost`\n";
        assert!(invariants(good, &sources).is_empty());
        let absent = "- **Invariant** a: tests `nothing_is_lost`, `no_such`\n- **Invariant** b\n";
        let findings = invariants(absent, &sources);
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(findings[0].contains("no test `no_such`") && findings[1].contains("without a test"), "{findings:?}");
    }

    #[test]
    fn what_does_not_belong_is_found_at_its_line() {
        let lines = [concat!("un", "safe { x() }"), concat!("#[", "ignore]")].join("\n");
        let findings = of_file(&source("coordinator/src/x.rs", &lines));
        assert_eq!(findings.len(), 2, "{findings:?}");
        for folder in ["worker/torch", "worker/jpeg", "worker/kernels", "worker/cuda"] {
            assert!(of_file(&source(&format!("{folder}/src/ffi.rs"), concat!("un", "safe { x() }"))).is_empty());
        }
        assert_eq!(of_file(&source("worker/data/src/x.rs", concat!("un", "safe { x() }"))).len(), 1);
        assert_eq!(of_file(&source("src/main.rs", "fn main() {}")).len(), 1);
        assert_eq!(of_file(&source("src/x.rs", &"\n".repeat(MAX_LINES + 1))).len(), 1);
    }
}
