//! Complete, stopped, unable to write.

use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Epoch, Lineage, StateId, Step};
use lockstep_proto::message::{Finish, FromWorker, Halted, PlanItem, ToWorker};
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
fn a_stop_interrupts_what_is_planned_saves_what_was_reached_and_ends_with_75() {
    let mut script = Script::new(recipe());
    let open = script.both();
    let g = open.generation;
    script.hear(1, report(g, 0, 1));
    script.hear(2, report(g, 1, 1));
    script.hear(2, report(g, 1, 2));
    let effects = script.on(stop());
    assert!(matches!(messages(&effects, 1)[..], [ToWorker::Close(_)]), "not the whole window first: {effects:?}");
    let reached = StateId { lineage: Lineage(1), generation: g, step: Step(2) };
    script.hear(1, FromWorker::Halted(Halted { generation: g, state: Some(StateId { step: Step(1), ..reached }) }));
    assert_eq!(ended(&script.effects), None, "the other may hold more");
    script.hear(2, FromWorker::Halted(Halted { generation: g, state: Some(reached) }));
    let open = script.train(&[1, 2]);
    assert_eq!(open.base, reached);
    assert_eq!(planned(&script.effects, 1), [PlanItem::Checkpoint { step: Step(2), epoch: Epoch(1) }]);
    script.hear(1, saved(open.generation, reached, 1));
    let effects = script.persist();
    assert_eq!(ended(&effects).map(|(code, _)| code), Some(ExitCode::TempFail));
    assert!(!records(&effects).iter().any(|record| matches!(record, Record::Finished { .. })));
}

#[test]
fn a_stop_waits_for_no_evaluation() {
    let mut script = Script::new(recipe());
    script.join(&[1]);
    let open = script.train(&[1]);
    script.pass_step_0(&[1], &open);
    let g = open.generation;
    (1..=4).for_each(|step| drop(script.hear(1, report(g, 0, step))));
    script.persist();
    script.on(stop());
    let reached = StateId { lineage: Lineage(1), generation: g, step: Step(4) };
    script.hear(1, FromWorker::Halted(Halted { generation: g, state: Some(reached) }));
    let open = script.train(&[1]);
    assert_eq!(planned(&script.effects, 1), [PlanItem::Checkpoint { step: Step(4), epoch: Epoch(1) }]);
    script.hear(1, saved(open.generation, reached, 1));
    assert_eq!(ended(&script.persist()).map(|(code, _)| code), Some(ExitCode::TempFail));
}

#[test]
fn a_stop_with_nothing_in_hand_saves_where_it_is() {
    let mut recipe = recipe();
    recipe.train.evaluate_first = false;
    let mut script = Script::new(recipe);
    script.join(&[1]);
    let open = script.train(&[1]);
    // Nothing is planned before step 0 is saved.
    assert_eq!(messages(&script.on(stop()), 1), []);
    script.hear(1, saved(open.generation, open.base, 0));
    assert_eq!(ended(&script.persist()).map(|(code, _)| code), Some(ExitCode::TempFail));
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
