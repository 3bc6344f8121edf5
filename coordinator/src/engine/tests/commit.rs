//! The commit rule: when a step counts.

use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Generation, Lineage, Rank, SampleRange, StateId, Step};
use lockstep_proto::message::{Complaint, FromWorker, Halted, PlanItem, Source, ToWorker};
use lockstep_proto::recipe::Reduction;

use super::script::*;
use crate::engine::{Event, History, Record, StreamId};

fn two() -> (Script, lockstep_proto::message::Open) {
    let mut recipe = recipe();
    recipe.elastic.min_workers = 2;
    let mut script = Script::new(recipe);
    script.join(&[1, 2]);
    let open = script.train(&[1, 2]);
    (script, open)
}

fn state(generation: Generation, step: u64) -> StateId {
    StateId { lineage: Lineage(1), generation, step: Step(step) }
}

fn halt(script: &mut Script, stream: u64, generation: Generation, step: u64) -> Vec<crate::engine::Effect> {
    let state = if step == 0 { state(Generation(0), 0) } else { state(generation, step) };
    script.hear(stream, FromWorker::Halted(Halted { generation, state: Some(state) }))
}

#[test]
fn nobody_hears_of_a_generation_before_it_is_durable() {
    let mut script = Script::new(recipe());
    script.join(&[1]);
    assert_eq!(opened(&script.effects), None);
    let open = opened(&script.persist()).expect("now");
    assert_eq!((open.generation, open.lineage, open.source), (Generation(1), Lineage(1), Source::Init));
}

#[test]
fn the_first_step_is_planned_only_once_step_0_is_saved_and_durable() {
    let (mut script, open) = two();
    let first = planned(&script.effects, 1);
    assert!(matches!(first[..], [PlanItem::Evaluate { .. }, PlanItem::Checkpoint { .. }]), "{first:?}");
    for (rank, stream) in [(0, 1), (1, 2)] {
        script.hear(stream, evaluation(open.generation, rank, 0, 0));
    }
    assert!(planned(&script.hear(1, saved(open.generation, open.base, 0)), 1).is_empty());
    let items = planned(&script.persist(), 2);
    let steps: Vec<u64> = items
        .iter()
        .filter_map(|item| if let PlanItem::Step(plan) = item { Some(plan.step.0) } else { None })
        .collect();
    assert_eq!(steps, [1, 2, 3, 4], "a window ahead");
    assert!(items.contains(&PlanItem::Checkpoint { step: Step(3), epoch: lockstep_proto::ids::Epoch(1) }));
}

#[test]
fn a_step_counts_when_every_rank_reported_it_and_in_order() {
    let (mut script, open) = two();
    script.pass_step_0(&[1, 2], &open);
    let g = open.generation;
    assert_eq!(committed(&script.hear(1, report(g, 0, 1))), [0u64; 0]);
    assert_eq!(committed(&script.hear(1, report(g, 0, 2))), [0u64; 0]);
    let effects = script.hear(2, report(g, 1, 1));
    assert_eq!(committed(&effects), [1]);
    let Some(Record::Committed(step)) = records(&effects).into_iter().next() else { panic!("{effects:?}") };
    assert_eq!(step.shards, [SampleRange { start: 0, len: 4 }, SampleRange { start: 4, len: 4 }]);
    assert_eq!((step.times.compute, step.generation), (1.0, g), "the slowest rank's seconds");
    assert_eq!(committed(&script.hear(2, report(g, 1, 2))), [2]);
    // One acknowledgement for both, once durable.
    let acknowledged = messages(&script.persist(), 2);
    assert!(acknowledged.contains(&ToWorker::Committed { generation: g, step: Step(2) }), "{acknowledged:?}");
    assert_eq!(acknowledged.iter().filter(|message| matches!(message, ToWorker::Committed { .. })).count(), 1);
}

#[test]
fn anything_of_an_older_generation_is_refused() {
    let (mut script, open) = two();
    script.pass_step_0(&[1, 2], &open);
    let old = open.generation;
    let complaint =
        Complaint { generation: old, rank: Rank(0), step: Step(1), culprit: Some(Rank(1)), what: "reset".into() };
    let effects = script.hear(1, FromWorker::Complained(complaint.clone()));
    assert!(matches!(messages(&effects, 2)[..], [ToWorker::Close(_)]));
    for stream in [1, 2] {
        halt(&mut script, stream, old, 0);
    }
    let new = script.train(&[1, 2]);
    assert!(new.generation > old);
    for message in [report(old, 1, 1), evaluation(old, 1, 0, 0), FromWorker::Complained(complaint)] {
        assert_eq!(script.hear(2, message), [], "fenced");
    }
    assert_eq!(
        committed(&script.hear(1, report(new.generation, 0, 1))),
        [0u64; 0],
        "rank 1's old report does not count"
    );
    assert_eq!(committed(&script.hear(2, report(new.generation, 1, 1))), [1]);
}

