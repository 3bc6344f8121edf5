//! The recipe: everything that decides the course of a run. Strict TOML; every key documented and defaulted.
//!
//! `types` has the keys, `parse` reads TOML and `--set`, `check` refuses what makes no sense, `builtin` holds the
//! recipes embedded in the binary, `resume` says which keys may differ on resume.

mod types;

pub use types::*;
