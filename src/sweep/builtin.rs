//! Sweeps embedded in the binary: the same files as in `recipes/sweeps/`.

use super::file::SweepFile;
use crate::failure::Failure;

/// A sweep that needs no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Builtin {
    /// `arch_shallow`, …
    pub name: &'static str,
    /// Its TOML.
    pub toml: &'static str,
}

impl Builtin {
    /// Parses it.
    ///
    /// # Errors
    /// Never with a build that passed its tests.
    pub fn parse(&self) -> Result<SweepFile, Failure> {
        SweepFile::parse(self.toml, &format!("{}.toml", self.name), None)
    }
}

macro_rules! builtins {
    ($($name:literal,)*) => {
        &[$(Builtin { name: $name, toml: include_str!(concat!("../../recipes/sweeps/", $name, ".toml")) }),*]
    };
}

/// All of them: the tables of the Torch7 project in its order, then others.
pub fn builtin() -> &'static [Builtin] {
    builtins! {
        "model_size",
        "arch_shallow",
        "arch_deep",
        "solver_shallow",
        "solver_deep",
        "bn_momentum",
        "init_nninit",
        "schedule",
        "short",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_of_the_repository_is_embedded_says_what_it_is_and_parses() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/sweeps");
        let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let mut embedded = builtin().to_vec();
        embedded.sort_by_key(|sweep| sweep.name);
        assert_eq!(files.len(), embedded.len());
        for (file, sweep) in files.iter().zip(embedded) {
            assert_eq!(file.file_stem().unwrap(), sweep.name);
            assert!(sweep.toml.starts_with("# "), "{} lacks its header", sweep.name);
            assert!(sweep.parse().is_ok(), "{}", sweep.name);
        }
    }
}
