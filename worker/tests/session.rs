//! A worker process against a coordinator that follows a script; integers in place of tensors.
#![allow(clippy::unwrap_used)] // helpers of tests are tests too

mod support;

use std::time::Duration;

use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Epoch, Generation, Rank, Step};
use lockstep_proto::message::{Drain, Finish, FromWorker, Left, PlanItem, Progress, Refused, Source, ToWorker};
use lockstep_proto::transfer::UploadPart;
use lockstep_worker::checkpoint;
use lockstep_worker::session::{Config, Signal};
use support::*;

fn committed(generation: u64, step: u64) -> ToWorker {
    ToWorker::Committed { generation: Generation(generation), step: Step(step) }
}

#[tokio::test]
async fn a_run_from_hello_to_finish() {
    let run_dir = run_dir();
    let mut fake = Fake::start().await;
    let worker = Worker::start(fake.config("w", 1));
    let mut stream = fake.stream().await;
    let (hello, ready) = stream.welcome(run_dir.path()).await;
    assert_eq!(stream.token.as_deref(), Some("Bearer secret"));
    assert_eq!((hello.worker.0.as_str(), hello.isa.as_str(), hello.run_id), ("w", "avx2", None));
    assert_eq!((ready.data, ready.canary.as_deref(), ready.state), (data(), Some("0c"), None));
    assert!(ready.sees_run_dir);

    stream.say(open(1, base(0, 0), Source::Init, "w", &ready.addresses)).await;
    assert_eq!(stream.next().await, synced(1, hash_after(0, 1)));
    let evaluate = PlanItem::Evaluate { epoch: Epoch(1), step: Step(2) };
    let save = PlanItem::Checkpoint { step: Step(2), epoch: Epoch(1) };
    stream.say(plan(1, [step(1)])).await;
    stream.say(plan(1, [step(2), evaluate, save])).await;
    for k in [1, 2] {
        let report = reported(stream.next().await);
        assert_eq!((report.step, report.rank, report.generation), (Step(k), Rank(0), Generation(1)));
        assert_eq!(report.loss, value_after(k, 1) as f64);
    }
    match stream.next().await {
        Some(FromWorker::Evaluated(report)) => assert_eq!((report.step, report.epoch), (Step(2), Epoch(1))),
        other => panic!("{other:?}"),
    }
    match stream.next().await {
        Some(FromWorker::CheckpointSaved(saved)) => {
            assert_eq!((saved.dir.as_str(), saved.state, saved.state_sha256), ("step-2", base(1, 2), hash_after(2, 1)));
        }
        other => panic!("{other:?}"),
    }
    let loaded = checkpoint::read(&run_dir.path().join("checkpoints/step-2")).unwrap();
    assert_eq!((loaded.manifest.next_position, loaded.manifest.epoch), (256, Epoch(1)));

    stream.say(ToWorker::Finish(Finish { code: ExitCode::Done, reason: "2 steps".into() })).await;
    let left = Left { code: ExitCode::Done, reason: "2 steps".into() };
    assert_eq!(stream.next().await, Some(FromWorker::Left(left)));
    drop(stream);
    assert_eq!(worker.end().await.code, ExitCode::Done);
}

