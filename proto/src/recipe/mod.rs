//! The recipe: everything that decides the course of a run. Strict TOML; every key documented and defaulted.
//!
//! ```text
//! file or built-in ─┐
//! --set a.b=c       ├─► parse: keys and types ─► resolve: name, path ─► check: sense ─► Recipe
//! ```
//! `types` has the keys, `resume` says which of them decide the course and which may differ on resume.

mod builtin;
mod check;
mod error;
mod parse;
mod resume;
mod types;

pub use builtin::{Builtin, builtin};
pub use error::{Origin, RecipeError};
pub use types::*;
