//! `cargo xtask mutants`: whether the simulation, and the tests of a device's course, find bugs that they must find. Each is
//! put into a copy of the checkout, and the tests are run there: they have to fail, the simulation with a seed.
//!
//! `worker/tests/*/mutants/*.toml` say what to change: files, a text that stands in each exactly once, and what to put in
//! its place.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::system::{System, output};

/// Tests of the worker that are tried: each has a folder of mutants, and says this when it fails.
const SUITES: [(&str, &str); 2] = [("simulation", SEED), ("device", "test result: FAILED")];
/// What a failing simulation prints before its seed.
const SEED: &str = "reproduce: LOCKSTEP_SEED=";

/// A bug.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    /// In words.
    what: String,
    edit: Vec<Edit>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Edit {
    file: PathBuf,
    find: String,
    replace: String,
}

/// Tries every mutant whose name, such as `device/junk-counts`, contains `filter`.
///
/// # Errors
/// One of them survives, cannot be applied, or does not compile.
pub fn run(system: &System, filter: &str) -> Result<()> {
    let copy = system.root.join("target/mutants/checkout");
    let (mut survivors, mut count) = (Vec::new(), 0);
    for (suite, sign) in SUITES {
        for (name, mutant) in read(&system.root, suite, filter)? {
            count += 1;
            copy_checkout(system, &copy)?;
            apply(&copy, &mutant).with_context(|| format!("mutant {name}"))?;
            eprintln!("{name}: {}", mutant.what);
            let built = test(system, (&copy, suite), &["--no-run"])?;
            built.map_err(|said| anyhow::anyhow!("{name} does not compile:\n{said}"))?;
            match test(system, (&copy, suite), &[])? {
                Err(said) if said.contains(sign) => verdict(&said).iter().for_each(|line| println!("{name}: {line}")),
                Err(said) => bail!("{name}: the tests of the {suite} failed without saying {sign:?}:\n{said}"),
                Ok(()) => survivors.push(name),
            }
        }
    }
    if count == 0 {
        bail!("no mutant has {filter:?} in its name");
    }
    if !survivors.is_empty() {
        bail!("not found: {}", survivors.join(", "));
    }
    Ok(())
}

fn read(root: &Path, suite: &str, filter: &str) -> Result<Vec<(String, Mutant)>> {
    let (folder, mut mutants) = (root.join("worker/tests").join(suite).join("mutants"), Vec::new());
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        let name = format!("{suite}/{}", path.file_stem().unwrap_or_default().to_string_lossy());
        if name.contains(filter) {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            mutants.push((name, toml::from_str(&text).with_context(|| path.display().to_string())?));
        }
    }
    mutants.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(mutants)
}

/// Brings the copy in line with the checkout. Files that are equal keep their times, so that little is built again; those
/// that are gone from the checkout go.
fn copy_checkout(system: &System, copy: &Path) -> Result<()> {
    let listed = output(Command::new("git").current_dir(&system.root).args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    bring_in_line(&system.root, copy, &listed.lines().map(Path::new).collect())
}

fn bring_in_line(root: &Path, copy: &Path, files: &BTreeSet<&Path>) -> Result<()> {
    fs::create_dir_all(copy)?;
    remove_others(copy, copy, files)?;
    for file in files {
        let (from, to) = (root.join(file), copy.join(file));
        let Ok(bytes) = fs::read(&from) else { continue };
        if fs::read(&to).is_ok_and(|there| there == bytes) {
            continue;
        }
        fs::create_dir_all(to.parent().unwrap_or(copy))?;
        fs::write(&to, bytes).with_context(|| format!("cannot write {}", to.display()))?;
    }
    Ok(())
}

/// Removes what is below `folder` of `copy` and not among `files`.
fn remove_others(copy: &Path, folder: &Path, files: &BTreeSet<&Path>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(copy, &path, files)?;
        } else if path.strip_prefix(copy).is_ok_and(|file| !files.contains(file)) {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

fn apply(root: &Path, mutant: &Mutant) -> Result<()> {
    for Edit { file, find, replace } in &mutant.edit {
        let path = root.join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let num_found = text.matches(find.as_str()).count();
        if num_found != 1 {
            bail!("{}: the text to change is there {num_found} times, not once:\n{find}", file.display());
        }
        fs::write(&path, text.replacen(find.as_str(), replace, 1))?;
    }
    Ok(())
}

/// Runs a suite in the copy; `Err` holds what it said. Not in the checkout's own target folder: the artifacts of
/// both would have the same names.
fn test(system: &System, (copy, suite): (&Path, &str), args: &[&str]) -> Result<Result<(), String>> {
    let mut command = system.cargo(&["test", "-q", "-p", "lockstep-worker", "--test", suite]);
    command.args(args).current_dir(copy).env("CARGO_TARGET_DIR", system.root.join("target/mutants/target"));
    if std::env::var_os("LIBTORCH").is_none() {
        command.env("LIBTORCH", system.root.join(".libtorch"));
    }
    let run = command.env("RUST_BACKTRACE", "0").output().context("cannot start cargo")?;
    let said = [run.stdout, run.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    Ok(if run.status.success() { Ok(()) } else { Err(said) })
}

/// What broke, and with which seed.
fn verdict(said: &str) -> Vec<String> {
    let lines: Vec<&str> = said.lines().collect();
    let panics = lines.windows(2).filter(|pair| pair[0].contains("panicked at")).map(|pair| pair[1]);
    let seeds = lines.iter().filter(|line| line.starts_with(SEED)).copied();
    panics.chain(seeds).map(|line| line.chars().take(300).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_the_files_of_the_checkout_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let (root, copy) = (dir.path().join("root"), dir.path().join("copy"));
        let write = |path: PathBuf| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        };
        write(root.join("src/export.rs"));
        bring_in_line(&root, &copy, &BTreeSet::from([Path::new("src/export.rs")])).unwrap();
        assert!(copy.join("src/export.rs").is_file());
        fs::remove_file(root.join("src/export.rs")).unwrap();
        write(root.join("src/export/mod.rs"));
        bring_in_line(&root, &copy, &BTreeSet::from([Path::new("src/export/mod.rs")])).unwrap();
        assert!(copy.join("src/export/mod.rs").is_file());
        assert!(!copy.join("src/export.rs").exists(), "a module in two files does not compile");
    }

    #[test]
    fn every_mutant_can_be_applied_to_this_checkout() {
        let system = System::new(false);
        let of = |suite: &str| read(&system.root, suite, "").unwrap();
        let mutants: Vec<_> = SUITES.iter().flat_map(|(suite, _)| of(suite)).collect();
        assert!(mutants.len() >= 16, "{} mutants", mutants.len());
        for (name, Mutant { edit, .. }) in mutants {
            for Edit { file, find, replace } in edit {
                let text = fs::read_to_string(system.root.join(&file)).unwrap();
                assert_eq!(text.matches(&find).count(), 1, "{name}: {} has it once:\n{find}", file.display());
                assert_ne!(find, replace, "{name}");
            }
        }
    }
}