#[test]
fn a_report_outside_the_plan_ends_that_worker() {
    let (mut script, open) = two();
    script.pass_step_0(&[1, 2], &open);
    let effects = script.hear(2, report(open.generation, 1, 9));
    assert_eq!(refused(&effects, 2).map(|(code, _)| code), Some(ExitCode::Protocol));
    assert!(matches!(messages(&effects, 1)[..], [ToWorker::Close(_)]));
    let effects = halt(&mut script, 1, open.generation, 0);
    assert_eq!(ended(&effects), None, "the other waits for a new one");
}

#[test]
fn one_report_suffices_for_a_step_that_the_new_leader_holds() {
    let (mut script, open) = two();
    script.pass_step_0(&[1, 2], &open);
    let g = open.generation;
    for step in 1..=2 {
        script.hear(1, report(g, 0, step));
    }
    script.hear(2, report(g, 1, 1));
    script.on(Event::Disconnected { stream: StreamId(2), reason: "reset".into() });
    halt(&mut script, 1, g, 2);
    script.connect(3, hello("w3"));
    let effects = script.hear(3, FromWorker::Ready(ready()));
    assert_eq!(committed(&effects), [2]);
    let open = opened(&script.persist()).expect("a generation opens");
    assert_eq!((open.base, open.leader, open.source), (state(g, 2), Rank(0), Source::Held));
}

#[test]
fn a_step_that_nobody_alive_finished_is_planned_again() {
    let (mut script, open) = two();
    script.pass_step_0(&[1, 2], &open);
    let g = open.generation;
    script.hear(1, report(g, 0, 1));
    script.on(Event::Disconnected { stream: StreamId(1), reason: "reset".into() });
    halt(&mut script, 2, g, 0);
    script.join(&[3]);
    assert_eq!(committed(&script.effects), [0u64; 0]);
    script.train(&[2, 3]);
    assert!(matches!(&planned(&script.effects, 2)[0], PlanItem::Step(plan) if plan.step == Step(1)));
}

#[test]
fn the_run_waits_a_moment_for_reports_of_newer_steps() {
    let history = History {
        settled: Some((data(), "avx2".into(), Some("canary".into()))),
        generation: Generation(4),
        world_size: 1,
        lineage: Lineage(1),
        committed: Step(3),
        spans: vec![(Step(1), Generation(4))],
        evaluated: vec![lockstep_proto::ids::Epoch(0)],
        checkpoints: vec![super::store::stored(4, 3, 1)],
        ..History::default()
    };
    let resumed = || {
        let mut script = Script::resumed(recipe(), history.clone());
        let mut back = hello("a");
        back.run_id = Some("run".into());
        script.connect(1, back);
        let mut holds = ready();
        holds.state = Some(state(Generation(4), 4));
        let effects = script.hear(1, FromWorker::Ready(holds));
        assert_eq!(records(&effects), [], "not yet");
        script
    };
    let mut script = resumed();
    assert_eq!(committed(&script.hear(1, report(Generation(4), 0, 4))), [4]);
    assert_eq!(opened(&script.persist()).map(|open| open.base), Some(state(Generation(4), 4)));
    let mut script = resumed();
    assert_eq!(committed(&script.wait()), [0u64; 0], "the report never came");
    let open = opened(&script.persist()).expect("a generation opens");
    assert_eq!((open.base.step, open.source), (Step(3), Source::Checkpoint { dir: "step-3".into() }));
    assert_eq!(open.generation, Generation(5), "numbers never repeat, across restarts too");
}

#[test]
fn losing_every_holder_rolls_the_run_back_to_its_newest_checkpoint() {
    let history = History {
        settled: Some((data(), "avx2".into(), Some("canary".into()))),
        generation: Generation(7),
        world_size: 2,
        lineage: Lineage(2),
        committed: Step(5),
        spans: vec![(Step(1), Generation(3)), (Step(4), Generation(7))],
        evaluated: vec![lockstep_proto::ids::Epoch(0), lockstep_proto::ids::Epoch(1)],
        checkpoints: vec![super::store::stored(0, 0, 0), super::store::stored(3, 3, 1), super::store::stored(3, 5, 2)],
        ..History::default()
    };
    let mut script = Script::resumed(recipe(), history);
    script.join(&[1]);
    let kinds = records(&script.effects);
    assert!(
        kinds.contains(&Record::RolledBack { from: Step(5), to: Step(3), lineage: Lineage(3) }),
        "step-5 is of generation 3, the history's step 5 of generation 7, so it does not count: {kinds:?}"
    );
    let open = script.train(&[1]);
    assert_eq!((open.generation, open.lineage, open.base.step), (Generation(8), Lineage(3), Step(3)));
    assert!(matches!(&planned(&script.effects, 1)[0], PlanItem::Step(plan) if plan.step == Step(4)));
}

