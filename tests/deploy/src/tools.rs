//! Programs and files from elsewhere that the tests need; `cargo xtask test` puts them into the cache.

use std::path::{Path, PathBuf};

/// The folder's name in the cache; xtask/src/tools.rs has the same.
const FOLDER: &str = "deploy-tools-1";

/// Where they are.
#[derive(Clone, Debug)]
pub struct Tools {
    /// A kubectl with a kustomize that knows components.
    pub kubectl: PathBuf,
    /// Python's path for `python3 -m kubernetes_validate`.
    pub validate: PathBuf,
    /// A file of YAML for each definition.
    pub crds: PathBuf,
}

impl Tools {
    /// Those that are there. `None`: a line that says what is missing was printed, and the test is to return.
    ///
    /// # Panics
    /// With `LOCKSTEP_TEST_REQUIRE`, where nothing may skip.
    pub fn find() -> Option<Self> {
        let Some(folder) = folder().filter(|folder| folder.is_dir()) else {
            skip("no kubectl and no schemas in the cache: `cargo xtask test` fetches them");
            return None;
        };
        Some(Self::at(&folder))
    }

    /// Those of a folder.
    pub fn at(folder: &Path) -> Self {
        Self { kubectl: folder.join("kubectl"), validate: folder.join("validate"), crds: folder.join("crds") }
    }
}

/// Says that a test left something out, and why.
///
/// # Panics
/// With `LOCKSTEP_TEST_REQUIRE`.
pub fn skip(why: &str) {
    assert!(std::env::var_os("LOCKSTEP_TEST_REQUIRE").is_none(), "nothing may skip: {why}");
    println!("skipped: {why}");
}

/// The root of the checkout.
pub fn checkout() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest)
}

fn folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = || {
        let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))?;
        Some(base.join("lockstep"))
    };
    set("LOCKSTEP_DEPLOY_TOOLS").or_else(|| Some(set("LOCKSTEP_CACHE").or_else(cache)?.join(FOLDER)))
}

/// `lockstep` and `lockstep-worker`: in `LOCKSTEP_TEST_BIN_DIR`, else where cargo builds. `None`: said why.
///
/// # Panics
/// With `LOCKSTEP_TEST_REQUIRE`.
pub fn executables() -> Option<[PathBuf; 2]> {
    // …/target/<profile>/deps/<test>
    let built = || Some(std::env::current_exe().ok()?.ancestors().nth(2)?.to_path_buf());
    let folder = std::env::var_os("LOCKSTEP_TEST_BIN_DIR").map(PathBuf::from).or_else(built)?;
    let both = ["lockstep", "lockstep-worker"].map(|name| folder.join(name));
    if let Some(missing) = both.iter().find(|path| !path.is_file()) {
        skip(&format!("no {}: `cargo build --workspace --bins`", missing.display()));
        return None;
    }
    Some(both)
}
