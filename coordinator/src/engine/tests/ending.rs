//! Complete, stopped, unable to write.

use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Lineage, StateId, Step};
use lockstep_proto::message::{Finish, PlanItem, ToWorker};
use lockstep_proto::recipe::Recipe;

use super::script::*;
use crate::engine::{Effect, EngineError, Event, History, Record};

fn short() -> Recipe {
    let mut recipe = recipe();
    recipe.train.max_steps = 2;
    recipe
}

fn stop() -> Event {
    Event::StopRequested { code: ExitCode::TempFail, reason: "SIGTERM".into() }
}

#[test]
fn a_run_is_done_when_its_last_step_is_evaluated_saved_and_durable() {
    let mut script = Script::new(short());
    script.join(&[1]);
    let open = script.train(&[1]);
    script.pass_step_0(&[1], &open);
    let g = open.generation;
    script.hear(1, report(g, 0, 1));
    script.hear(1, report(g, 0, 2));
    let last = StateId { lineage: Lineage(1), generation: g, step: Step(2) };
    assert_eq!(records(&script.hear(1, saved(g, last, 1))), [], "its evaluation comes first");
    let written = records(&script.hear(1, evaluation(g, 0, 1, 2)));
    assert!(matches!(
        written[..],
        [Record::Evaluated { .. }, Record::EpochEnded { .. }, Record::CheckpointSaved { .. }]
    ));
    let effects = script.persist();
    let finished = Record::Finished { step: Step(2), state_sha256: "state-2".into() };
    assert!(records(&effects).contains(&finished), "{effects:?}");
    assert_eq!(ended(&effects), None);
    let effects = script.persist();
    assert_eq!(ended(&effects).map(|(code, _)| code), Some(ExitCode::Done));
    assert!(matches!(&messages(&effects, 1)[..], [ToWorker::Finish(Finish { code: ExitCode::Done, .. })]));
    assert!(matches!(effects.last(), Some(Effect::End { .. })), "nothing follows the end");
}

#[test]
fn a_stop_finishes_what_is_planned_saves_it_and_ends_with_75() {
    let mut script = Script::new(recipe());
    script.join(&[1]);
    let open = script.train(&[1]);
    script.pass_step_0(&[1], &open);
    let g = open.generation;
    script.hear(1, report(g, 0, 1));
    let effects = script.on(stop());
    assert_eq!(planned(&effects, 1), [], "step 4 ends an epoch and is saved anyway");
    for step in 2..=4 {
        script.hear(1, report(g, 0, step));
    }
    script.hear(1, evaluation(g, 0, 1, 4));
    for step in [3, 4] {
        let state = StateId { lineage: Lineage(1), generation: g, step: Step(step) };
        assert_eq!(ended(&script.hear(1, saved(g, state, 1))), None);
    }
    let effects = script.persist();
    assert_eq!(ended(&effects).map(|(code, _)| code), Some(ExitCode::TempFail));
    assert!(!records(&effects).iter().any(|record| matches!(record, Record::Finished { .. })));
}

#[test]
fn a_stop_where_nothing_would_be_saved_adds_a_checkpoint() {
    let mut recipe = recipe();
    recipe.train.window = 2;
    let mut script = Script::new(recipe);
    script.join(&[1]);
    let open = script.train(&[1]);
    script.pass_step_0(&[1], &open);
    let effects = script.on(stop());
    assert_eq!(planned(&effects, 1), [PlanItem::Checkpoint { step: Step(2), epoch: lockstep_proto::ids::Epoch(1) }]);
}

#[test]
fn a_second_stop_ends_at_once() {
    let mut script = Script::new(recipe());
    script.join(&[1]);
    script.train(&[1]);
    assert_eq!(ended(&script.on(stop())), None);
    assert_eq!(ended(&script.on(stop())).map(|(code, _)| code), Some(ExitCode::TempFail));
}

#[test]
fn a_stop_while_nobody_trains_ends_at_once() {
    let mut script = Script::new(recipe());
    assert_eq!(ended(&script.on(stop())).map(|(code, _)| code), Some(ExitCode::TempFail));
}

#[test]
fn a_store_that_fails_ends_the_run_with_73_and_tells_everyone() {
    let mut script = Script::new(recipe());
    script.join(&[1]);
    let effects = script.on(Event::StoreFailed { reason: "run.db: disk full".into() });
    assert_eq!(ended(&effects), Some((ExitCode::CantCreate, "run.db: disk full".into())));
    assert!(matches!(&messages(&effects, 1)[..], [ToWorker::Finish(Finish { code: ExitCode::CantCreate, .. })]));
    assert_eq!(records(&effects), []);
}

#[test]
fn a_history_without_a_checkpoint_that_loads_is_refused_with_65() {
    let history = History { committed: Step(9), ..History::default() };
    let error = crate::engine::Engine::new(config(recipe()), history).map(|_| ()).expect_err("no state to go on from");
    assert_eq!(error, EngineError::NoCheckpoint { committed: Step(9) });
    assert_eq!(error.exit_code(), ExitCode::Data);
}