#[test]
fn ranks_that_disagree_end_the_run_unless_the_order_was_given_up() {
    let differing = |reduction| {
        let mut recipe = recipe();
        recipe.elastic.min_workers = 2;
        recipe.train.reduction = reduction;
        let mut script = Script::new(recipe);
        script.join(&[1, 2]);
        let open = script.train(&[1, 2]);
        script.pass_step_0(&[1, 2], &open);
        script.hear(1, report(open.generation, 0, 1));
        let mut other = step_report(open.generation, 1, 1);
        other.loss = 2.5;
        script.hear(2, FromWorker::Reported(other))
    };
    let (code, reason) = ended(&differing(Reduction::Canonical)).expect("an end");
    assert_eq!(code, ExitCode::Software);
    assert!(reason.contains("step 1") && reason.contains("rank 1 differs from rank 0"), "{reason}");
    let Some(Record::Committed(step)) = records(&differing(Reduction::Fast)).into_iter().next() else {
        panic!("committed")
    };
    assert_eq!(step.loss, 2.0, "rank 0's");
}

#[test]
fn a_loss_that_is_no_number_ends_the_run_naming_step_and_positions() {
    let mut script = Script::new(recipe());
    script.join(&[1]);
    let open = script.train(&[1]);
    script.pass_step_0(&[1], &open);
    let mut bad = step_report(open.generation, 0, 1);
    bad.loss = f64::NAN;
    let (code, reason) = ended(&script.hear(1, FromWorker::Reported(bad))).expect("an end");
    assert_eq!(code, ExitCode::Software);
    assert!(reason.contains("step 1") && reason.contains("[0, 8)") && reason.contains("NaN"), "{reason}");
}

#[test]
fn a_checkpoint_counts_only_from_rank_0_and_only_in_the_history() {
    let (mut script, open) = two();
    let foreign = saved(open.generation, open.base, 0);
    assert_eq!(script.hear(2, foreign), [], "not rank 0's");
    script.pass_step_0(&[1, 2], &open);
    let g = open.generation;
    assert_eq!(records(&script.hear(1, saved(g, state(g, 3), 1))), [], "not committed yet");
    for step in 1..=2 {
        script.hear(1, report(g, 0, step));
        script.hear(2, report(g, 1, step));
    }
    script.hear(1, report(g, 0, 3));
    let written = records(&script.hear(2, report(g, 1, 3)));
    assert!(
        matches!(&written[..], [Record::Committed(_), Record::CheckpointSaved { dir, .. }] if dir == "step-3"),
        "{written:?}"
    );
}

#[test]
fn there_is_always_a_loadable_checkpoint() {
    let mut script = Script::new(recipe());
    script.join(&[1]);
    let open = script.train(&[1]);
    script.pass_step_0(&[1], &open);
    let g = open.generation;
    let deleted = |effects: &[crate::engine::Effect]| {
        let of = |effect: &crate::engine::Effect| match effect {
            crate::engine::Effect::DeleteCheckpoint { dir } => Some(dir.clone()),
            _ => None,
        };
        effects.iter().filter_map(of).collect::<Vec<_>>()
    };
    let mut gone = Vec::new();
    for step in 1..=8 {
        script.hear(1, report(g, 0, step));
        if step % 4 == 0 {
            script.hear(1, evaluation(g, 0, step / 4, step));
        }
        if [3, 4, 6, 8].contains(&step) {
            let unconfirmed = script.hear(1, saved(g, state(g, step), step.div_ceil(4)));
            assert_eq!(deleted(&unconfirmed), [""; 0], "never before the newer one is durable");
        }
        gone.extend(deleted(&script.persist()));
    }
    assert_eq!(gone, ["step-3", "step-4"], "step-0 has the best error, 6 and 8 are the last two");
}

#[test]
fn a_checkpoint_that_was_deleted_is_not_recorded_again_when_its_writer_says_so_again() {
    let mut script = Script::new(recipe());
    script.join(&[1]);
    let open = script.train(&[1]);
    script.pass_step_0(&[1], &open);
    let g = open.generation;
    for step in 1..=8 {
        script.hear(1, report(g, 0, step));
        if step % 4 == 0 {
            script.hear(1, evaluation(g, 0, step / 4, step));
        }
        if step % 2 == 0 {
            script.hear(1, saved(g, state(g, step), step.div_ceil(4)));
        }
        script.persist();
    }
    // Its acknowledgement was lost with the stream; retention has taken the folder away.
    assert_eq!(records(&script.hear(1, saved(g, state(g, 2), 1))), []);
}
