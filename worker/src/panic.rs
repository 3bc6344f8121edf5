//! A panic ends the process with code 70: peers see a death, not a hang. Release builds abort on panic, which would
//! give a signal instead of a code; the hook runs before that.

use std::io::Write as _;

use lockstep_proto::exit::ExitCode;

/// Installs the hook: prints where and what, then exits with 70.
pub fn install() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let what = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        let place = info.location().map(ToString::to_string).unwrap_or_else(|| "unknown place".into());
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed");
        let backtrace = std::backtrace::Backtrace::capture();
        let mut stderr = std::io::stderr().lock();
        // A closed stderr must not become a panic within a panic.
        let _ = writeln!(stderr, "error: internal error in thread {name} at {place}: {what}");
        if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
            let _ = writeln!(stderr, "{backtrace}");
        }
        let _ = writeln!(stderr, "  this is a defect of lockstep; RUST_BACKTRACE=1 shows more");
        std::process::exit(i32::from(ExitCode::Software.code()));
    }));
}
