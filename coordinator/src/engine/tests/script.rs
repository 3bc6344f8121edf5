//! A small hand for scripts: events in, effects out.

use std::time::Duration;

use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Epoch, Generation, Rank, StateId, Step, WorkerId};
use lockstep_proto::message::{
    CheckpointSaved, DataIdentity, EvalReport, FromWorker, Halted, Hello, Open, PROTOCOL_VERSION, PlanItem, Progress,
    RankProgress, Ready, StepReport, StepTimes, Synced, ToWorker,
};
use lockstep_proto::recipe::{DataKind, Recipe};

use crate::engine::{Effect, Engine, EngineConfig, Event, History, Record, Seq, StreamId};

/// 30 samples, batches of 8 in chunks of 2: four steps an epoch, the last one short.
pub(super) fn recipe() -> Recipe {
    let mut recipe = Recipe { name: "test".into(), ..Recipe::default() };
    recipe.data.kind = DataKind::Shapes;
    recipe.train.epochs = 3;
    recipe.train.batch = 8;
    recipe.train.chunk = 2;
    recipe.train.window = 4;
    recipe.checkpoint.every_steps = 3;
    recipe.checkpoint.keep = 2;
    recipe
}

pub(super) fn config(recipe: Recipe) -> EngineConfig {
    EngineConfig { recipe, run_id: "run".into(), run_dir: "/run".into(), run_nonce: "nonce".into() }
}

pub(super) fn data() -> DataIdentity {
    DataIdentity { name: "shapes".into(), num_train: 30, num_test: 10, num_classes: 10, fingerprint: "abc".into() }
}

pub(super) fn hello(worker: &str) -> Hello {
    Hello {
        protocol: PROTOCOL_VERSION,
        build: "test".into(),
        worker: WorkerId(worker.into()),
        host: format!("host-{worker}"),
        pid: 7,
        devices: vec!["cpu".into()],
        isa: "avx2".into(),
        run_id: None,
    }
}

pub(super) fn ready() -> Ready {
    Ready {
        data: data(),
        canary: Some("canary".into()),
        state: None,
        addresses: vec!["a:1".into()],
        sees_run_dir: true,
    }
}

pub(super) struct Script {
    pub(super) engine: Engine,
    pub(super) now: Duration,
    pub(super) effects: Vec<Effect>,
    /// All that stream 1 was told to do.
    pub(super) plan: Vec<PlanItem>,
    /// All records.
    pub(super) log: Vec<Record>,
    last: Seq,
}

impl Script {
    pub(super) fn new(recipe: Recipe) -> Self {
        Self::resumed(recipe, History::default())
    }

    pub(super) fn resumed(recipe: Recipe, history: History) -> Self {
        let (engine, effects) = Engine::new(config(recipe), history).expect("a history that can be continued");
        let mut script =
            Self { engine, now: Duration::ZERO, effects: Vec::new(), plan: Vec::new(), log: Vec::new(), last: Seq(0) };
        script.note(effects);
        script
    }

    fn note(&mut self, effects: Vec<Effect>) {
        for effect in &effects {
            if let Effect::Persist { seq, .. } = effect {
                assert_eq!(seq.0, self.last.0 + 1, "records are numbered without gaps");
                self.last = *seq;
            }
        }
        self.plan.extend(planned(&effects, 1));
        self.log.extend(records(&effects));
        self.effects = effects;
    }

    /// One event; gives its effects.
    pub(super) fn on(&mut self, event: Event) -> Vec<Effect> {
        self.now += Duration::from_millis(1);
        let effects = self.engine.handle(self.now, event);
        self.note(effects);
        self.effects.clone()
    }

    pub(super) fn hear(&mut self, stream: u64, message: FromWorker) -> Vec<Effect> {
        self.on(Event::Received { stream: StreamId(stream), message })
    }

    pub(super) fn connect(&mut self, stream: u64, hello: Hello) -> Vec<Effect> {
        self.on(Event::Connected { stream: StreamId(stream), hello })
    }

    /// Everything recorded so far is durable.
    pub(super) fn persist(&mut self) -> Vec<Effect> {
        self.on(Event::Persisted { seq: self.last })
    }

    /// Workers named after their streams, joined and ready.
    pub(super) fn join(&mut self, streams: &[u64]) {
        for stream in streams {
            self.connect(*stream, hello(&format!("w{stream}")));
            self.hear(*stream, FromWorker::Ready(ready()));
        }
    }

    /// The open generation, synchronised and, from step 0, with `step-0` saved: the effects that hold the first steps.
    pub(super) fn train(&mut self, streams: &[u64]) -> Open {
        let effects = self.persist();
        let open = opened(&effects).expect("a generation opens");
        for stream in streams {
            let hash = format!("state-{}", open.base.step);
            self.hear(*stream, FromWorker::Synced(Synced { generation: open.generation, state_sha256: hash }));
        }
        open
    }

    /// A generation of workers 1 and 2, where one would do: 2 joins when 1 has been through step 0.
    pub(super) fn both(&mut self) -> Open {
        self.join(&[1]);
        let first = self.train(&[1]);
        self.pass_step_0(&[1], &first);
        self.join(&[2]);
        self.hear(1, FromWorker::Halted(Halted { generation: first.generation, state: Some(first.base) }));
        self.plan.clear();
        self.train(&[1, 2])
    }

