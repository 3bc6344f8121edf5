//! What is wrong is said so that a person can act on it, and ends with the promised code.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use common::{Ended, Running, checkpoint, end, lockstep, train, with_sets};
use lockstep_proto::ids::WorkerId;
use lockstep_proto::message::{DataIdentity, FromWorker, Hello, PROTOCOL_VERSION, Ready, Refused, ToWorker};
use lockstep_proto::wire::pb;
use lockstep_proto::wire::pb::lockstep_client::LockstepClient;
use serde_json::Value;

/// Code and message, with the test's folder written as `DIR`.
fn said(ended: &Ended, dir: &Path) -> (i32, String) {
    let names = [(&*fs::canonicalize(dir).unwrap(), "DIR"), (dir, "DIR")];
    (ended.code.unwrap_or(-1), ended.error(&names))
}

#[track_caller]
fn ends(command: &mut Command, dir: &Path, code: i32, message: &str) {
    assert_eq!(said(&end(command), dir), (code, message.to_owned()));
}

/// What a worker found may be told by the worker or, with its name before it, by the coordinator.
#[track_caller]
fn worker_says(command: &mut Command, dir: &Path, code: i32, message: &str) {
    let (found, text) = said(&end(command), dir);
    assert_eq!(found, code, "{text}");
    assert!(text.starts_with("error: ") && text.ends_with(message), "{text}");
}

fn coordinator(run: &Path, sets: &[&str]) -> Command {
    let mut command = lockstep(&["coordinator", "demo", "--listen", "127.0.0.1:0", "--run-dir"]);
    with_sets(command.arg(run), sets);
    command
}

/// A coordinator that listens, and where.
fn listening(run: &Path, sets: &[&str]) -> (Running, String) {
    let mut coordinator = Running::start(&mut coordinator(run, sets));
    let line = coordinator.wait_for(|line| line.starts_with("listening on ")).unwrap();
    (coordinator, line.trim_start_matches("listening on ").to_owned())
}

/// The first event of a kind.
fn event(run: &Path, kind: &str) -> Value {
    let events = end(lockstep(&["events", "--json"]).arg(run)).succeeded().stdout;
    let mut events = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    events.find(|event| event["kind"] == kind).unwrap()
}

/// Waits until the first worker has settled what the run computes with.
fn wait_until_settled(run: &Path) {
    while !end(lockstep(&["events", "--json"]).arg(run)).succeeded().stdout.contains("\"settled\"") {}
}

#[test]
fn recipes_that_make_no_sense() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let wrong = |workers, sets: &[&str], message: &str| ends(&mut train(&run, workers, sets), dir.path(), 64, message);
    wrong(1, &["train.bacth=3"], "error: --set train.bacth=3: unknown key `train.bacth`; did you mean `train.batch`?");
    wrong(
        1,
        &["train.batch=many"],
        "error: --set train.batch=many: `train.batch` is \"many\", expected a whole number that is not negative",
    );
    wrong(1, &["train.batch=0"], "error: --set train.batch=0: `train.batch` is 0, expected at least 1 sample");
    wrong(
        3,
        &["train.batch=2", "train.chunk=1"],
        "error: 3 replicas are more than the 2 samples of a batch: fewer --workers or --devices, or a larger train.batch",
    );
    ends(
        &mut lockstep(&["train", "dmeo"]),
        dir.path(),
        64,
        "error: no recipe is called `dmeo` (did you mean `demo`?); `lockstep train --list` shows them all",
    );
    let ended = end(&mut lockstep(&["train", "demo", "--wrokers", "2"]));
    assert_eq!(ended.code, Some(64), "{}", ended.stderr);
    assert!(!run.exists());
}

/// CIFAR-10's files: of the right size, the first thousand values not all the same.
fn cifar10(folder: &Path, value: u8) {
    fs::create_dir_all(folder).unwrap();
    for name in ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"] {
        let path = folder.join(format!("{name}.bin"));
        let mut beginning = vec![0; 1000];
        beginning[1..].fill(value);
        fs::write(&path, beginning).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(30_730_000).unwrap();
    }
}

