//! The variables of a process.

use std::collections::BTreeMap;
use std::str::FromStr;

use lockstep_proto::exit::ExitCode;

use crate::failure::Failure;

/// A snapshot of them, and of what the system knows beside them.
#[derive(Clone, Debug, Default)]
pub struct Vars {
    values: BTreeMap<String, String>,
    /// Content of `/etc/hosts`.
    pub hosts: String,
    /// Name of this host.
    pub host: String,
}

impl Vars {
    /// Those of this process.
    pub fn of_process() -> Self {
        let utf8 = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self {
            values: std::env::vars_os().filter_map(utf8).collect(),
            hosts: std::fs::read_to_string("/etc/hosts").unwrap_or_default(),
            host: lockstep_coordinator::host::name(),
        }
    }

    /// Exactly these.
    #[cfg(test)]
    pub fn of(pairs: &[(&str, &str)]) -> Self {
        let values = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { values, ..Self::default() }
    }

    /// A variable; one that is empty counts as absent.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// Whether a variable is there.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// A variable that must be a number, where it is there.
    ///
    /// # Errors
    /// It is something else (64).
    pub fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>, Failure> {
        let wrong = |value: &str| {
            Failure::new(ExitCode::Usage, format!("{name}={value}: expected a number; unset it, or mend what sets it"))
        };
        self.get(name).map(|value| value.parse().map_err(|_| wrong(value))).transpose()
    }
}
