//! How the tasks of a Slurm step meet: task 0 writes where its coordinator is, and the token, into a file that only the
//! user can read, in a folder that all nodes see. `~/.lockstep/<job>.token`; of a later step `<job>.<step>.token`.
//!
//! A ticket carries the restart count of the job, so one that was left behind before a requeue is not taken for the new
//! one. If task 0 fails before it serves, it says so instead, and nobody waits.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lockstep_proto::exit::ExitCode;
use serde::{Deserialize, Serialize};

use super::vars::Vars;
use crate::failure::Failure;

/// Between two looks: the folder may be on a network file system, which tells of no change.
const LOOK: Duration = Duration::from_millis(250);
/// Ports of coordinators under Slurm: below those that systems give to whoever asks for any.
const PORTS: (u64, u64) = (20_000, 12_000);

/// What task 0 says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// `http://HOST:PORT`
    pub url: String,
    /// What workers must show.
    pub token: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    restart: u32,
    #[serde(flatten)]
    said: Said,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Said {
    Come(Ticket),
    Failed { code: u8, reason: String },
}

/// Where a ticket is, and which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TicketFile {
    path: PathBuf,
    job: String,
    step: u64,
    restart: u32,
    /// All tasks are on one node.
    pub is_one_node: bool,
}

/// A ticket that was written; it goes with this.
#[derive(Debug)]
pub struct Posted {
    path: PathBuf,
    /// As it was written: another's is left alone.
    text: String,
}

impl Drop for Posted {
    fn drop(&mut self) {
        if fs::read_to_string(&self.path).is_ok_and(|text| text == self.text) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl TicketFile {
    /// The one of a job's step: in `LOCKSTEP_TOKEN_DIR`, else in `~/.lockstep`.
    ///
    /// # Errors
    /// There is no home (64).
    pub fn new(vars: &Vars, (job, step, restart): (&str, u64, u32), is_one_node: bool) -> Result<Self, Failure> {
        let home = || vars.get("HOME").map(|home| Path::new(home).join(".lockstep"));
        let folder = vars.get("LOCKSTEP_TOKEN_DIR").map(PathBuf::from).or_else(home).ok_or_else(|| {
            let reason = "HOME is not set: set LOCKSTEP_TOKEN_DIR to a folder of yours that all nodes see";
            Failure::new(ExitCode::Usage, reason)
        })?;
        let name = if step == 0 { format!("{job}.token") } else { format!("{job}.{step}.token") };
        Ok(Self { path: folder.join(name), job: job.to_owned(), step, restart, is_one_node })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A port that other jobs and steps hardly want.
    pub fn port(&self) -> u16 {
        let digits = self.job.bytes().filter(u8::is_ascii_digit);
        let job = digits.fold(0_u64, |number, digit| number.wrapping_mul(10).wrapping_add(u64::from(digit - b'0')));
        (PORTS.0 + job.wrapping_mul(16).wrapping_add(self.step) % PORTS.1) as u16
    }

    /// Task 0: says where to come.
    ///
    /// # Errors
    /// It cannot be written (73).
    pub fn post(&self, ticket: Ticket) -> Result<Posted, Failure> {
        self.write(Said::Come(ticket))
    }

    /// Task 0: says that there is nowhere to come to. Stays, for those who come late.
    pub fn post_failure(&self, failure: &Failure) {
        let said = Said::Failed { code: failure.code.code(), reason: failure.reason.clone() };
        if let Ok(posted) = self.write(said) {
            std::mem::forget(posted);
        }
    }

    fn write(&self, said: Said) -> Result<Posted, Failure> {
        let unwritable = |error| Failure::unwritable(&self.path, error);
        if let Some(folder) = self.path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(unwritable)?;
        }
        // invariant: strings and numbers always serialise.
        let text = serde_json::to_string(&Content { restart: self.restart, said }).unwrap_or_default();
        let temporary = self.path.with_extension(format!("tmp-{}", std::process::id()));
        let _ = fs::remove_file(&temporary);
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).map_err(unwritable)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(unwritable)?;
        fs::rename(&temporary, &self.path).map_err(unwritable)?;
        Ok(Posted { path: self.path.clone(), text })
    }

    /// Other tasks: waits for what task 0 says.
    ///
    /// # Errors
    /// It failed; it said nothing in time (69); others can read the file (77).
    pub fn wait(&self, patience: Duration) -> Result<Ticket, Failure> {
        let start = Instant::now();
        loop {
            let found = match self.look()? {
                Some(Said::Come(ticket)) => return Ok(ticket),
                Some(Said::Failed { code, reason }) => {
                    let code = ExitCode::from_code(code).unwrap_or(ExitCode::Unavailable);
                    return Err(Failure::new(code, format!("task 0: {reason}")));
                }
                None => self.path.exists(),
            };
            if start.elapsed() >= patience {
                let stale = if found { "; the one that is there is of an earlier start of this job" } else { "" };
                let reason = format!(
                    "task 0 did not say within {} s where the coordinator is, in {}{stale}; look at what task 0 said, and \
                     set LOCKSTEP_TOKEN_DIR if the nodes do not share that folder",
                    patience.as_secs(),
                    self.path.display()
                );
                return Err(Failure::new(ExitCode::Unavailable, reason));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// What is there now, if it is of this start of the job.
    fn look(&self) -> Result<Option<Said>, Failure> {
        let Ok(text) = fs::read_to_string(&self.path) else { return Ok(None) };
        let Ok(content) = serde_json::from_str::<Content>(&text) else { return Ok(None) };
        if content.restart != self.restart {
            return Ok(None);
        }
        let is_private = fs::metadata(&self.path)
            .is_ok_and(|meta| meta.mode() & 0o077 == 0 && meta.uid() == rustix::process::getuid().as_raw());
        if !is_private {
            let reason =
                format!("{}: others can read or wrote it, so it is not trusted; remove it", self.path.display());
            return Err(Failure::new(ExitCode::NoPermission, reason));
        }
        Ok(Some(content.said))
    }
}
