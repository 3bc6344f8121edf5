//! The executable: messages and exit codes.
#![allow(clippy::unwrap_used)] // helpers of tests are tests too

use std::process::{Command, Output};

fn worker(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lockstep-worker")).args(args).output().unwrap()
}

#[track_caller]
fn ends(args: &[&str], code: i32, says: &str) {
    let output = worker(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.contains(says), "{stderr}");
}

#[test]
fn wrong_usage_is_64() {
    ends(&["worker"], 64, "--coordinator <URL>");
    ends(&["worker", "--coordinator", "nonsense"], 64, "expected http://HOST:PORT");
    ends(&["wroker"], 64, "unrecognized subcommand");
    ends(&["worker", "--coordinator", "127.0.0.1:1", "--devices", "tpu"], 64, "\"tpu\" is no device");
}

#[test]
fn help_teaches_and_is_no_error() {
    let output = worker(&["worker", "--help"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8_lossy(&output.stdout);
    for expected in ["LOCKSTEP_COORDINATOR", "cpu,cpu", "SIGTERM", "Example:"] {
        assert!(text.contains(expected), "{expected} is not in:\n{text}");
    }
}

#[test]
fn a_gpu_is_78_with_the_remedy() {
    let says = "error: --devices cuda:0: no GPU is visible to this process (";
    ends(&["worker", "--coordinator", "127.0.0.1:1", "--devices", "cuda:0"], 78, says);
}

/// With a driver that is a test double, and no CUDA half of libtorch.
#[test]
fn doctor_tells_what_there_is_for_gpus_and_what_lacks() {
    let driver = lockstep_nccl_double::driver().to_string_lossy().into_owned();
    let output = worker(&["--log", "error", "doctor", "--libtorch", "/nowhere", "--cuda-driver", &driver]);
    assert_eq!(output.status.code(), Some(0));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["driver"]["says"], "CUDA 13.0");
    assert_eq!(found["devices"].as_array().unwrap().len(), 8);
    assert_eq!((&found["devices"][7]["name"], &found["devices"][7]["capability"]), (&"cuda:7".into(), &"9.0".into()));
    assert_eq!(found["far"].as_array().unwrap().len(), 16, "four reach each other, and the other four");
    assert_eq!(found["libtorch_cuda"]["ok"], false);
    assert!(found["libtorch_cuda"]["says"].as_str().unwrap().contains("it was named (/nowhere)"), "{found}");
    assert_eq!(found["graphs"]["ok"], false);
}

#[test]
fn an_unreachable_coordinator_is_69_and_named() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("127.0.0.1:{port}");
    let says = format!("coordinator http://{url} unreachable");
    ends(&["worker", "--coordinator", &url, "--connect-timeout-s", "0.2"], 69, &says);
}

#[test]
fn a_coordinator_whose_name_does_not_resolve_is_69_and_named() {
    // A name that never resolves, by RFC 6761.
    let url = "http://lockstep.invalid:7070";
    let says = format!("coordinator {url} unreachable");
    ends(&["worker", "--coordinator", url, "--connect-timeout-s", "0.2"], 69, &says);
    ends(&["worker", "--coordinator", url, "--connect-timeout-s", "0.2"], 69, "lookup");
}

#[test]
fn a_checkpoint_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("step-9");
    let out = folder.path().join("model.safetensors");
    let (missing, out) = (missing.to_str().unwrap(), out.to_str().unwrap());
    ends(&["eval", missing], 66, "step-9/manifest.json");
    ends(&["export", missing, "--out", out], 66, "step-9/manifest.json");
}

#[test]
fn an_all_reduce_between_processes_is_measured() {
    let output = worker(&["bench", "allreduce", "--ranks", "2", "--sizes", "1,1024"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<serde_json::Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!((&lines[1]["bytes"], &lines[1]["ranks"]), (&4096.into(), &2.into()));
    assert!(lines.iter().all(|line| line["seconds"].as_f64().unwrap() > 0.0));
}
