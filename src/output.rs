//! What a command prints. A reader that closes the pipe early (`| head`) is no error.

use std::fmt::Display;
use std::io::{ErrorKind, Write, stderr, stdout};
use std::sync::atomic::{AtomicBool, Ordering};

use lockstep_proto::exit::ExitCode;
use serde::Serialize;

/// Whether the process has something to finish when nobody reads any more.
static OUTLIVES_READER: AtomicBool = AtomicBool::new(false);

/// From now on a closed pipe ends nothing: whoever reads may die, and the work is to be saved first.
pub fn outlive_reader() {
    OUTLIVES_READER.store(true, Ordering::Relaxed);
}

/// Tells a person something on stderr; that nobody reads it is no error.
pub fn note(text: impl Display) {
    let _ = writeln!(stderr().lock(), "{text}");
}

/// Prints a line on stdout.
pub fn line(text: impl Display) {
    let mut out = stdout().lock();
    let written = writeln!(out, "{text}").and_then(|()| out.flush());
    if let Err(error) = written {
        if error.kind() == ErrorKind::BrokenPipe && OUTLIVES_READER.load(Ordering::Relaxed) {
            return;
        }
        let code = if error.kind() == ErrorKind::BrokenPipe { ExitCode::Done } else { ExitCode::CantCreate };
        std::process::exit(code.code().into());
    }
}

/// Prints a value as one line of JSON.
pub fn json(value: &impl Serialize) {
    match serde_json::to_string(value) {
        Ok(text) => line(text),
        Err(error) => tracing::error!(%error, "cannot print as JSON"),
    }
}
