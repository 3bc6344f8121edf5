//! Nobody waits for ever: every wait has a deadline and an error that names the culprit.

use lockstep_proto::exit::ExitCode;
use lockstep_proto::message::{FromWorker, Halted, ToWorker};

use super::script::*;
use crate::engine::{Effect, Event, StreamId};

#[test]
fn nobody_joins_in_time_69() {
    let mut recipe = recipe();
    recipe.elastic.min_workers = 2;
    let mut script = Script::new(recipe);
    script.join(&[1]);
    let (code, reason) = ended(&script.wait()).expect("an end");
    assert_eq!(code, ExitCode::Unavailable);
    assert!(reason.contains("1 of elastic.min_workers = 2"), "{reason}");
    assert_eq!(script.engine.next_deadline(), None);
}

#[test]
fn too_few_are_left_75_naming_the_lost_one_and_resume() {
    let mut recipe = recipe();
    recipe.elastic.min_workers = 2;
    let mut script = Script::new(recipe);
    script.join(&[1, 2]);
    let open = script.train(&[1, 2]);
    script.pass_step_0(&[1, 2], &open);
    script.on(Event::Disconnected { stream: StreamId(2), reason: "connection reset".into() });
    script.hear(1, FromWorker::Halted(Halted { generation: open.generation, state: Some(open.base) }));
    let waiting = notes(&script.effects, "waiting");
    assert_eq!(waiting.len(), 1, "whoever watches is told: {:?}", script.effects);
    assert_eq!(waiting[0]["because"], "1 of elastic.min_workers = 2 workers are there");
    assert_eq!(notes(&script.persist(), "waiting").len(), 0, "once");
    let (code, reason) = ended(&script.wait()).expect("an end");
    assert_eq!(code, ExitCode::TempFail);
    for part in ["worker w2", "connection reset", "--resume", "1 of elastic.min_workers = 2"] {
        assert!(reason.contains(part), "{reason}");
    }
}

#[test]
fn a_rank_that_reports_nothing_before_the_first_step_is_named_and_one_that_does_not_halt_is_cut_off() {
    let mut recipe = recipe();
    recipe.elastic.min_workers = 2;
    let mut script = Script::new(recipe);
    script.join(&[1, 2]);
    let open = script.train(&[1, 2]);
    script.pass_step_0(&[1, 2], &open);
    script.hear(1, report(open.generation, 0, 1));
    script.persist();
    let effects = script.wait_for(&[1, 2]);
    let Some(ToWorker::Close(close)) = messages(&effects, 1).into_iter().next() else { panic!("{effects:?}") };
    assert!(close.reason.contains("rank 1 (worker w2)") && close.reason.contains("after step 0"), "{}", close.reason);
    script.hear(1, FromWorker::Halted(Halted { generation: open.generation, state: None }));
    let effects = script.wait_for(&[1, 2]);
    assert!(effects.contains(&Effect::Hangup { stream: StreamId(2) }), "{effects:?}");
    assert!(notes(&effects, "lost")[0].to_string().contains("did not halt"), "{effects:?}");
}

#[test]
fn a_rank_that_never_synchronises_closes_the_generation() {
    let mut script = Script::new(recipe());
    script.join(&[1]);
    script.persist();
    assert!(matches!(messages(&script.wait_for(&[1]), 1)[..], [ToWorker::Close(_)]));
}

#[test]
fn a_store_that_stays_silent_ends_the_run_with_73() {
    let mut script = Script::new(recipe());
    script.join(&[1]);
    let (code, _) = ended(&script.wait()).expect("an end");
    assert_eq!(code, ExitCode::CantCreate);
}

#[test]
fn a_checkpoint_that_is_never_written_costs_its_writer_the_membership() {
    let mut script = Script::new(recipe());
    script.join(&[1]);
    let open = script.train(&[1]);
    script.hear(1, evaluation(open.generation, 0, 0, 0));
    script.persist();
    let (code, reason) = refused(&script.wait_for(&[1]), 1).expect("sent away");
    assert_eq!(code, ExitCode::TempFail);
    assert!(reason.contains("step-0"), "{reason}");
}

#[test]
fn generations_that_fail_one_after_another_end_the_run() {
    let mut script = Script::new(recipe());
    script.join(&[1]);
    for _ in 0..9 {
        let open = script.train(&[1]);
        let complaint = lockstep_proto::message::Complaint {
            generation: open.generation,
            rank: lockstep_proto::ids::Rank(0),
            step: open.base.step,
            culprit: None,
            what: "no route to host".into(),
        };
        script.hear(1, FromWorker::Complained(complaint));
        script.hear(1, FromWorker::Halted(Halted { generation: open.generation, state: Some(open.base) }));
    }
    let open = script.train(&[1]);
    let effects = script.on(Event::Disconnected { stream: StreamId(1), reason: "gone".into() });
    let (code, reason) = ended(&effects).expect("an end");
    assert_eq!((code, open.generation.0), (ExitCode::TempFail, 10));
    assert!(reason.contains("gone") && reason.contains("--resume"), "{reason}");
}
