//! Who is alive is told by its work; a silent one is cut off, a slow one is left alone, a leaving one is let go in order.

use std::time::Duration;

use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::Generation;
use lockstep_proto::message::{Drain, FromWorker, Halted, Leaving, Open, ToWorker};

use super::script::*;
use crate::engine::{Effect, Event, StreamId};

/// Two workers with step 1 committed and more to do.
fn two() -> (Script, Open) {
    let mut script = Script::new(recipe());
    let open = script.both();
    script.hear(1, report(open.generation, 0, 1));
    script.hear(2, report(open.generation, 1, 1));
    script.persist();
    (script, open)
}

/// Seconds go by, with what each worker says at each; until something follows.
fn pass(script: &mut Script, seconds: u64, says: impl Fn(u64) -> Vec<(u64, FromWorker)>) -> Option<(u64, Vec<Effect>)> {
    for second in 1..=seconds {
        script.now += Duration::from_secs(1);
        let said = says(second).into_iter().map(|(from, message)| script.hear(from, message)).collect::<Vec<_>>();
        let effects: Vec<Effect> = said.into_iter().flatten().chain(script.on(Event::Tick)).collect();
        if !effects.is_empty() {
            return Some((second, effects));
        }
    }
    None
}

fn closes(effects: &[Effect], stream: u64) -> String {
    match &messages(effects, stream)[..] {
        [ToWorker::Close(close)] => close.reason.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_stopped_process_is_cut_off_within_ten_seconds_and_heals_when_it_comes_back() {
    let (mut script, open) = two();
    let g = open.generation;
    let (second, effects) = pass(&mut script, 20, |s| vec![(1, progress(g, 0, s, true))]).expect("an end");
    assert!((9..=10).contains(&second), "after {second} s");
    assert!(effects.contains(&Effect::Hangup { stream: StreamId(2) }));
    assert!(closes(&effects, 1).contains("worker w2") && closes(&effects, 1).contains("was not heard of for 9 s"));
    let detail = notes(&effects, "lost")[0].to_string();
    assert!(detail.contains("stopped"), "{detail}");
    script.hear(1, FromWorker::Halted(Halted { generation: g, state: Some(open.base) }));
    let alone = script.train(&[1]);

    // It wakes up, with a state that nobody else ever had.
    let mut hello = hello("w2");
    hello.run_id = Some("run".into());
    script.connect(3, hello);
    script.hear(3, report(g, 1, 2));
    assert!(committed(&script.effects).is_empty(), "what it reports of a closed generation counts for nothing");
    let mut ready = ready();
    ready.state = Some(lockstep_proto::ids::StateId { generation: g, step: lockstep_proto::ids::Step(4), ..open.base });
    let effects = script.hear(3, FromWorker::Ready(ready));
    assert!(closes(&effects, 1).contains("worker w2 joins"));
    script.hear(1, FromWorker::Halted(Halted { generation: alone.generation, state: Some(alone.base) }));
    let both = opened(&script.persist()).expect("a generation of both");
    assert_eq!((both.base, both.members.len()), (alone.base, 2), "a higher step is no claim");
}

#[test]
fn a_hung_trainer_is_cut_off_although_its_process_talks() {
    let (mut script, open) = two();
    let g = open.generation;
    let says = |s| vec![(1, progress(g, 0, s, true)), (2, progress(g, 1, 7, false))];
    let (second, effects) = pass(&mut script, 20, says).expect("an end");
    assert!((9..=11).contains(&second), "after {second} s");
    assert!(effects.contains(&Effect::Hangup { stream: StreamId(2) }));
    assert!(closes(&effects, 1).contains("it hangs") && closes(&effects, 1).contains("rank 1"), "{effects:?}");
}

#[test]
fn whoever_gets_on_is_left_alone_however_slow() {
    let (mut script, open) = two();
    let g = open.generation;
    let says = |s| vec![(1, progress(g, 0, 3, true)), (2, progress(g, 1, s / 8, false))];
    assert_eq!(pass(&mut script, 290, says), None);
}

#[test]
fn where_all_wait_for_one_another_the_step_timeout_ends_the_generation() {
    let (mut script, open) = two();
    let g = open.generation;
    script.hear(1, report(g, 0, 2));
    let says = |_| vec![(1, progress(g, 0, 3, true)), (2, progress(g, 1, 3, true))];
    let (second, effects) = pass(&mut script, 400, says).expect("an end");
    assert!((299..=302).contains(&second), "after {second} s");
    assert!(closes(&effects, 1).contains("rank 1 (worker w2) reported nothing after step 1"), "{effects:?}");
}

#[test]
fn patience_grows_with_the_length_of_a_step() {
    let mut script = Script::new(recipe());
    let open = script.both();
    for rank in [0, 1] {
        let mut report = step_report(open.generation, rank, 1);
        report.times.wall = 10.0;
        script.hear(u64::from(rank) + 1, FromWorker::Reported(report));
    }
    script.persist();
    let g = open.generation;
    let (second, _) = pass(&mut script, 100, |s| vec![(1, progress(g, 0, s, true))]).expect("an end");
    assert!((45..=46).contains(&second), "after {second} s");
}

#[test]
fn signs_of_life_of_an_older_generation_or_of_others_ranks_do_not_count_as_work() {
    let (mut script, open) = two();
    let g = open.generation;
    let says = |s| {
        let old = Generation(g.0 - 1);
        vec![(1, progress(g, 0, s, true)), (1, progress(g, 1, s, false)), (2, progress(old, 1, s, false))]
    };
    let (second, effects) = pass(&mut script, 20, says).expect("an end");
    assert!((9..=11).contains(&second) && effects.contains(&Effect::Hangup { stream: StreamId(2) }), "{second}");
}

fn leaving() -> FromWorker {
    FromWorker::Leaving(Leaving { reason: "SIGTERM".into() })
}

#[test]
fn whoever_is_not_needed_may_go_at_once_and_the_last_one_saves_first() {
    let (mut script, open) = two();
    let effects = script.hear(2, leaving());
    assert_eq!(messages(&effects, 2), [ToWorker::Drain(Drain { reason: "SIGTERM".into() })]);
    assert_eq!(messages(&effects, 1), [], "nobody else is disturbed before it goes");
    let effects = script.hear(1, leaving());
    assert!(closes(&effects, 1).contains("worker w1 leaves (SIGTERM), and 0 would be left of elastic.min_workers = 1"));
    let state =
        lockstep_proto::ids::StateId { step: lockstep_proto::ids::Step(1), generation: open.generation, ..open.base };
    script.hear(2, FromWorker::Halted(Halted { generation: open.generation, state: Some(state) }));
    script.hear(1, FromWorker::Halted(Halted { generation: open.generation, state: Some(state) }));
    let open = script.train(&[1, 2]);
    script.hear(1, saved(open.generation, state, 1));
    let (code, reason) = ended(&script.persist()).expect("an end");
    assert_eq!(code, ExitCode::TempFail);
    assert!(reason.contains("--resume"), "{reason}");
}

#[test]
fn a_signal_to_everybody_at_once_does_not_cost_what_was_reached() {
    let stop = || Event::StopRequested { code: ExitCode::TempFail, reason: "SIGUSR1".into() };
    let (mut script, open) = two();
    script.hear(2, leaving());
    assert!(closes(&script.hear(1, leaving()), 1).contains("would be left"));
    assert_eq!(ended(&script.on(stop())), None, "heard after the workers, it is still the first request");
    let state =
        lockstep_proto::ids::StateId { step: lockstep_proto::ids::Step(1), generation: open.generation, ..open.base };
    for stream in [2, 1] {
        script.hear(stream, FromWorker::Halted(Halted { generation: open.generation, state: Some(state) }));
    }
    let open = script.train(&[1, 2]);
    script.hear(1, saved(open.generation, state, 1));
    assert!(ended(&script.persist()).is_some_and(|(code, _)| code == ExitCode::TempFail));

    let (mut script, _) = two();
    script.hear(2, leaving());
    script.hear(1, leaving());
    script.on(stop());
    assert!(ended(&script.on(stop())).is_some(), "the second request is at once");
}

#[test]
fn a_checkpoint_that_its_leader_cannot_load_gives_way_to_the_one_before() {
    let (mut script, open) = two();
    let g = open.generation;
    for step in 2..=3 {
        script.hear(1, report(g, 0, step));
        script.hear(2, report(g, 1, step));
    }
    let state = lockstep_proto::ids::StateId { step: lockstep_proto::ids::Step(3), generation: g, ..open.base };
    script.hear(1, saved(g, state, 1));
    script.persist();
    for stream in [1, 2] {
        script.on(Event::Disconnected { stream: StreamId(stream), reason: "power cut".into() });
    }
    script.connect(3, hello("w3"));
    script.hear(3, FromWorker::Ready(ready()));
    let open = opened(&script.persist()).expect("a generation");
    assert_eq!(open.base, state);
    let bad = |generation, dir: &str| {
        let reason = "model.safetensors: hash differs".into();
        FromWorker::CheckpointBad(lockstep_proto::message::CheckpointBad { generation, dir: dir.into(), reason })
    };
    assert_eq!(script.hear(3, bad(open.generation, "step-0")), [], "not the one that it was to load");
    assert_eq!(script.hear(3, bad(g, "step-3")), [], "fenced");
    let effects = script.hear(3, bad(open.generation, "step-3"));
    assert!(closes(&effects, 3).contains("model.safetensors: hash differs"));
    assert_eq!(notes(&effects, "checkpoint_bad").len(), 1);
    script.hear(3, FromWorker::Halted(Halted { generation: open.generation, state: None }));
    let open = opened(&script.persist()).expect("another generation");
    assert_eq!(open.base.step, lockstep_proto::ids::Step(0), "rolled back further");
}
