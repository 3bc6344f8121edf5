//! A worker that only the coordinator reaches does not end everybody's run.

use std::time::Duration;

use lockstep_proto::ids::{Rank, Step, WorkerId};
use lockstep_proto::message::{Complaint, FromWorker, Halted, Open, ToWorker};

use super::script::*;
use crate::engine::{Effect, Event};

/// The open generation fails: `complainer` blames `culprit`, both ranks. All who have a part in it halt.
fn fails(script: &mut Script, open: &Open, complainer: u32, culprit: u32) -> Vec<Effect> {
    let streams: Vec<u64> = open.members.iter().map(|member| member.worker.0[1..].parse().unwrap()).collect();
    let complaint = Complaint {
        generation: open.generation,
        rank: Rank(complainer),
        step: open.base.step,
        culprit: Some(Rank(culprit)),
        what: "did not come".into(),
    };
    script.hear(streams[complainer as usize], FromWorker::Complained(complaint));
    let halted = Halted { generation: open.generation, state: Some(open.base) };
    streams.iter().flat_map(|stream| script.hear(*stream, FromWorker::Halted(halted.clone()))).collect()
}

fn names(open: &Open) -> Vec<&str> {
    open.members.iter().map(|member| member.worker.0.as_str()).collect()
}

fn opens(script: &mut Script) -> Open {
    opened(&script.persist()).expect("a generation opens")
}

fn three(min_workers: u32) -> Script {
    let mut recipe = recipe();
    recipe.elastic.min_workers = min_workers;
    let mut script = Script::new(recipe);
    script.join(&[1, 2, 3]);
    script
}

#[test]
fn whoever_two_others_cannot_reach_is_left_out_for_a_while_and_then_comes_in_again() {
    let mut script = three(1);
    // The first to join opens a generation of its own.
    let first = opens(&mut script);
    fails(&mut script, &first, 0, 0);
    let open = opens(&mut script);
    assert_eq!(names(&open), ["w1", "w2", "w3"]);
    assert!(notes(&fails(&mut script, &open, 0, 1), "left_out").is_empty(), "one pair tells nothing");
    let open = opens(&mut script);
    let effects = fails(&mut script, &open, 1, 2);
    let left_out = notes(&effects, "left_out");
    assert_eq!(left_out.len(), 1, "{effects:?}");
    assert!(
        left_out[0]["reason"].as_str().unwrap().starts_with("it and w1, w3 cannot reach each other"),
        "{left_out:?}"
    );
    let open = opens(&mut script);
    assert_eq!(names(&open), ["w1", "w3"]);

    // The others train; when its time is over it is let in.
    for stream in [1, 3] {
        let synced = lockstep_proto::message::Synced { generation: open.generation, state_sha256: "same".into() };
        script.hear(stream, FromWorker::Synced(synced));
    }
    script.pass_step_0(&[1, 3], &open);
    for (rank, stream) in [(0, 1), (1, 3)] {
        script.hear(stream, report(open.generation, rank, 1));
    }
    script.persist();
    let mut closed_after = None;
    for second in 1..=20 {
        script.now += Duration::from_secs(1);
        let mut effects = script.hear(1, progress(open.generation, 0, second, false));
        effects.extend(script.hear(3, progress(open.generation, 1, second, false)));
        effects.extend(script.on(Event::Tick));
        if let [ToWorker::Close(close)] = &messages(&effects, 1)[..] {
            assert!(close.reason.contains("worker w2 joins"), "{}", close.reason);
            closed_after = Some(second);
            break;
        }
    }
    assert_eq!(closed_after, Some(10), "the least time that someone is left out");
    let state = Some(lockstep_proto::ids::StateId { step: Step(1), generation: open.generation, ..open.base });
    for stream in [1, 3] {
        script.hear(stream, FromWorker::Halted(Halted { generation: open.generation, state }));
    }
    assert_eq!(names(&opens(&mut script)), ["w1", "w2", "w3"]);
}

#[test]
fn of_two_that_cannot_reach_each_other_one_is_left_out_after_three_tries() {
    let mut script = three(2);
    let mut open = opens(&mut script);
    for _ in 0..2 {
        assert!(notes(&fails(&mut script, &open, 0, 2), "left_out").is_empty());
        open = opens(&mut script);
    }
    let effects = fails(&mut script, &open, 2, 0);
    assert_eq!(notes(&effects, "left_out").len(), 1, "{effects:?}");
    assert_eq!(names(&opens(&mut script)), ["w1", "w2"]);
}

#[test]
fn nobody_is_left_out_whom_the_run_needs() {
    let mut script = three(3);
    let mut open = opens(&mut script);
    for complainer in [0, 1, 0] {
        assert!(notes(&fails(&mut script, &open, complainer, 2), "left_out").is_empty());
        open = opens(&mut script);
    }
    assert_eq!(names(&open), ["w1", "w2", "w3"]);
}

#[test]
fn a_committed_step_absolves() {
    let mut blame = crate::engine::blame::Blame::default();
    let [a, b] = ["a", "b"].map(|name| WorkerId(name.into()));
    blame.complaint(&a, &b, std::time::Duration::ZERO);
    blame.absolve([&a].into_iter());
    let present = [a, b].into_iter().collect();
    assert_eq!(blame.most_blamed(&present, 9), None);
}