#[test]
fn data_that_is_missing_or_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let path = format!("data.path={}", data.display());
    let wrong = |run: &str, code, message: &str| {
        let mut command = train(&dir.path().join(run), 1, &["data.kind=cifar10", &path]);
        worker_says(&mut command, dir.path(), code, message);
    };
    wrong("missing", 66, "DIR/data: no such folder: run `lockstep data fetch cifar10` or set data.path");

    cifar10(&data, 1);
    let file = |name: &str| File::options().write(true).open(data.join(name)).unwrap();
    file("data_batch_2.bin").set_len(30_000_000).unwrap();
    wrong(
        "truncated",
        65,
        "DIR/data/data_batch_2.bin: truncated: it ends at offset 30000000, inside record 9762, which began at offset \
         29998626 and has 3073 bytes; a whole file has 30730000 bytes: run `lockstep data fetch cifar10`",
    );
    file("data_batch_2.bin").set_len(30_730_000).unwrap();

    std::os::unix::fs::FileExt::write_all_at(&file("data_batch_1.bin"), &[11], 7 * 3073).unwrap();
    wrong(
        "label",
        65,
        "DIR/data/data_batch_1.bin: label 11 in record 7 (offset 21511), expected 0…9: the file is damaged or belongs \
         to another set: run `lockstep data fetch cifar10`",
    );
}

#[test]
fn run_directories_that_cannot_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    ends(
        &mut coordinator(&run, &["elastic.join_timeout_s=0.2"]),
        dir.path(),
        69,
        "error: 0 of elastic.min_workers = 1 workers are there after elastic.join_timeout_s = 0.2",
    );
    ends(
        &mut train(&run, 1, &[]),
        dir.path(),
        64,
        "error: run directory DIR/run holds a run already; continue it with --resume, or choose another --run-dir",
    );
    ends(
        &mut train(&run, 1, &["train.seed=8"]),
        dir.path(),
        64,
        "error: run directory DIR/run holds another recipe (train.seed: 7 → 8); choose another --run-dir",
    );
    ends(
        train(&run, 1, &["train.batch=64"]).arg("--resume"),
        dir.path(),
        64,
        "error: cannot resume DIR/run: train.batch: 32 → 64; only elastic.*, checkpoint.*, log.*, data.path, \
         model.weights once it has begun, and a larger train.epochs or train.max_steps may change",
    );
    fs::write(dir.path().join("file"), "").unwrap();
    ends(
        &mut train(&dir.path().join("file/run"), 1, &[]),
        dir.path(),
        73,
        "error: cannot write run directory DIR/file/run: Not a directory (os error 20); choose another --run-dir",
    );
}

#[test]
fn a_full_disk() {
    let dir = tempfile::tempdir().unwrap();
    let inner = train(&dir.path().join("run"), 1, &["train.epochs=100"]);
    // A small disk of its own where the system lets us have one; else a limit on the size of files.
    let mount = format!("mount -t tmpfs -o size=300k none '{}' && exec \"$@\"", dir.path().display());
    let own_disk = Command::new("unshare").args(["-rm", "sh", "-c", &mount, "sh", "true"]).output();
    let mut command = if own_disk.is_ok_and(|output| output.status.success()) {
        let mut command = Command::new("unshare");
        command.args(["-rm", "sh", "-c", &mount, "sh"]);
        command
    } else {
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' XFSZ; ulimit -f 200; exec \"$@\"", "sh"]);
        command
    };
    command.arg(inner.get_program()).args(inner.get_args());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let (code, message) = said(&end(&mut command), dir.path());
    assert_eq!(code, 73, "{message}");
    assert!(message.contains("DIR/run/"), "{message}");
}

