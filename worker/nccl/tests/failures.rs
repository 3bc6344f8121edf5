//! Ranks that are processes, of which one misbehaves: everything ends in time, by the culprit's name, and the next
//! generation works in the same processes.
#![allow(clippy::unwrap_used)] // a panic is how tests fail

mod common;
#[path = "common/processes.rs"]
mod processes;

use std::time::Duration;

use common::PATIENCE;
use processes::{Outcome, World};

const DEADLINE: Duration = Duration::from_millis(2500);
/// What comes on top of a deadline on a loaded machine.
const SLACK: Duration = Duration::from_secs(4);
/// In the middle: behind the first meeting and some operations.
const CALL: u32 = 14;

/// Three processes, of which rank 1 does `how`; what each found in the first generation. The second must work.
fn misbehaving(how: &str) -> [(String, Option<u32>, Duration); 3] {
    let mut world = World::start(&["", &format!("rank=1 {how}"), ""]);
    let first = world.open(1, &[0, 1, 2], DEADLINE);
    let failed = first.map(|outcome| match outcome {
        Outcome::Failed { what, culprit, waited } => (what, culprit, waited),
        Outcome::Done { .. } => panic!("{how}: nothing failed"),
    });
    for (what, _, waited) in &failed {
        assert!(*waited < DEADLINE + SLACK, "{how}: {waited:?}: {what}");
    }
    assert_works(&mut world, 2, &[0, 1, 2]);
    failed
}

fn assert_works<const N: usize>(world: &mut World, generation: u64, members: &[usize; N]) {
    let outcomes = world.open(generation, members, PATIENCE);
    let mut hashes = outcomes.iter().map(|outcome| match outcome {
        Outcome::Done { hash } => hash,
        Outcome::Failed { what, .. } => panic!("generation {generation}: {what}"),
    });
    let first = hashes.next().unwrap();
    assert!(hashes.all(|hash| hash == first));
}

#[test]
fn a_rank_whose_device_hangs_is_named_at_the_deadline() {
    for (what, culprit, waited) in misbehaving(&format!("call={CALL} do=hang")) {
        assert_eq!(culprit, Some(1), "{what}");
        assert!(waited > DEADLINE / 2, "{waited:?}: {what}");
    }
}

#[test]
fn a_call_in_which_nobody_gets_on_ends_at_the_deadline_and_names_the_call() {
    let failed = misbehaving(&format!("call={CALL} do=mute"));
    assert!(failed.iter().any(|(what, ..)| what.contains("all ranks are in")), "{failed:?}");
}

#[test]
fn an_error_of_a_call_reaches_everyone_at_once() {
    for how in [format!("call={CALL} do=error"), format!("call={CALL} do=async")] {
        let [zero, one, two] = misbehaving(&how);
        assert!(one.0.contains("failed on rank 1") && one.0.contains("NCCL error"), "{}", one.0);
        for (what, culprit, waited) in [zero, two] {
            assert_eq!(culprit, Some(1), "{what}");
            assert!(waited < DEADLINE, "{waited:?}: {what}");
        }
    }
}

#[test]
fn an_initialisation_that_never_completes_is_named() {
    for (what, culprit, _) in misbehaving("init=1 do=hang") {
        assert_eq!(culprit, Some(1), "{what}");
        assert!(what.contains("initialisation"), "{what}");
    }
    misbehaving("init=2 do=mute");
    let [_, (what, ..), _] = misbehaving("init=1 do=error");
    assert!(what.contains("ncclCommInitRankConfig failed: unhandled system error"), "{what}");
}

#[test]
fn a_rank_that_dies_is_noticed_at_once_and_the_others_go_on_without_it() {
    for how in [format!("call={CALL} do=die"), "init=2 do=die".into()] {
        let mut world = World::start(&["", &how, ""]);
        world.open_some(1, &[0, 1, 2], DEADLINE);
        for rank in [0, 2] {
            match world.outcome(rank, DEADLINE + SLACK) {
                Outcome::Failed { what, culprit, waited } => {
                    assert_eq!(culprit, Some(1), "{what}");
                    assert!(waited < DEADLINE, "{waited:?}: {what}");
                }
                Outcome::Done { .. } => panic!("nothing failed"),
            }
        }
        assert_works(&mut world, 2, &[0, 2]);
    }
}

#[test]
fn a_call_that_does_not_return_and_a_process_that_is_stopped_are_named_and_left_behind() {
    for how in ["stall", "stop"] {
        let plan = if how == "stall" { format!("call={CALL} do=stall") } else { String::new() };
        let mut world = World::start(&["", &plan, ""]);
        if how == "stop" {
            assert_works(&mut world, 1, &[0, 1, 2]);
            world.hold(1);
        }
        world.open_some(2, &[0, 1, 2], DEADLINE);
        if how == "stop" {
            world.stop_when_held(1);
        }
        for rank in [0, 2] {
            match world.outcome(rank, 2 * DEADLINE + SLACK) {
                Outcome::Failed { what, culprit, .. } => assert_eq!(culprit, Some(1), "{how}: {what}"),
                Outcome::Done { .. } => panic!("nothing failed"),
            }
        }
        assert_works(&mut world, 3, &[0, 2]);
    }
}

#[test]
fn junk_after_a_neighbours_abort_is_never_taken_for_data() {
    for call in CALL..CALL + 6 {
        let plan = format!("rank=1 call={call} do=error;junk");
        let mut world = World::start(&["junk", &plan, "junk"]);
        for outcome in world.open(1, &[0, 1, 2], DEADLINE) {
            // A rank that ended well would have said the hash of what it had.
            assert!(matches!(outcome, Outcome::Failed { .. }), "call {call}: {outcome:?}");
        }
    }
}

#[test]
fn an_abort_that_does_not_return_ends_the_process_and_no_other() {
    let mut world = World::start(&["", &format!("call={CALL} do=error;abort=1 do=hang"), ""]);
    world.open(1, &[0, 1, 2], DEADLINE);
    assert_works(&mut world, 2, &[0, 2]);
    match &world.open(3, &[1], DEADLINE)[0] {
        Outcome::Failed { what, .. } => {
            assert!(what.starts_with("unusable: the communicators of generation 1 did not come to an end"), "{what}");
        }
        Outcome::Done { .. } => panic!("it went on"),
    }
}

#[test]
fn rank_process() {
    processes::be_a_rank();
}
