//! `provenance.json`: where a run came from, as far as it can be known without asking anyone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};

use lockstep_proto::message::{DataIdentity, PROTOCOL_VERSION};
use lockstep_proto::recipe::Recipe;
use serde::{Deserialize, Serialize};

use crate::artifacts::replace;
use crate::clock;
use crate::engine::Record;
use crate::host;
use crate::store::{SCHEMA_VERSION, StoreError};

const FILE_NAME: &str = "provenance.json";
/// A longer difference to the commit is cut.
const MAX_DIFF_BYTES: usize = 1 << 20;

/// Everything about a run that is not its recipe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Provenance {
    /// When the run directory was made, UTC.
    pub created: String,
    /// When coordinators resumed it, UTC.
    pub resumed: Vec<String>,
    /// Commit of the git checkout that the run was started in; `None` outside of one.
    pub commit: Option<String>,
    /// What differed from that commit.
    pub diff: Option<String>,
    /// Version of the program, and the commit it was built from if the build knew it.
    pub build: String,
    /// Where the coordinator ran.
    pub host: Host,
    /// Devices of the workers, by host.
    pub devices: BTreeMap<String, BTreeSet<String>>,
    /// Instruction set of the run; `None` before the first worker.
    pub instruction_set: Option<String>,
    /// Gradient of the fixed chunk, hashed.
    pub canary: Option<String>,
    /// Versions of what both sides must agree on.
    pub versions: BTreeMap<String, String>,
    /// The data set and its fingerprint; `None` before the first worker.
    pub data: Option<DataIdentity>,
    /// Hash over the keys that decide the run's course.
    pub recipe_sha256: String,
}

/// A machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Its processor.
    pub cpu: Option<String>,
    /// Threads that run at once.
    pub cores: usize,
    /// Operating system and architecture.
    pub system: String,
}

impl Provenance {
    /// What is known when a run begins.
    pub fn gather(recipe: &Recipe) -> Self {
        let commit = git(&["rev-parse", "HEAD"]);
        let diff = commit.as_ref().and_then(|_| git(&["diff", "HEAD"])).map(cut);
        Self {
            created: now(),
            commit,
            diff,
            build: build(),
            host: Host {
                name: host::name(),
                cpu: host::cpu_model(),
                cores: std::thread::available_parallelism().map_or(1, usize::from),
                system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            },
            versions: BTreeMap::from([
                ("protocol".to_owned(), PROTOCOL_VERSION.to_string()),
                ("schema".to_owned(), SCHEMA_VERSION.to_string()),
                ("manifest".to_owned(), lockstep_proto::manifest::FORMAT.to_string()),
            ]),
            recipe_sha256: recipe.sha256(),
            ..Self::default()
        }
    }

    /// What a run directory has; `None` when the file is not there or cannot be read.
    pub fn read(run_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(run_dir.join(FILE_NAME)).ok()?).ok()
    }

    /// Takes over what a record tells.
    pub(crate) fn learn(&mut self, record: &Record) {
        match record {
            Record::Settled { data, isa, canary, .. } => {
                self.data = Some(data.clone());
                self.instruction_set = Some(isa.clone());
                self.canary.clone_from(canary);
            }
            Record::Joined { host, devices, .. } => {
                self.devices.entry(host.clone()).or_default().extend(devices.iter().cloned());
            }
            _ => {}
        }
    }

    /// Notes that the run is resumed now.
    pub(crate) fn resume(&mut self) {
        self.resumed.push(now());
    }

    /// Writes the file.
    pub(crate) fn write(&self, run_dir: &Path) -> Result<(), StoreError> {
        // invariant: strings, numbers and maps with string keys always serialise.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        replace(&run_dir.join(FILE_NAME), text.as_bytes())
    }

    /// Changes the file; one that cannot be read is begun anew.
    pub(crate) fn update(run_dir: &Path, change: impl FnOnce(&mut Self)) -> Result<(), StoreError> {
        let mut provenance = Self::read(run_dir).unwrap_or_default();
        let before = provenance.clone();
        change(&mut provenance);
        if provenance == before { Ok(()) } else { provenance.write(run_dir) }
    }
}

/// Version of this program.
pub fn build() -> String {
    match option_env!("LOCKSTEP_COMMIT") {
        Some(commit) => format!("lockstep {} ({commit})", env!("CARGO_PKG_VERSION")),
        None => format!("lockstep {}", env!("CARGO_PKG_VERSION")),
    }
}

fn now() -> String {
    clock::utc_stamp(clock::unix_s() as u64)
}

/// What git says of the current folder; `None` without git or outside of a checkout.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git")
        .args(arguments)
        .env("GIT_OPTIONAL_LOCKS", "0")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

fn cut(mut text: String) -> String {
    if text.len() > MAX_DIFF_BYTES {
        let end = (0..=MAX_DIFF_BYTES).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
        text.push_str("\n… cut here: longer than 1 MiB");
    }
    text
}
