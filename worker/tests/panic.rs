//! A panic anywhere ends the process with 70.
#![allow(clippy::unwrap_used)] // helpers of tests are tests too

use std::process::Command;

const CHILD: &str = "LOCKSTEP_TEST_PANICS";

/// Runs as a child of the other test; does nothing otherwise.
#[test]
fn panics_in_a_thread_when_asked() {
    if std::env::var_os(CHILD).is_some() {
        lockstep_worker::panic::install();
        let _ =
            std::thread::Builder::new().name("replica-3".into()).spawn(|| panic!("a broken invariant")).unwrap().join();
    }
}

#[test]
fn a_panic_in_any_thread_ends_the_process_with_70_and_a_message() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "panics_in_a_thread_when_asked", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(70));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("internal error in thread replica-3"), "{stderr}");
    assert!(stderr.contains("a broken invariant"), "{stderr}");
}
