//! Started by a launcher: the same processes, with the variables that Slurm, torchrun or Kubernetes give them.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use common::{Running, audited, count, course, end, lockstep, train, with_sets};

/// Variables of a task of a step on one node.
fn slurm(command: &mut Command, home: &Path, task: u32, tasks: u32) {
    let of = |name: &str, value: String| (name.to_owned(), value);
    command.env("HOME", home).envs([
        of("SLURM_JOB_ID", "4711".into()),
        of("SLURM_STEP_ID", "0".into()),
        of("SLURM_PROCID", task.to_string()),
        of("SLURM_LOCALID", task.to_string()),
        of("SLURM_STEP_NUM_TASKS", tasks.to_string()),
        of("SLURM_STEP_NODELIST", "n1".into()),
        of("SLURM_CPUS_PER_TASK", "1".into()),
    ]);
}

/// `lockstep train demo`, and nothing about workers.
fn task(run: &Path, sets: &[&str]) -> Command {
    let mut command = lockstep(&["train", "demo", "--json", "--resume", "--run-dir"]);
    with_sets(command.arg(run), sets);
    command
}

#[test]
fn three_tasks_of_srun_are_one_run_with_the_bits_of_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let alone = dir.path().join("alone");
    end(&mut train(&alone, 1, &[])).succeeded();
    let run = dir.path().join("run");
    let mut others: Vec<Running> = Vec::new();
    for number in 1..3 {
        let mut command = task(&run, &["elastic.min_workers=3"]);
        slurm(&mut command, dir.path(), number, 3);
        others.push(Running::start(&mut command));
    }
    let mut command = task(&run, &["elastic.min_workers=3"]);
    slurm(&mut command, dir.path(), 0, 3);
    let first = end(&mut command).succeeded();
    assert!(first.stderr.contains("placed by Slurm") && first.stderr.contains("4711.token"), "{}", first.stderr);
    for other in others {
        other.end().succeeded();
    }
    assert_eq!(course(&run), course(&alone));
    assert!(!dir.path().join(".lockstep/4711.token").exists(), "the token goes with the run");
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    assert!(metrics.lines().all(|line| line.contains("\"world_size\":3")), "{metrics}");
    audited(&run);
    end(lockstep(&["status", "--exit-code"]).arg(&run)).succeeded();
}

#[test]
fn a_first_task_that_cannot_begin_tells_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("file");
    std::fs::write(&run, "no folder").unwrap();
    let tasks = [1, 0].map(|number| {
        let mut command = task(&run, &[]);
        slurm(&mut command, dir.path(), number, 2);
        Running::start(&mut command)
    });
    let [other, first] = tasks.map(Running::end);
    assert_eq!((first.code, other.code), (Some(73), Some(73)), "{}\n{}", first.stderr, other.stderr);
    assert!(other.stderr.contains("task 0: "), "{}", other.stderr);

    // A wrong recipe is wrong for all, and nobody waits for anybody.
    let mut command = task(&run, &["train.batch=0"]);
    slurm(&mut command, dir.path(), 1, 2);
    assert_eq!(end(&mut command).code, Some(64));
}

#[test]
fn torchrun_starts_a_run_and_its_store_keeps_its_port() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    // Two ports in a row: torchrun's store has the first.
    let (store, port) = (0..100)
        .find_map(|_| {
            let store = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = store.local_addr().unwrap().port();
            TcpListener::bind(("127.0.0.1", port.checked_add(1)?)).ok().map(|_| (store, port))
        })
        .unwrap();
    let of = |rank: u32| {
        let mut command = task(&run, &["elastic.min_workers=2"]);
        command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string()).env("WORLD_SIZE", "2");
        command.env("LOCAL_WORLD_SIZE", "2").env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        command.env("TORCHELASTIC_USE_AGENT_STORE", "True");
        command
    };
    let other = Running::start(&mut of(1));
    let first = end(&mut of(0)).succeeded();
    other.end().succeeded();
    assert!(first.stderr.contains(&format!("127.0.0.1:{}", port + 1)), "{}", first.stderr);
    drop(store);
    audited(&run);
}

#[test]
fn without_a_token_a_cluster_is_told_how_to_make_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = lockstep(&["coordinator", "demo", "--listen", "0.0.0.0:0", "--run-dir"]);
    let ended = end(command.arg(dir.path().join("run")).env("KUBERNETES_SERVICE_HOST", "10.96.0.1"));
    assert_eq!(ended.code, Some(64), "{}", ended.stderr);
    assert!(ended.stderr.contains("kubectl create secret generic lockstep-token"), "{}", ended.stderr);
}

#[test]
fn a_batch_script_learns_how_the_run_ended() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let mut command = train(&run, 1, &["train.epochs=10000"]);
    let mut running = Running::start(&mut command);
    running.wait_for_step(1);
    let ended = end(lockstep(&["status", "--exit-code"]).arg(&run));
    assert_eq!(ended.code, Some(75), "it goes on: {}", ended.stderr);
    running.signal("TERM");
    assert_eq!(running.end().code, Some(75));
    let ended = end(lockstep(&["status", "--exit-code"]).arg(&run));
    assert_eq!(ended.code, Some(75), "{}", ended.stderr);
    assert!(ended.stderr.contains("SIGTERM"), "{}", ended.stderr);
}

#[test]
fn a_coordinator_that_hands_over_leaves_its_workers_to_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let coordinator = |listen: &str| {
        let mut command =
            lockstep(&["coordinator", "demo", "--hand-over", "--resume", "--listen", listen, "--run-dir"]);
        with_sets(command.arg(&run), &["train.epochs=40"]);
        command
    };
    let mut first = Running::start(&mut coordinator("127.0.0.1:0"));
    let line = first.wait_for(|line| line.starts_with("listening on ")).unwrap();
    let url = line.trim_start_matches("listening on ").to_owned();
    let workers = [(); 2].map(|()| Running::start(&mut lockstep(&["worker", "--coordinator", &url, "--threads", "1"])));
    let pids = workers.each_ref().map(Running::pid);
    while !run.join("metrics.jsonl").is_file() || std::fs::read_to_string(run.join("metrics.jsonl")).unwrap().is_empty()
    {
    }
    first.signal("TERM");
    let ended = first.end();
    assert_eq!(ended.code, Some(75), "{}", ended.stderr);
    assert!(ended.stderr.contains("handed over"), "{}", ended.stderr);
    let ended = end(lockstep(&["status", "--exit-code"]).arg(&run));
    assert_eq!(ended.code, Some(75), "{}", ended.stderr);

    end(&mut coordinator(url.trim_start_matches("http://"))).succeeded();
    for (worker, pid) in workers.into_iter().zip(pids) {
        assert_eq!(worker.pid(), pid);
        worker.end().succeeded();
    }
    audited(&run);
    assert_eq!(count(&run, "SELECT count(*) FROM events WHERE kind = 'rolled_back'"), 0, "nothing was lost");
    assert_eq!(count(&run, "SELECT count(*) FROM steps"), 160);
}

#[test]
fn an_interrupted_step_leaves_no_ticket_behind() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let [mut first, other] = [0, 1].map(|number| {
        let mut command = task(&run, &["elastic.min_workers=2", "train.epochs=10000"]);
        slurm(&mut command, dir.path(), number, 2);
        Running::start(&mut command)
    });
    first.wait_for_step(1);
    first.signal("TERM");
    assert_eq!((first.end().code, other.end().code), (Some(75), Some(75)));
    let left: Vec<_> = std::fs::read_dir(dir.path().join(".lockstep")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}