#[test]
fn ports_and_directories_that_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ended = end(lockstep(&["coordinator", "demo", "--listen", &address, "--run-dir"]).arg(dir.path().join("a")));
    let (code, message) = said(&ended, dir.path());
    let expected = "error: cannot listen on ADDRESS: Address already in use (os error 98); choose another --listen, \
                    port 0 takes any that is free";
    assert_eq!((code, &*message.replace(&address, "ADDRESS")), (73, expected));

    let run = dir.path().join("b");
    let (first, url) = listening(&run, &[]);
    let (code, message) = said(&end(coordinator(&run, &[]).arg("--resume")), dir.path());
    let expected =
        format!("error: run directory DIR/b is held by another coordinator: process {} on host ", first.pid());
    assert_eq!(code, 73, "{message}");
    assert!(message.starts_with(&expected) && message.ends_with("; stop that one first"), "{message}");

    let status = end(&mut lockstep(&["status", "--json", &url])).succeeded().json();
    assert_eq!((&status["phase"], &status["step"]), (&"waiting".into(), &0.into()));
    first.signal("TERM");
    let ended = first.end();
    assert_eq!(ended.code, Some(75), "{}", ended.stderr);
    assert!(ended.error(&[]).contains("--resume"), "{}", ended.stderr);
}

#[test]
fn addresses_where_nobody_is_or_where_anybody_could_be() {
    let dir = tempfile::tempdir().unwrap();
    // Bound and never listened on by a coordinator: whoever connects is refused once it is dropped.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let url = format!("http://{address}");
    let ended = end(&mut lockstep(&["worker", "--coordinator", &url, "--connect-timeout-s", "0.1"]));
    let (code, message) = said(&ended, dir.path());
    let expected = "error: coordinator http://ADDRESS unreachable for 0 s: Connection refused (os error 111); check \
                    that it runs and that the address is right";
    assert_eq!((code, &*message.replace(&address, "ADDRESS")), (69, expected));
    let (code, message) = said(&end(&mut lockstep(&["status", &url])), dir.path());
    let expected = "error: cannot reach a coordinator at http://ADDRESS: Connection refused (os error 111)";
    assert_eq!((code, &*message.replace(&address, "ADDRESS")), (69, expected));
    ends(
        lockstep(&["coordinator", "demo", "--listen", "0.0.0.0:0", "--run-dir"]).arg(dir.path().join("c")),
        dir.path(),
        64,
        "error: 0.0.0.0:0 is reachable from other machines; set a token (--token, LOCKSTEP_TOKEN), or say --insecure if \
         everyone who reaches it may steer the run",
    );
}

#[test]
fn a_worker_that_could_not_keep_the_bits_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let (coordinator, url) = listening(&run, &["elastic.min_workers=2"]);
    let worker = || lockstep(&["worker", "--coordinator", &url, "--threads", "1"]);
    let first = Running::start(&mut worker());
    wait_until_settled(&run);
    let (code, message) = said(&end(worker().env("LOCKSTEP_FAULT_CANARY", "1")), dir.path());
    assert_eq!(code, 78, "{message}");
    assert!(message.contains(" cannot keep the bits of this run: "), "{message}");
    coordinator.signal("TERM");
    assert_eq!(coordinator.end().code, Some(75));
    let first = first.end();
    assert_eq!(first.code, Some(75), "{}", first.stderr);
}

#[test]
fn a_worker_that_sees_other_data_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    cifar10(&dir.path().join("a/cifar"), 1);
    cifar10(&dir.path().join("b/cifar"), 2);
    let (coordinator, url) = listening(&run, &["elastic.min_workers=2", "data.kind=cifar10", "data.path=cifar"]);
    let worker_in = |folder: &str| {
        let mut command = lockstep(&["worker", "--coordinator", &url, "--threads", "1"]);
        command.current_dir(dir.path().join(folder));
        command
    };
    let first = Running::start(&mut worker_in("a"));
    wait_until_settled(&run);
    // Nobody but the first worker knows what these files should hold, and the run says so.
    let settled = event(&run, "settled");
    let worker = event(&run, "joined")["worker"].clone();
    let fingerprint = settled["detail"]["data"]["fingerprint"].as_str().unwrap();
    assert_eq!(settled["worker"], worker);
    let (code, message) = said(&end(&mut worker_in("b")), dir.path());
    assert_eq!(code, 65, "{message}");
    let of_this_run = format!(
        ", the run has cifar10 with 100 training and 40 test samples of 10 classes, fingerprint {fingerprint}; \
         give it the same files"
    );
    assert!(message.ends_with(&of_this_run), "{message}");
    coordinator.signal("TERM");
    assert_eq!(coordinator.end().code, Some(75));
    assert_eq!(first.end().code, Some(75));
}

