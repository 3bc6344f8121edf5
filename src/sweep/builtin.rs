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
