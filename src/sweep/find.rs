//! From what stands on the command line to sweep files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lockstep_proto::exit::ExitCode;

use super::builtin::builtin;
use super::file::SweepFile;
use crate::failure::Failure;

/// Reads sweeps, each named by a built-in name, a file, or a folder of files; none: all built-in ones.
///
/// # Errors
/// An unknown name (64), a file that is not there (66) or is not a sweep (64), two tables of one name (64).
pub fn load(named: &[String]) -> Result<Vec<SweepFile>, Failure> {
    if named.is_empty() {
        return builtin().iter().map(|sweep| sweep.parse()).collect();
    }
    let mut files = Vec::new();
    for name in named {
        if let Some(known) = builtin().iter().find(|known| known.name == name) {
            files.push(known.parse()?);
            continue;
        }
        let path = Path::new(name);
        if path.is_dir() {
            let inside = inside(path)?;
            for path in inside {
                files.push(SweepFile::read(&path)?);
            }
        } else if path.is_file() {
            files.push(SweepFile::read(path)?);
        } else {
            return Err(unknown(name));
        }
    }
    let mut seen = BTreeMap::new();
    for file in &files {
        if let Some(other) = seen.insert(&file.name, &file.source) {
            let reason =
                format!("two sweeps are called `{}`: {other} and {}; name one of them", file.name, file.source);
            return Err(Failure::new(ExitCode::Usage, reason));
        }
    }
    Ok(files)
}

/// The `.toml` files of a folder, by name.
fn inside(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = std::fs::read_dir(folder).map_err(|error| Failure::unreadable(folder, error))?;
    let paths = entries.flatten().map(|entry| entry.path());
    let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|ending| ending == "toml")).collect();
    if paths.is_empty() {
        let reason = format!("{}: no *.toml in this folder; name a folder of sweep files", folder.display());
        return Err(Failure::new(ExitCode::NoInput, reason));
    }
    paths.sort();
    Ok(paths)
}

fn unknown(name: &str) -> Failure {
    let is_path = name.ends_with(".toml") || name.contains('/') || name.starts_with('.');
    let stem = Path::new(name).file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let nearest = builtin().iter().map(|known| (strsim::osa_distance(&stem, known.name), known.name)).min();
    let nearest = nearest.filter(|(distance, _)| *distance <= 1 + stem.chars().count() / 3);
    if is_path {
        let hint = nearest.map(|(_, near)| format!("; `{near}` is inside this program")).unwrap_or_default();
        return Failure::new(ExitCode::NoInput, format!("sweep {name} does not exist{hint}"));
    }
    let hint = nearest.map(|(_, near)| format!(" (did you mean `{near}`?)")).unwrap_or_default();
    let reason = format!("no sweep is called `{name}`{hint}; `lockstep sweep --list` shows them all");
    Failure::new(ExitCode::Usage, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_builtin_sweep_parses_and_is_found_by_name() {
        let all = load(&[]).unwrap();
        let names: Vec<_> = all.iter().map(|file| &*file.name).collect();
        assert_eq!(names, builtin().iter().map(|known| known.name).collect::<Vec<_>>());
        assert_eq!(load(&["bn_momentum".into()]).unwrap()[0], all[5]);
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_nearest() {
        let said = |name: &str| {
            let failure = load(&[name.to_owned()]).unwrap_err();
            (failure.code.code(), failure.reason)
        };
        let expected =
            "no sweep is called `arch_shalow` (did you mean `arch_shallow`?); `lockstep sweep --list` shows them all";
        assert_eq!(said("arch_shalow"), (64, expected.into()));
        let expected = "sweep recipes/short.toml does not exist; `short` is inside this program";
        assert_eq!(said("recipes/short.toml"), (66, expected.into()));
        assert_eq!(said("/no/such.toml"), (66, "sweep /no/such.toml does not exist".into()));
    }

    #[test]
    fn a_table_named_twice_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let text = "recipe = \"demo\"\n[[row]]\nlabel = \"a\"\n";
        std::fs::write(folder.path().join("short.toml"), text).unwrap();
        let named = ["short".to_owned(), folder.path().display().to_string()];
        let reason = load(&named).unwrap_err().reason;
        assert!(reason.starts_with("two sweeps are called `short`: short.toml and /"), "{reason}");
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(load(&[empty.path().display().to_string()]).unwrap_err().code, ExitCode::NoInput);
    }
}
