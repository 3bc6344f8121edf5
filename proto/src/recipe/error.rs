//! What can be wrong with a recipe.

use std::fmt;
use std::path::PathBuf;

use crate::exit::ExitCode;

/// Where a key was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In a file or a built-in recipe.
    Line {
        /// Its name.
        source: String,
        /// From 1.
        line: usize,
    },
    /// On the command line.
    Set {
        /// `a.b=c`.
        text: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { source, line } => write!(f, "{source}, line {line}"),
            Self::Set { text } => write!(f, "--set {text}"),
        }
    }
}

/// Why a recipe is refused.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// Not TOML.
    #[error("{at}: not valid TOML: {what}")]
    Syntax {
        /// Where.
        at: Origin,
        /// What the parser says.
        what: String,
    },
    /// Not `a.b=c`.
    #[error("--set {text}: {what}; expected key=value, as in --set train.batch=64")]
    Set {
        /// The argument.
        text: String,
        /// What is wrong.
        what: String,
    },
    /// A key that no recipe has.
    #[error("{at}: unknown key `{key}`{}", suggestion(nearest))]
    UnknownKey {
        /// Its full path.
        key: String,
        /// Where.
        at: Origin,
        /// The nearest key that exists.
        nearest: Option<String>,
    },
    /// A value of the wrong type, or one that makes no sense.
    #[error("{}`{key}` is {value}, expected {expected}", place(at))]
    Value {
        /// Its full path.
        key: String,
        /// As TOML.
        value: String,
        /// What would do.
        expected: String,
        /// Where it was set; `None` when it is a default or the recipe has no text.
        at: Option<Origin>,
    },
    /// Neither a built-in recipe nor a file.
    #[error("no recipe is called `{name}`{}; `lockstep train --list` shows them all", aside(nearest))]
    UnknownRecipe {
        /// As given.
        name: String,
        /// The nearest that exists.
        nearest: Option<String>,
    },
    /// A recipe file that is not there.
    #[error("recipe {} does not exist{}", path.display(), suggestion(nearest))]
    NotFound {
        /// The file.
        path: PathBuf,
        /// The nearest built-in recipe, if the name is near one.
        nearest: Option<String>,
    },
    /// A recipe file that cannot be read.
    #[error("recipe {} cannot be read: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
}

impl RecipeError {
    /// 64, or 66 for a file that is not there or cannot be read.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::NotFound { .. } | Self::Unreadable { .. } => ExitCode::NoInput,
            Self::Syntax { .. }
            | Self::Set { .. }
            | Self::UnknownKey { .. }
            | Self::Value { .. }
            | Self::UnknownRecipe { .. } => ExitCode::Usage,
        }
    }
}

fn suggestion(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}

fn aside(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!(" (did you mean `{name}`?)")).unwrap_or_default()
}

fn place(at: &Option<Origin>) -> String {
    at.as_ref().map(|at| format!("{at}: ")).unwrap_or_default()
}
