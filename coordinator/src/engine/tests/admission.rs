//! Who is let in.

use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{StateId, WorkerId};
use lockstep_proto::message::{FromWorker, Left, PROTOCOL_VERSION, ToWorker};
use lockstep_proto::recipe::DataKind;

use super::script::*;
use crate::engine::{Effect, Event, History, Record, StreamId};

#[test]
fn a_first_worker_is_welcomed_with_the_resolved_recipe_and_settles_the_run() {
    let mut script = Script::new(recipe());
    let effects = script.connect(1, hello("a"));
    let [ToWorker::Welcome(welcome)] = &messages(&effects, 1)[..] else { panic!("{effects:?}") };
    assert_eq!((welcome.run_id.as_str(), welcome.isa.as_str()), ("run", "avx2"));
    assert_eq!(welcome.recipe_toml, recipe().to_toml());
    let records = records(&script.hear(1, FromWorker::Ready(ready())));
    let settled = Record::Settled {
        worker: WorkerId("a".into()),
        data: data(),
        isa: "avx2".into(),
        canary: Some("canary".into()),
    };
    assert_eq!(records[0], settled);
    assert!(matches!(records[1], Record::Opened { .. }));
}

#[test]
fn another_protocol_is_refused_with_76() {
    let mut script = Script::new(recipe());
    let mut other = hello("a");
    other.protocol = PROTOCOL_VERSION + 1;
    let effects = script.connect(1, other);
    let (code, reason) = refused(&effects, 1).expect("a refusal");
    assert_eq!(code, ExitCode::Protocol);
    assert!(reason.contains("use the same version"), "{reason}");
    assert!(effects.contains(&Effect::Hangup { stream: StreamId(1) }));
}

#[test]
fn names_are_unique_but_a_worker_may_be_back_before_its_old_stream_ends() {
    let mut script = Script::new(recipe());
    script.connect(1, hello("a"));
    let mut twin = hello("a");
    twin.pid = 8;
    assert_eq!(refused(&script.connect(2, twin), 2).map(|(code, _)| code), Some(ExitCode::Usage));
    let effects = script.connect(3, hello("a"));
    assert!(effects.contains(&Effect::Hangup { stream: StreamId(1) }));
    assert!(matches!(messages(&effects, 3)[..], [ToWorker::Welcome(_)]));
}

#[test]
fn more_than_max_workers_are_refused() {
    let mut recipe = recipe();
    recipe.elastic.max_workers = 1;
    let mut script = Script::new(recipe);
    script.connect(1, hello("a"));
    let (code, reason) = refused(&script.connect(2, hello("b")), 2).expect("a refusal");
    assert_eq!(code, ExitCode::Usage);
    assert!(reason.contains("elastic.max_workers = 1"), "{reason}");
}

#[test]
fn a_lesser_instruction_set_is_refused_and_a_better_one_lowers_itself() {
    let mut script = Script::new(recipe());
    script.connect(1, hello("a"));
    let mut lesser = hello("b");
    lesser.isa = "sse4.1".into();
    let (code, reason) = refused(&script.connect(2, lesser.clone()), 2).expect("a refusal");
    assert_eq!(code, ExitCode::Config);
    assert!(reason.contains("avx2") && reason.contains("sse4.1"), "{reason}");
    let mut better = hello("c");
    better.isa = "amx".into();
    let effects = script.connect(3, better);
    assert!(matches!(&messages(&effects, 3)[..], [ToWorker::Welcome(welcome)] if welcome.isa == "avx2"));
    // Nothing was computed with it: once nobody is here it binds nobody.
    for stream in [1, 3] {
        script.on(Event::Disconnected { stream: StreamId(stream), reason: "gone".into() });
    }
    assert!(refused(&script.connect(4, lesser), 4).is_none());
}

#[test]
fn other_data_than_the_runs_are_refused_with_65_naming_both() {
    let mut script = Script::new(recipe());
    script.join(&[1]);
    script.connect(2, hello("b"));
    let mut other = ready();
    other.data.fingerprint = "xyz".into();
    let (code, reason) = refused(&script.hear(2, FromWorker::Ready(other)), 2).expect("a refusal");
    assert_eq!(code, ExitCode::Data);
    assert!(reason.contains("fingerprint xyz") && reason.contains("fingerprint abc"), "{reason}");
}

#[test]
fn the_first_to_join_is_refused_when_its_data_contradict_the_recipe() {
    let mut recipe = recipe();
    recipe.data.kind = DataKind::Cifar10;
    let mut script = Script::new(recipe);
    script.connect(1, hello("a"));
    let mut short = ready();
    short.data.name = "cifar10".into();
    short.data.num_train = 40_000;
    let effects = script.hear(1, FromWorker::Ready(short));
    let (code, reason) = refused(&effects, 1).expect("a refusal");
    assert_eq!(code, ExitCode::Data);
    assert!(reason.contains("40000 training") && reason.contains("50000 training"), "{reason}");
    assert!(!records(&effects).iter().any(|record| matches!(record, Record::Settled { .. })));
}

#[test]
fn a_limit_shortens_what_the_recipe_expects() {
    let mut recipe = recipe();
    recipe.data.kind = DataKind::Cifar10;
    recipe.data.limit = 5_000;
    let mut script = Script::new(recipe);
    script.connect(1, hello("a"));
    let mut limited = ready();
    limited.data.name = "cifar10".into();
    (limited.data.num_train, limited.data.num_test) = (5_000, 10_000);
    assert_eq!(refused(&script.hear(1, FromWorker::Ready(limited)), 1), None);
}

