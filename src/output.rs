//! What a command prints. A reader that closes the pipe early (`| head`) is no error.

use std::fmt::Display;
use std::io::{ErrorKind, Write, stdout};

use lockstep_proto::exit::ExitCode;
use serde::Serialize;

/// Prints a line on stdout.
pub fn line(text: impl Display) {
    let mut out = stdout().lock();
    let written = writeln!(out, "{text}").and_then(|()| out.flush());
    if let Err(error) = written {
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