#[tokio::test]
async fn a_signal_asks_to_go_and_once_allowed_leaves_after_the_step_in_hand_with_75() {
    let run_dir = run_dir();
    let mut fake = Fake::start().await;
    let mut worker = Worker::start(fake.config("w", 1));
    let release = worker.steps.hold(2);
    let hold = worker.steps.hold(4);
    let mut stream = fake.stream().await;
    let (_, ready) = stream.welcome(run_dir.path()).await;
    stream.say(open(1, base(0, 0), Source::Init, "w", &ready.addresses)).await;
    stream.say(plan(1, (1..=5).map(step))).await;
    assert_eq!(stream.next().await, synced(1, hash_after(0, 1)));
    assert_eq!(reported(stream.next().await).step, Step(1));
    worker.begins(1).await;
    worker.begins(2).await;
    worker.signals.send(Signal("SIGTERM")).await.unwrap();
    assert_eq!(stream.leaving().await.reason, "SIGTERM");
    // It goes on until it may go.
    release.send(()).unwrap();
    for k in [2, 3] {
        assert_eq!(reported(stream.next().await).step, Step(k));
        worker.begins(k + 1).await;
    }
    stream.say(ToWorker::Drain(Drain { reason: "you may".into() })).await;
    let left = loop {
        // Step 4 is in hand; whether the word comes before the next begins is a race.
        tokio::select! {
            message = stream.next() => match message {
                Some(FromWorker::Reported(report)) => assert!(report.step >= Step(4)),
                Some(FromWorker::Left(left)) => break left,
                other => panic!("{other:?}"),
            },
            () = tokio::task::yield_now() => { let _ = hold.send(()); }
        }
    };
    assert_eq!(left.code, ExitCode::TempFail);
    assert!(left.reason.contains("SIGTERM"), "{left:?}");
    drop(stream);
    assert_eq!(worker.end().await.code, ExitCode::TempFail);
}

#[tokio::test]
async fn a_second_signal_does_not_wait_for_the_step() {
    let run_dir = run_dir();
    let mut fake = Fake::start().await;
    let mut worker = Worker::start(fake.config("w", 1));
    let release = worker.steps.hold(1);
    let mut stream = fake.stream().await;
    let (_, ready) = stream.welcome(run_dir.path()).await;
    stream.say(open(1, base(0, 0), Source::Init, "w", &ready.addresses)).await;
    stream.say(plan(1, [step(1)])).await;
    worker.begins(1).await;
    for _ in 0..3 {
        worker.signals.send(Signal("SIGINT")).await.unwrap();
    }
    let exit = worker.end().await;
    assert_eq!(exit.code, ExitCode::TempFail);
    assert!(exit.reason.contains("again"), "{exit}");
    drop(release);
}

#[tokio::test]
async fn drain_is_obeyed_like_a_signal() {
    let run_dir = run_dir();
    let mut fake = Fake::start().await;
    let worker = Worker::start(fake.config("w", 1));
    let mut stream = fake.stream().await;
    stream.welcome(run_dir.path()).await;
    stream.say(ToWorker::Drain(Drain { reason: "scaled down".into() })).await;
    let left = Left { code: ExitCode::TempFail, reason: "drained: scaled down".into() };
    assert_eq!(stream.next().await, Some(FromWorker::Left(left)));
    drop(stream);
    assert_eq!(worker.end().await.code, ExitCode::TempFail);
}

#[tokio::test]
async fn a_broken_stream_is_dialled_again_with_the_state_held_and_what_nobody_acknowledged() {
    let run_dir = run_dir();
    let mut fake = Fake::start().await;
    let mut worker = Worker::start(fake.config("w", 1));
    let mut stream = fake.stream().await;
    let (_, ready) = stream.welcome(run_dir.path()).await;
    stream.say(open(1, base(0, 0), Source::Init, "w", &ready.addresses)).await;
    assert_eq!(stream.next().await, synced(1, hash_after(0, 1)));
    stream.say(plan(1, [step(1), step(2), step(3)])).await;
    for k in 1..=3 {
        assert_eq!(reported(stream.next().await).step, Step(k));
    }
    stream.say(committed(1, 1)).await;
    let release = worker.steps.hold(5);
    stream.say(plan(1, [step(4), step(5), step(6)])).await;
    assert_eq!(reported(stream.next().await).step, Step(4));
    for k in 1..=5 {
        worker.begins(k).await;
    }
    drop(stream);

    // Nobody aborted step 5: it is finished, step 6 is not begun.
    let mut stream = fake.stream().await;
    let hello = stream.hello().await;
    assert_eq!(hello.run_id.as_deref(), Some("run"));
    stream.say(ToWorker::Welcome(welcome(run_dir.path(), ""))).await;
    release.send(()).unwrap();
    let again = stream.ready().await;
    assert!(again.state == Some(base(1, 5)) || again.state == Some(base(1, 6)), "{again:?}");
    let last = again.state.unwrap().step.0;
    for k in 2..=last {
        assert_eq!(reported(stream.next().await).step, Step(k));
    }
    stream.say(open(2, base(1, last), Source::Held, "w", &again.addresses)).await;
    assert_eq!(stream.next().await, synced(2, hash_after(last, 1)));
    stream.say(plan(2, [step(last + 1)])).await;
    let report = reported(stream.next().await);
    assert_eq!((report.generation, report.loss), (Generation(2), value_after(last + 1, 1) as f64));
    stream.say(ToWorker::Finish(Finish { code: ExitCode::Done, reason: "done".into() })).await;
    drop(stream);
    assert_eq!(worker.end().await.code, ExitCode::Done);
}

