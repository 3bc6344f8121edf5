//! Several ranks over TCP and over NCCL (its test double), in one process and in two, against a coordinator that follows a script.
#![allow(clippy::unwrap_used)] // helpers of tests are tests too

mod support;

use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Rank, Step};
use lockstep_proto::message::{Drain, FromWorker, Source, ToWorker};
use lockstep_worker::door::Transport;
use lockstep_worker::session::{Config, Signal};
use support::*;

#[tokio::test]
async fn replicas_of_one_process_train_together_and_stop_behind_the_same_step() {
    stop_together(Transport::Tcp).await;
}

#[tokio::test]
async fn over_nccl_replicas_of_one_process_train_together_and_stop_behind_the_same_step() {
    stop_together(over_nccl()).await;
}

async fn stop_together(transport: Transport) {
    let run_dir = run_dir();
    let mut fake = Fake::start().await;
    let mut worker = Worker::start(Config { transport: transport.clone(), ..fake.config("w", 2) });
    let release = worker.steps.hold(3);
    let mut stream = fake.stream().await;
    let (hello, ready) = stream.welcome(run_dir.path()).await;
    assert_eq!((hello.devices.len(), ready.addresses.len()), (2, 2));
    stream.say(open(1, base(0, 0), Source::Init, "w", &ready.addresses)).await;
    assert_eq!(stream.next().await, synced(1, hash_after(0, 2)));
    stream.say(plan(1, (1..=9).map(step))).await;
    for k in [1, 1, 2, 2, 3, 3] {
        worker.begins(k).await;
    }
    worker.signals.send(Signal("SIGUSR1")).await.unwrap();
    let mut seen = Vec::new();
    let left = loop {
        match stream.next_of_any_kind().await {
            Some(FromWorker::Reported(report)) => {
                assert_eq!(report.loss, value_after(report.step.0, 2) as f64);
                seen.push((report.step, report.rank));
            }
            Some(FromWorker::Leaving(_)) => {
                stream.say(ToWorker::Drain(Drain { reason: "you may".into() })).await;
                release.send(()).unwrap();
            }
            Some(FromWorker::Left(left)) => break left,
            Some(FromWorker::Progress(_)) => {}
            other => panic!("{other:?}"),
        }
    };
    seen.sort_unstable();
    // At least step 3, which was in hand; whatever the last is, it is the same for both.
    let last = seen.len() as u64 / 2;
    assert!(last >= 3, "{seen:?}");
    assert_eq!(seen, (1..=last).flat_map(|k| [(Step(k), Rank(0)), (Step(k), Rank(1))]).collect::<Vec<_>>());
    assert_eq!(left.code, ExitCode::TempFail);
    drop(stream);
    assert_eq!(worker.end().await.code, ExitCode::TempFail);
}

#[tokio::test]
async fn a_newcomer_is_healed_and_close_interrupts_a_blocked_collective_at_once() {
    heal_and_close(Transport::Tcp).await;
}

#[tokio::test]
async fn over_nccl_a_newcomer_is_healed_and_close_interrupts_a_blocked_collective_at_once() {
    heal_and_close(over_nccl()).await;
}

async fn heal_and_close(transport: Transport) {
    let run_dir = run_dir();
    let mut fake = Fake::start().await;
    let a = Worker::start(Config { transport: transport.clone(), ..fake.config("a", 1) });
    let mut to_a = fake.stream().await;
    let (_, ready_a) = to_a.welcome(run_dir.path()).await;
    to_a.say(open(1, base(0, 0), Source::Init, "a", &ready_a.addresses)).await;
    assert_eq!(to_a.next().await, synced(1, hash_after(0, 1)));
    to_a.say(plan(1, [step(1)])).await;
    assert_eq!(reported(to_a.next().await).step, Step(1));
    to_a.say(close(1)).await;
    assert_eq!(to_a.next().await, halted(1, Some(base(1, 1))));

    let mut b = Worker::start(Config { transport: transport.clone(), ..fake.config("b", 1) });
    let mut to_b = fake.stream().await;
    let (_, ready_b) = to_b.welcome(run_dir.path()).await;
    assert_eq!(ready_b.state, None);
    let workers: [(&str, &[String]); 2] = [("a", &ready_a.addresses), ("b", &ready_b.addresses)];
    let open = open_world(2, base(1, 1), Source::Held, &workers);
    to_a.say(open.clone()).await;
    to_b.say(open).await;
    for stream in [&mut to_a, &mut to_b] {
        assert_eq!(stream.next().await, synced(2, hash_after(1, 1)));
    }
    let release = b.steps.hold(3);
    for stream in [&to_a, &to_b] {
        stream.say(plan(2, [step(2), step(3), step(4)])).await;
    }
    let (first, second) = (reported(to_a.next().await), reported(to_b.next().await));
    assert_eq!((first.loss, first.rank, second.rank), (second.loss, Rank(0), Rank(1)));

    // `b` does not take part in step 3, so `a` waits for it; the deadline is minutes away.
    b.begins(2).await;
    b.begins(3).await;
    to_a.say(close(2)).await;
    assert_eq!(to_a.next().await, halted(2, Some(base(2, 2))));
    // `b` was not told: it finds out, and says so. What `a` had sent for step 3 may suffice to finish that, and is then
    // as good as any; step 4 it cannot.
    release.send(()).unwrap();
    let mut message = to_b.next().await;
    let mut last = 2;
    if let Some(FromWorker::Reported(report)) = &message {
        assert_eq!((report.step, report.loss), (Step(3), first.loss * 31.0 + 4.0), "rank 1 adds 1");
        last = 3;
        message = to_b.next().await;
    }
    match message {
        Some(FromWorker::Complained(complaint)) => {
            assert_eq!((complaint.rank, complaint.culprit, complaint.step), (Rank(1), Some(Rank(0)), Step(last + 1)));
        }
        other => panic!("{other:?}"),
    }
    to_b.say(close(2)).await;
    assert_eq!(to_b.next().await, halted(2, Some(base(2, last))), "a failed collective never reaches the state");
    for (worker, stream) in [(a, to_a), (b, to_b)] {
        worker.signals.send(Signal("SIGTERM")).await.unwrap();
        drop(stream);
        assert_eq!(worker.end().await.code, ExitCode::TempFail);
    }
}

#[tokio::test]
async fn close_interrupts_the_wait_for_a_rank_that_never_comes() {
    close_before_anyone_comes(Transport::Tcp).await;
}

#[tokio::test]
async fn over_nccl_close_interrupts_the_wait_for_a_rank_that_never_comes() {
    close_before_anyone_comes(over_nccl()).await;
}

async fn close_before_anyone_comes(transport: Transport) {
    let run_dir = run_dir();
    let mut fake = Fake::start().await;
    let worker = Worker::start(Config { transport: transport.clone(), ..fake.config("a", 1) });
    let mut stream = fake.stream().await;
    let (_, ready) = stream.welcome(run_dir.path()).await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    stream.say(open_world(1, base(0, 0), Source::Init, &[("a", &ready.addresses), ("b", &[nobody])])).await;
    stream.say(close(1)).await;
    assert_eq!(stream.next().await, halted(1, None));
    stream.say(open(2, base(0, 0), Source::Init, "a", &ready.addresses)).await;
    assert_eq!(stream.next().await, synced(2, hash_after(0, 1)));
    worker.signals.send(Signal("SIGTERM")).await.unwrap();
    drop(stream);
    worker.end().await;
}
