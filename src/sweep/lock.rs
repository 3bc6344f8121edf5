//! One sweep at a time in one folder.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;

use lockstep_proto::exit::ExitCode;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::failure::Failure;

const FILE_NAME: &str = "sweep.lock";

/// Held while it lives. The system lets go of it when the process dies, however that happens; the file stays.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of a folder, which is made if it is not there.
    ///
    /// # Errors
    /// When another sweep holds it, or it cannot be written (73).
    pub fn take(out: &Path) -> Result<Self, Failure> {
        fs::create_dir_all(out).map_err(|error| Failure::unwritable(out, error))?;
        let path = out.join(FILE_NAME);
        let unwritable = |error: std::io::Error| Failure::unwritable(&path, error);
        let opened = File::options().create(true).read(true).write(true).truncate(false).open(&path);
        let mut file = opened.map_err(unwritable)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                // Its holder may be about to write it.
                let _ = file.read_to_string(&mut pid);
                let holder =
                    if pid.trim().is_empty() { "another one".to_owned() } else { format!("process {}", pid.trim()) };
                let reason = format!(
                    "a sweep runs in {} already: {holder}; stop that one first, or choose another --out",
                    out.display()
                );
                return Err(Failure::new(ExitCode::CantCreate, reason));
            }
            Err(error) => return Err(unwritable(error.into())),
        }
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(unwritable)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_one_is_refused_and_told_by_whom_until_the_first_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let first = Lock::take(&out).unwrap();
        let refused = Lock::take(&out).unwrap_err();
        assert_eq!(refused.code, ExitCode::CantCreate);
        let named = format!("process {}; stop that one first", std::process::id());
        assert!(refused.reason.contains(&named), "{refused}");
        drop(first);
        Lock::take(&out).unwrap();
    }
}