#[tokio::test]
async fn close_is_answered_with_the_state_held_and_old_plans_are_refused() {
    let run_dir = run_dir();
    let mut fake = Fake::start().await;
    let worker = Worker::start(fake.config("w", 1));
    let mut stream = fake.stream().await;
    let (_, ready) = stream.welcome(run_dir.path()).await;
    stream.say(open(1, base(0, 0), Source::Init, "w", &ready.addresses)).await;
    assert_eq!(stream.next().await, synced(1, hash_after(0, 1)));
    stream.say(plan(1, [step(1)])).await;
    assert_eq!(reported(stream.next().await).step, Step(1));
    stream.say(close(1)).await;
    assert_eq!(stream.next().await, halted(1, Some(base(1, 1))));
    stream.say(plan(1, [step(2)])).await;
    stream.say(open(2, base(1, 1), Source::Held, "w", &ready.addresses)).await;
    stream.say(plan(1, [step(2)])).await;
    assert_eq!(stream.next().await, synced(2, hash_after(1, 1)));
    stream.say(plan(2, [step(2)])).await;
    let report = reported(stream.next().await);
    assert_eq!((report.generation, report.step), (Generation(2), Step(2)));
    stream.say(ToWorker::Finish(Finish { code: ExitCode::TempFail, reason: "stopped".into() })).await;
    drop(stream);
    assert_eq!(worker.end().await.code, ExitCode::TempFail);
}

#[tokio::test]
async fn without_the_run_directory_checkpoints_go_through_the_coordinator_both_ways() {
    let elsewhere = tempfile::tempdir().unwrap(); // no nonce
    let mut fake = Fake::start().await;
    let worker = Worker::start(fake.config("w", 1));
    let mut stream = fake.stream().await;
    let (_, ready) = stream.welcome(elsewhere.path()).await;
    assert!(!ready.sees_run_dir);
    stream.say(open(1, base(0, 0), Source::Init, "w", &ready.addresses)).await;
    assert_eq!(stream.next().await, synced(1, hash_after(0, 1)));
    stream.say(plan(1, [step(1), PlanItem::Checkpoint { step: Step(1), epoch: Epoch(1) }])).await;
    assert_eq!(reported(stream.next().await).step, Step(1));

    let Transfer::Uploaded(parts) = fake.transfer().await else { panic!("expected an upload") };
    let UploadPart::Header(header) = &parts[0] else { panic!("{:?}", parts[0]) };
    assert_eq!((header.dir.as_str(), header.run_id.as_str(), header.state), ("step-1", "run", base(1, 1)));
    let stored = tempfile::tempdir().unwrap();
    for part in &parts[1..] {
        let UploadPart::Chunk { file, bytes } = part else { panic!("{part:?}") };
        std::fs::write(stored.path().join(&header.files[*file as usize].name), bytes).unwrap();
    }
    assert_eq!(checkpoint::read(stored.path()).unwrap().manifest.state(), base(1, 1));
    assert!(matches!(stream.next().await, Some(FromWorker::CheckpointSaved(saved)) if saved.dir == "step-1"));

    // Back to it, as after the loss of everyone.
    stream.say(close(1)).await;
    assert_eq!(stream.next().await, halted(1, Some(base(1, 1))));
    let source = Source::Checkpoint { dir: "step-1".into() };
    stream.say(open(2, base(1, 1), source, "w", &ready.addresses)).await;
    let Transfer::Asked(dir, sender) = fake.transfer().await else { panic!("expected a download") };
    assert_eq!(dir, "step-1");
    serve(stored.path(), sender).await;
    assert_eq!(stream.next().await, synced(2, hash_after(1, 1)));
    stream.say(ToWorker::Finish(Finish { code: ExitCode::Done, reason: "done".into() })).await;
    drop(stream);
    worker.end().await;
}

