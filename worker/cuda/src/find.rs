//! Where CUDA's half of libtorch may be.

use std::path::{Path, PathBuf};

use lockstep_torch::device::LIBRARY;

/// What the search depends on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Surroundings {
    pub(crate) explicit: Option<PathBuf>,
    pub(crate) libtorch: Option<PathBuf>,
    pub(crate) executable: Option<PathBuf>,
    /// Folders of Python packages.
    pub(crate) packages: Vec<PathBuf>,
}

/// Folders in which `libtorch_cuda.so` may be, in order, with why. With `explicit` (a libtorch, or its `lib`) nowhere else:
/// whoever names one wants that one.
pub fn candidates(explicit: Option<&Path>) -> Vec<(PathBuf, &'static str)> {
    search(&Surroundings {
        explicit: explicit.map(Path::to_path_buf),
        libtorch: std::env::var_os("LIBTORCH").filter(|value| !value.is_empty()).map(PathBuf::from),
        executable: std::env::current_exe().ok(),
        packages: lockstep_nccl::installed_packages(),
    })
}

pub(crate) fn search(surroundings: &Surroundings) -> Vec<(PathBuf, &'static str)> {
    if let Some(named) = &surroundings.explicit {
        let lib = named.join("lib");
        return vec![(if lib.is_dir() { lib } else { named.clone() }, "it was named")];
    }
    let mut found = Vec::new();
    found.extend(surroundings.libtorch.as_ref().map(|libtorch| (libtorch.join("lib"), "in LIBTORCH")));
    if let Some(folder) = surroundings.executable.as_deref().and_then(Path::parent) {
        found.push((folder.to_path_buf(), "beside this program"));
        found.push((folder.join("lib"), "in lib beside this program"));
        found.push((folder.join("libtorch/lib"), "in libtorch beside this program"));
    }
    let installed =
        surroundings.packages.iter().map(|packages| (packages.join("torch/lib"), "in an installed PyTorch"));
    found.extend(installed);
    found
}

/// The version of the libtorch whose libraries are in `lib`; `None` where nothing tells.
pub(crate) fn version(lib: &Path) -> Option<String> {
    let root = lib.parent()?;
    if let Ok(text) = std::fs::read_to_string(root.join("build-version")) {
        return Some(text.trim().to_owned());
    }
    // A Python package: `__version__ = '2.11.0+cu130'`
    let text = std::fs::read_to_string(root.join("version.py")).ok()?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("__version__"))?;
    let quoted = line.trim_start_matches([' ', '=', ':']).split(['\'', '"']).nth(1)?;
    Some(quoted.to_owned())
}

/// Whether `folder` has the library.
pub(crate) fn has(folder: &Path) -> bool {
    folder.join(LIBRARY).is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_comes_alone_and_libtorch_before_what_is_installed() {
        let dir = tempfile::tempdir().unwrap();
        let of = |path: &str| dir.path().join(path);
        let mut surroundings = Surroundings {
            explicit: None,
            libtorch: Some(of("libtorch")),
            executable: Some(of("bin/lockstep-worker")),
            packages: vec![of("site-packages")],
        };
        let folders: Vec<_> = search(&surroundings).into_iter().map(|(folder, _)| folder).collect();
        let wanted = ["libtorch/lib", "bin", "bin/lib", "bin/libtorch/lib", "site-packages/torch/lib"];
        assert_eq!(folders, wanted.map(of));
        surroundings.explicit = Some(of("mine"));
        assert_eq!(search(&surroundings), [(of("mine"), "it was named")]);
        std::fs::create_dir_all(of("mine/lib")).unwrap();
        assert_eq!(search(&surroundings), [(of("mine/lib"), "it was named")]);
    }

    #[test]
    fn both_kinds_of_libtorch_tell_their_version() {
        let dir = tempfile::tempdir().unwrap();
        let (zip, package) = (dir.path().join("zip/lib"), dir.path().join("torch/lib"));
        std::fs::create_dir_all(&zip).unwrap();
        std::fs::create_dir_all(&package).unwrap();
        assert_eq!(version(&zip), None);
        std::fs::write(dir.path().join("zip/build-version"), "2.11.0\n").unwrap();
        let text = "from typing import Optional\n\n__all__ = ['__version__', 'debug']\n__version__ = '2.9.1+cu130'\ndebug = False\n";
        std::fs::write(dir.path().join("torch/version.py"), text).unwrap();
        assert_eq!(version(&zip).as_deref(), Some("2.11.0"));
        assert_eq!(version(&package).as_deref(), Some("2.9.1+cu130"));
    }
}