    /// What is due before the first step.
    pub(super) fn pass_step_0(&mut self, streams: &[u64], open: &Open) -> Vec<Effect> {
        for (rank, stream) in (0..).zip(streams) {
            self.hear(*stream, evaluation(open.generation, rank, 0, 0));
        }
        self.hear(streams[0], saved(open.generation, open.base, 0));
        self.persist()
    }

    /// Lets the next deadline pass that is not about signs of life; whoever is named gives them.
    pub(super) fn wait_for(&mut self, alive: &[u64]) -> Vec<Effect> {
        loop {
            let at = self.engine.next_deadline().expect("someone is waited for");
            let next = self.now + Duration::from_secs(1);
            if at <= next {
                return self.wait();
            }
            self.now = next;
            for stream in alive {
                let progress = Progress { generation: Generation(0), ranks: Vec::new(), gpus: Vec::new() };
                let effects = self.hear(*stream, FromWorker::Progress(progress));
                if !effects.is_empty() {
                    return effects;
                }
            }
        }
    }

    /// Lets the next deadline pass.
    pub(super) fn wait(&mut self) -> Vec<Effect> {
        self.now = self.engine.next_deadline().expect("someone is waited for");
        let effects = self.engine.handle(self.now, Event::Tick);
        self.note(effects);
        self.effects.clone()
    }
}

pub(super) fn report(generation: Generation, rank: u32, step: u64) -> FromWorker {
    FromWorker::Reported(step_report(generation, rank, step))
}

pub(super) fn step_report(generation: Generation, rank: u32, step: u64) -> StepReport {
    StepReport {
        generation,
        rank: Rank(rank),
        step: Step(step),
        loss: 2.0,
        wrong: 3,
        samples: if step.is_multiple_of(4) { 6 } else { 8 },
        skipped: Vec::new(),
        digest: 11,
        ready: None,
        times: StepTimes { data: 0.0, compute: f64::from(rank), comm: 0.0, wall: 1.0 },
    }
}

pub(super) fn evaluation(generation: Generation, rank: u32, epoch: u64, step: u64) -> FromWorker {
    FromWorker::Evaluated(EvalReport {
        generation,
        rank: Rank(rank),
        epoch: Epoch(epoch),
        step: Step(step),
        loss: 2.0,
        error: 0.5,
        error_top5: 0.1,
        samples: 10,
        skipped: Vec::new(),
        seconds: 1.0,
    })
}

pub(super) fn saved(generation: Generation, state: StateId, epoch: u64) -> FromWorker {
    FromWorker::CheckpointSaved(CheckpointSaved {
        generation,
        state,
        epoch: Epoch(epoch),
        dir: format!("step-{}", state.step),
        bytes: 1,
        state_sha256: format!("state-{}", state.step),
    })
}

pub(super) fn messages(effects: &[Effect], stream: u64) -> Vec<ToWorker> {
    let of = |effect: &Effect| match effect {
        Effect::Send { stream: to, message } if to.0 == stream => Some(message.clone()),
        _ => None,
    };
    effects.iter().filter_map(of).collect()
}

pub(super) fn records(effects: &[Effect]) -> Vec<Record> {
    let of = |effect: &Effect| match effect {
        Effect::Persist { record, .. } => Some(record.clone()),
        _ => None,
    };
    effects.iter().filter_map(of).collect()
}

pub(super) fn committed(effects: &[Effect]) -> Vec<u64> {
    let of = |record: Record| match record {
        Record::Committed(step) => Some(step.step.0),
        _ => None,
    };
    records(effects).into_iter().filter_map(of).collect()
}

pub(super) fn opened(effects: &[Effect]) -> Option<Open> {
    effects.iter().find_map(|effect| match effect {
        Effect::Send { message: ToWorker::Open(open), .. } => Some(open.clone()),
        _ => None,
    })
}

/// Planned steps, for one stream.
pub(super) fn planned(effects: &[Effect], stream: u64) -> Vec<PlanItem> {
    let of = |message: ToWorker| match message {
        ToWorker::Plan(plan) => plan.items,
        _ => Vec::new(),
    };
    messages(effects, stream).into_iter().flat_map(of).collect()
}

pub(super) fn refused(effects: &[Effect], stream: u64) -> Option<(ExitCode, String)> {
    messages(effects, stream).into_iter().find_map(|message| match message {
        ToWorker::Refused(refused) => Some((refused.code, refused.reason)),
        _ => None,
    })
}

pub(super) fn ended(effects: &[Effect]) -> Option<(ExitCode, String)> {
    effects.iter().find_map(|effect| match effect {
        Effect::End { code, reason } => Some((*code, reason.clone())),
        _ => None,
    })
}

/// Details of events of a kind.
pub(super) fn notes(effects: &[Effect], of_kind: &str) -> Vec<serde_json::Value> {
    let of = |record: Record| match record {
        Record::Note { kind, detail, .. } if kind == of_kind => Some(detail),
        _ => None,
    };
    records(effects).into_iter().filter_map(of).collect()
}

pub(super) fn progress(generation: Generation, rank: u32, beats: u64, is_waiting: bool) -> FromWorker {
    let ranks = vec![RankProgress { rank: Rank(rank), beats, is_waiting }];
    FromWorker::Progress(Progress { generation, ranks, gpus: Vec::new() })
}