#[test]
fn the_first_to_join_is_refused_when_its_data_contradict_the_recipe_and_settles_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    cifar10(&dir.path().join("cifar"), 1);
    let path = format!("data.path={}", dir.path().join("cifar").display());
    let (coordinator, url) = listening(&run, &["elastic.min_workers=2", "data.kind=cifar10", &path]);
    // No loader of ours delivers this: one of another build, or a broken one.
    let data = DataIdentity {
        name: "cifar10".into(),
        num_train: 99,
        num_test: 40,
        num_classes: 10,
        fingerprint: "0".repeat(64),
    };
    let ready = Ready {
        data,
        canary: Some("0".repeat(64)),
        state: None,
        addresses: vec!["127.0.0.1:1".into()],
        sees_run_dir: false,
    };
    let refused = refusal(url.clone(), vec![FromWorker::Hello(stranger()), FromWorker::Ready(ready)]);
    let expected = format!(
        "worker stranger on elsewhere sees cifar10 with 99 training and 40 test samples of 10 classes, fingerprint \
         {}, but the recipe's data are cifar10 with 100 training and 40 test samples of 10 classes; check \
         data.path there",
        "0".repeat(64)
    );
    assert_eq!((refused.code.code(), refused.reason), (65, expected));

    // The run is still whoever's comes first with the right data.
    let first = Running::start(&mut lockstep(&["worker", "--coordinator", &url, "--threads", "1"]));
    wait_until_settled(&run);
    let settled = event(&run, "settled");
    assert_eq!(settled["detail"]["data"]["num_train"], 100);
    assert_ne!(settled["worker"], "stranger");
    coordinator.signal("TERM");
    assert_eq!(coordinator.end().code, Some(75));
    assert_eq!(first.end().code, Some(75));
}

/// A worker that is none.
fn stranger() -> Hello {
    Hello {
        protocol: PROTOCOL_VERSION,
        build: "0.1.0".into(),
        worker: WorkerId("stranger".into()),
        host: "elsewhere".into(),
        pid: 1,
        devices: vec!["cpu".into()],
        isa: "avx2".into(),
        run_id: None,
    }
}

/// Says it all, and waits to be refused.
fn refusal(url: String, says: Vec<FromWorker>) -> Refused {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = LockstepClient::connect(url).await.unwrap();
        let stream = tokio_stream::iter(says.into_iter().map(pb::FromWorker::from));
        let mut answers = client.train(stream).await.unwrap().into_inner();
        loop {
            match ToWorker::try_from(answers.message().await.unwrap().unwrap()).unwrap() {
                ToWorker::Refused(refused) => return refused,
                ToWorker::Welcome(_) => {}
                other => panic!("{other:?}"),
            }
        }
    })
}

#[test]
fn a_worker_of_another_protocol_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (coordinator, url) = listening(&dir.path().join("run"), &[]);
    let refused = refusal(url, vec![FromWorker::Hello(Hello { protocol: 99, build: "9.9.9".into(), ..stranger() })]);
    assert_eq!(refused.code.code(), 76);
    assert!(refused.reason.contains("protocol") && refused.reason.contains("99"), "{}", refused.reason);
    coordinator.signal("TERM");
    assert_eq!(coordinator.end().code, Some(75));
}

