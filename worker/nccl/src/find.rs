//! Where `libnccl.so.2` may be.

use std::path::{Path, PathBuf};

/// The name under which every package has it.
const NAME: &str = "libnccl.so.2";

/// A place to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The file, or a bare name for the system's loader.
    pub path: PathBuf,
    /// Why there.
    pub why: &'static str,
}

/// What the search depends on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Surroundings {
    pub(crate) explicit: Option<PathBuf>,
    pub(crate) libtorch: Option<PathBuf>,
    pub(crate) executable: Option<PathBuf>,
    /// Prefixes of Python installations, such as `/usr` or a virtual environment.
    pub(crate) prefixes: Vec<PathBuf>,
}

/// Where to look, in order. With `explicit` nowhere else: whoever names a file wants that one. Files that are not there
/// are left out, but for the explicit one; the loader's own path comes last.
pub fn candidates(explicit: Option<&Path>) -> Vec<Candidate> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let surroundings = Surroundings {
        explicit: explicit.map(Path::to_path_buf),
        libtorch: variable("LIBTORCH"),
        executable: std::env::current_exe().ok(),
        prefixes: prefixes(),
    };
    search(&surroundings)
}

/// Prefixes of Python installations: the active environment's first.
fn prefixes() -> Vec<PathBuf> {
    let active = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(std::env::var_os).filter(|v| !v.is_empty());
    active.map(PathBuf::from).chain(["/usr/local", "/usr"].map(PathBuf::from)).collect()
}

/// Folders of installed Python packages, in which a PyTorch may be: the active environment's first, newest Python first.
pub fn installed_packages() -> Vec<PathBuf> {
    prefixes().iter().flat_map(|prefix| site_packages(prefix)).collect()
}

pub(crate) fn search(surroundings: &Surroundings) -> Vec<Candidate> {
    if let Some(path) = &surroundings.explicit {
        // A folder means the library in it.
        let path = if path.is_dir() { path.join(NAME) } else { path.clone() };
        return vec![Candidate { path, why: "it was named" }];
    }
    let mut found: Vec<Candidate> = Vec::new();
    let mut look = |path: PathBuf, why| {
        if path.is_file() && !found.iter().any(|candidate| candidate.path == path) {
            found.push(Candidate { path, why });
        }
    };
    if let Some(folder) = surroundings.executable.as_deref().and_then(Path::parent) {
        look(folder.join(NAME), "beside this program");
        look(folder.join("lib").join(NAME), "in lib beside this program");
    }
    if let Some(libtorch) = &surroundings.libtorch {
        look(libtorch.join("lib").join(NAME), "in LIBTORCH");
        // `…/torch` of a PyTorch install: its libraries come as packages of their own, beside it.
        for site in [libtorch.parent(), libtorch.parent().and_then(Path::parent)].into_iter().flatten() {
            look(site.join("nvidia/nccl/lib").join(NAME), "beside LIBTORCH");
        }
    }
    for prefix in &surroundings.prefixes {
        for site in site_packages(prefix) {
            look(site.join("nvidia/nccl/lib").join(NAME), "with an installed PyTorch");
        }
    }
    found.push(Candidate { path: NAME.into(), why: "on the loader's path" });
    found
}

/// Folders of Python packages below a prefix, newest Python first.
fn site_packages(prefix: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(prefix.join("lib")).into_iter().flatten().flatten();
    let minor = |name: &str| name.strip_prefix("python3.").and_then(|minor| minor.parse::<u32>().ok());
    let mut pythons: Vec<(u32, PathBuf)> =
        entries.filter_map(|entry| Some((minor(entry.file_name().to_str()?)?, entry.path()))).collect();
    pythons.sort_by_key(|(minor, _)| std::cmp::Reverse(*minor));
    let in_each =
        pythons.iter().flat_map(|(_, python)| ["site-packages", "dist-packages"].map(|name| python.join(name)));
    in_each.chain([prefix.join("lib/python3/dist-packages")]).filter(|folder| folder.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: &Path) -> PathBuf {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
        path.to_path_buf()
    }

    #[test]
    fn places_are_tried_in_order_and_the_loader_last() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        let beside = touch(&at("bin/libnccl.so.2"));
        let torch = touch(&at("site/nvidia/nccl/lib/libnccl.so.2"));
        let old = touch(&at("venv/lib/python3.9/site-packages/nvidia/nccl/lib/libnccl.so.2"));
        let new = touch(&at("venv/lib/python3.13/site-packages/nvidia/nccl/lib/libnccl.so.2"));
        let surroundings = Surroundings {
            explicit: None,
            libtorch: Some(at("site/torch")),
            executable: Some(at("bin/lockstep-worker")),
            prefixes: vec![at("venv"), at("nowhere")],
        };
        let paths: Vec<_> = search(&surroundings).into_iter().map(|candidate| candidate.path).collect();
        assert_eq!(paths, [beside, torch, new, old, NAME.into()]);
    }

    #[test]
    fn whoever_names_a_file_or_its_folder_gets_that_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = touch(&dir.path().join(NAME));
        for named in [dir.path(), &file] {
            let surroundings = Surroundings { explicit: Some(named.into()), ..Default::default() };
            assert_eq!(search(&surroundings), [Candidate { path: file.clone(), why: "it was named" }]);
        }
        let absent = Surroundings { explicit: Some("/no/such".into()), ..Default::default() };
        assert_eq!(search(&absent).len(), 1, "an absent one is tried, and its error told");
    }
}