#[tokio::test]
async fn a_checkpoint_that_cannot_be_written_ends_the_worker_with_73() {
    let run_dir = run_dir();
    std::fs::write(run_dir.path().join("checkpoints"), "a file where a folder should be").unwrap();
    let mut fake = Fake::start().await;
    let worker = Worker::start(fake.config("w", 1));
    let mut stream = fake.stream().await;
    let (_, ready) = stream.welcome(run_dir.path()).await;
    stream.say(open(1, base(0, 0), Source::Init, "w", &ready.addresses)).await;
    assert_eq!(stream.next().await, synced(1, hash_after(0, 1)));
    stream.say(plan(1, [PlanItem::Checkpoint { step: Step(0), epoch: Epoch(0) }])).await;
    match stream.next().await {
        Some(FromWorker::Left(left)) => {
            assert_eq!(left.code, ExitCode::CantCreate);
            assert!(left.reason.contains("checkpoints"), "{left:?}");
        }
        other => panic!("{other:?}"),
    }
    drop(stream);
    assert_eq!(worker.end().await.code, ExitCode::CantCreate);
}

#[tokio::test]
async fn a_damaged_checkpoint_is_reported_with_its_file_and_the_process_stays() {
    let run_dir = run_dir();
    let mut fake = Fake::start().await;
    let worker = Worker::start(fake.config("w", 1));
    let mut stream = fake.stream().await;
    let (_, ready) = stream.welcome(run_dir.path()).await;
    stream.say(open(1, base(0, 0), Source::Init, "w", &ready.addresses)).await;
    assert_eq!(stream.next().await, synced(1, hash_after(0, 1)));
    stream.say(plan(1, [PlanItem::Checkpoint { step: Step(0), epoch: Epoch(0) }])).await;
    assert!(matches!(stream.next().await, Some(FromWorker::CheckpointSaved(_))));
    let file = run_dir.path().join("checkpoints/step-0/model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let source = Source::Checkpoint { dir: "step-0".into() };
    stream.say(open(2, base(0, 0), source, "w", &ready.addresses)).await;
    match stream.next().await {
        Some(FromWorker::CheckpointBad(bad)) => {
            assert_eq!((bad.generation, bad.dir.as_str()), (Generation(2), "step-0"));
            assert!(bad.reason.contains("model.safetensors"), "{}", bad.reason);
        }
        other => panic!("{other:?}"),
    }
    stream.say(close(2)).await;
    assert_eq!(stream.next().await, halted(2, Some(base(0, 0))));
    stream.say(open(3, base(0, 0), Source::Held, "w", &ready.addresses)).await;
    assert_eq!(stream.next().await, synced(3, hash_after(0, 1)));
    stream.say(ToWorker::Finish(Finish { code: ExitCode::Done, reason: "enough".into() })).await;
    drop(stream);
    assert_eq!(worker.end().await.code, ExitCode::Done);
}

#[tokio::test]
async fn what_the_coordinator_refuses_is_the_end_with_its_code_and_reason() {
    let run_dir = run_dir();
    let mut fake = Fake::start().await;
    let mut config = fake.config("w", 1);
    config.fault_canary = true;
    let worker = Worker::start(config);
    let mut stream = fake.stream().await;
    let (_, ready) = stream.welcome(run_dir.path()).await;
    assert_eq!(ready.canary.as_deref(), Some("1c"), "the fault shows");
    stream.say(ToWorker::Refused(Refused { code: ExitCode::Config, reason: "canary differs".into() })).await;
    drop(stream);
    let exit = worker.end().await;
    assert_eq!((exit.code, exit.reason.as_str()), (ExitCode::Config, "canary differs"));

    let mut config = fake.config("w", 1);
    config.coordinator = lockstep_worker::connect::Coordinator::new(&fake.url, Some("wrong")).unwrap();
    let exit = Worker::start(config).end().await;
    assert_eq!(exit.code, ExitCode::NoPermission);
    assert!(exit.reason.contains("LOCKSTEP_TOKEN"), "{exit}");
}

#[tokio::test]
async fn missing_data_is_told_before_leaving() {
    let run_dir = run_dir();
    let mut fake = Fake::start().await;
    let worker = Worker::start(fake.config("w", 1));
    let mut stream = fake.stream().await;
    stream.hello().await;
    stream.say(ToWorker::Welcome(welcome(run_dir.path(), "[data]\npath = \"missing\""))).await;
    match stream.next().await {
        Some(FromWorker::Left(left)) => assert_eq!(left.code, ExitCode::NoInput),
        other => panic!("{other:?}"),
    }
    drop(stream);
    assert_eq!(worker.end().await.code, ExitCode::NoInput);
}

#[tokio::test]
async fn signs_of_life_count_what_replicas_do() {
    let run_dir = run_dir();
    let mut fake = Fake::start().await;
    let mut worker = Worker::start(fake.config("w", 2));
    let release = worker.steps.hold(2);
    let mut stream = fake.stream().await;
    let (_, ready) = stream.welcome(run_dir.path()).await;
    stream.say(open(1, base(0, 0), Source::Init, "w", &ready.addresses)).await;
    stream.say(plan(1, [step(1), step(2), step(3)])).await;
    let mut progress = async |is_wanted: &dyn Fn(&Progress) -> bool| loop {
        match stream.next_of_any_kind().await {
            Some(FromWorker::Progress(progress)) if is_wanted(&progress) => return progress,
            Some(_) => {}
            None => panic!("it hung up"),
        }
    };
    for k in [1, 1, 2, 2] {
        worker.begins(k).await;
    }
    // One replica is held before its collective, so the other waits for it: which is which can be told.
    let waits = |progress: &Progress| progress.ranks.iter().filter(|rank| rank.is_waiting).count() == 1;
    let held = progress(&waits).await;
    assert_eq!((held.generation, held.ranks.len()), (Generation(1), 2));
    let still = progress(&|_| true).await;
    assert_eq!(still, held, "nobody gets on");
    release.send(()).unwrap();
    let after = progress(&|progress| progress.ranks.iter().all(|rank| !rank.is_waiting)).await;
    assert!(after.ranks.iter().zip(&held.ranks).all(|(after, held)| after.beats > held.beats), "{after:?} {held:?}");
}

#[tokio::test]
async fn a_replica_that_hangs_ends_its_process_when_it_was_told_to_halt() {
    let run_dir = run_dir();
    let mut fake = Fake::start().await;
    let mut worker = Worker::start(Config { halt: Duration::from_millis(600), ..fake.config("w", 1) });
    let _hung = worker.steps.hold(1);
    let mut stream = fake.stream().await;
    let (_, ready) = stream.welcome(run_dir.path()).await;
    stream.say(open(1, base(0, 0), Source::Init, "w", &ready.addresses)).await;
    stream.say(plan(1, [step(1)])).await;
    worker.begins(1).await;
    stream.say(close(1)).await;
    let exit = worker.end().await;
    assert_eq!(exit.code, ExitCode::Software);
    assert!(exit.reason.contains("replica 0 did not stop within 0.6 s"), "{exit}");
}