#[test]
fn a_checkpoint_with_a_flipped_bit_is_passed_over_and_without_any_a_run_ends() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    end(&mut train(&run, 1, &[])).succeeded();
    let flip = |folder: &Path| {
        let path = folder.join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let damaged = checkpoint(&run, 12);
    flip(&damaged);
    let (code, message) = said(&end(lockstep(&["eval"]).arg(&damaged)), dir.path());
    assert_eq!(code, 65, "{message}");
    let expected = "error: DIR/run/checkpoints/step-12/model.safetensors has sha256 ";
    assert!(message.starts_with(expected) && message.ends_with(": the file is damaged"), "{message}");

    end(train(&run, 1, &["train.epochs=4"]).arg("--resume")).succeeded();
    common::audited(&run);

    let checkpoints = || fs::read_dir(run.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path());
    checkpoints().filter(|folder| *folder != damaged).for_each(|folder| flip(&folder));
    // The first one was passed over and may have been written anew.
    fs::remove_dir_all(&damaged).unwrap();
    let (code, message) = said(&end(train(&run, 1, &["train.epochs=5"]).arg("--resume")), dir.path());
    assert_eq!(code, 65, "{message}");
    let expected = "error: the run has 16 committed steps, but none of its checkpoints loads; restore one from a backup, \
                    or start again in a new run directory; ";
    assert!(message.starts_with(expected), "{message}");
}

/// What cannot begin leaves no run behind, and `latest` where it was.
#[test]
fn devices_that_a_worker_cannot_have_are_refused_before_there_is_a_run() {
    let dir = tempfile::tempdir().unwrap();
    for (devices, code, says) in [
        ("hosts", 64, "--devices: \"hosts\" is no device; expected cpu"),
        ("cpu,", 64, "--devices: \"\" is no device; expected cpu"),
        ("cuda:0", 78, "--devices cuda:0: no GPU is visible to this process ("),
        ("all", 78, "--devices cuda:0: no GPU is visible"),
    ] {
        let mut command = lockstep(&["train", "demo", "--devices", devices]);
        let (found, text) = said(&end(command.current_dir(dir.path()).env("CUDA_VISIBLE_DEVICES", "")), dir.path());
        assert_eq!(found, code, "{devices}: {text}");
        assert!(text.starts_with(&format!("error: {says}")), "{devices}: {text}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{devices}: something was written");
    }
}

#[test]
fn a_dry_run_does_not_promise_what_it_does_not_do() {
    for (flags, flag) in [(&["--devices", "host"][..], "--devices"), (&["--resume"], "--resume")] {
        let ended = end(lockstep(&["train", "demo", "--dry-run"]).args(flags));
        assert_eq!(ended.code, Some(64));
        let said = format!("error: --dry-run tries one batch from the beginning, on the CPU: leave {flag} out");
        assert_eq!(ended.error(&[]), said);
    }
}

#[test]
fn nothing_of_other_kinds_is_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    end(&mut train(&run, 1, &["train.max_steps=1", "data.limit=32"])).succeeded();
    let (notes, model) = (dir.path().join("notes.toml"), dir.path().join("model.safetensors"));
    fs::write(&notes, "name = \"mine\"").unwrap();
    let export = |out: &Path| end(lockstep(&["export"]).arg(checkpoint(&run, 1)).arg("--out").arg(out));
    let message = "error: --out DIR/notes.toml: there is a file that is no safetensors file; name another";
    assert_eq!(said(&export(&notes), dir.path()), (73, message.to_owned()));
    assert_eq!(fs::read_to_string(&notes).unwrap(), "name = \"mine\"");
    export(&model).succeeded();
    export(&model).succeeded();

    let images = dir.path().join("images");
    for split in ["train", "val"] {
        fs::create_dir_all(images.join(split).join("a")).unwrap();
        fs::write(images.join(split).join("a/0.JPEG"), "no image").unwrap();
    }
    for dest in [images.clone(), images.join("shards")] {
        let (code, text) = said(&end(lockstep(&["data", "pack"]).arg(&images).arg(&dest)), dir.path());
        assert!(code == 73 && text.contains("whose images are to be packed: name another"), "{code} {text}");
    }
    assert!(!images.join("lockstep-index.json").exists() && !images.join("shards").exists());
}