#[test]
fn another_canary_is_refused_with_78() {
    let mut script = Script::new(recipe());
    script.join(&[1]);
    script.connect(2, hello("b"));
    let mut other = ready();
    other.canary = Some("other".into());
    let (code, reason) = refused(&script.hear(2, FromWorker::Ready(other)), 2).expect("a refusal");
    assert_eq!(code, ExitCode::Config);
    assert!(reason.contains("cannot keep the bits"), "{reason}");
}

#[test]
fn more_replicas_than_the_batch_end_the_run_with_64() {
    let mut script = Script::new(recipe());
    let mut many = hello("a");
    many.devices = vec!["cpu".into(); 9];
    script.connect(1, many);
    let mut ready = ready();
    ready.addresses = vec!["a:1".into(); 9];
    let (code, reason) = ended(&script.hear(1, FromWorker::Ready(ready))).expect("an end");
    assert_eq!(code, ExitCode::Usage);
    assert!(reason.contains("9 replicas") && reason.contains("train.batch = 8"), "{reason}");
}

#[test]
fn ranks_follow_the_names_of_workers_and_replicas_are_contiguous() {
    let mut recipe = recipe();
    recipe.elastic.min_workers = 2;
    let mut script = Script::new(recipe);
    script.join(&[2]);
    let mut twin = hello("w1");
    twin.devices = vec!["cpu".into(); 2];
    script.connect(1, twin);
    let mut two = ready();
    two.addresses = vec!["a:1".into(), "a:2".into()];
    script.hear(1, FromWorker::Ready(two));
    let open = opened(&script.persist()).expect("a generation opens");
    let ranks: Vec<_> =
        open.members.iter().map(|member| (member.rank.0, member.worker.0.as_str(), member.replica)).collect();
    assert_eq!(ranks, [(0, "w1", 0), (1, "w1", 1), (2, "w2", 0)]);
    assert_eq!(open.rendezvous.len(), 64);
}

#[test]
fn a_state_of_another_run_is_no_state() {
    let mut script = Script::new(recipe());
    let mut stray = hello("a");
    stray.run_id = Some("another".into());
    script.connect(1, stray);
    let mut holds = ready();
    holds.state = Some(StateId::default());
    script.hear(1, FromWorker::Ready(holds));
    let open = opened(&script.persist()).expect("a generation opens");
    assert_eq!(open.source, lockstep_proto::message::Source::Init);
}

#[test]
fn a_worker_that_cannot_read_its_data_ends_the_run_with_its_code_and_reason() {
    let mut script = Script::new(recipe());
    script.connect(1, hello("a"));
    let left = Left { code: ExitCode::NoInput, reason: "data_batch_3.bin is missing".into() };
    let (code, reason) = ended(&script.hear(1, FromWorker::Left(left))).expect("an end");
    assert_eq!(code, ExitCode::NoInput);
    assert!(reason.contains("worker a") && reason.contains("data_batch_3.bin is missing"), "{reason}");
}

#[test]
fn a_late_joiner_that_fails_does_not_stop_a_run_that_goes_on_without_it() {
    let mut script = Script::new(recipe());
    script.join(&[1]);
    script.train(&[1]);
    script.connect(2, hello("b"));
    let left = Left { code: ExitCode::Data, reason: "label 11".into() };
    let effects = script.hear(2, FromWorker::Left(left));
    assert_eq!(ended(&effects), None);
    assert!(messages(&effects, 1).is_empty());
}

#[test]
fn a_finished_run_is_done_at_once() {
    let history = History {
        settled: Some((data(), "avx2".into(), Some("canary".into()))),
        committed: lockstep_proto::ids::Step(12),
        spans: vec![(lockstep_proto::ids::Step(1), lockstep_proto::ids::Generation(1))],
        checkpoints: vec![super::store::stored(1, 12, 3)],
        finished: true,
        ..History::default()
    };
    let script = Script::resumed(recipe(), history);
    assert_eq!(ended(&script.effects).map(|(code, _)| code), Some(ExitCode::Done));
}

#[test]
fn a_world_too_small_for_the_largest_shard_is_waited_with_and_filled_up_to_it() {
    let mut recipe = recipe();
    recipe.elastic.max_shard = 4; // of 8 samples: two replicas at least
    let mut script = Script::new(recipe);
    script.join(&[1]);
    assert_eq!(opened(&script.persist()), None, "one replica cannot hold the batch");
    script.join(&[2]);
    let open = script.train(&[1, 2]);
    script.pass_step_0(&[1, 2], &open);
    script.on(Event::Disconnected { stream: StreamId(2), reason: "gone".into() });
    let halted = lockstep_proto::message::Halted { generation: open.generation, state: Some(open.base) };
    script.hear(1, FromWorker::Halted(halted));
    let waiting = notes(&script.effects, "waiting");
    assert!(waiting[0]["because"].as_str().is_some_and(|text| text.contains("elastic.max_shard = 4")), "{waiting:?}");
    let (code, reason) = ended(&script.wait()).expect("not for ever");
    assert!(code == ExitCode::TempFail && reason.contains("elastic.max_shard = 4"), "{reason}");
}
