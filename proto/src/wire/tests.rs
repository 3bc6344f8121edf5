//! Every message survives the wire, and what breaks the contract is an error.

use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::ids::{Epoch, Generation, Lineage, Rank, SampleRange, StateId, Step, WorkerId};
use crate::manifest::FileEntry;
use crate::message::*;
use crate::status::{Control, MemberStatus, Phase, Status};
use crate::transfer::{DownloadPart, DownloadRequest, UploadHeader, UploadPart};

/// Arbitrary values from a seed: short to write, and a failure prints the seed.
struct Any(crate::draws::Draws);

impl Any {
    fn new(seed: u64) -> Self {
        Self(crate::draws::Draws::new(seed, Epoch(0), 0))
    }

    /// Small, middling and huge ones.
    fn u64(&mut self) -> u64 {
        let bits = self.0.below(65);
        self.0.next_u64().checked_shr(bits).unwrap_or(0)
    }

    fn u32(&mut self) -> u32 {
        self.u64() as u32
    }

    fn f64(&mut self) -> f64 {
        match self.0.below(8) {
            0 => 0.0,
            1 => f64::INFINITY,
            2 => -1e-310,
            _ => (self.0.unit() - 0.5) * 1e3,
        }
    }

    fn bool(&mut self) -> bool {
        self.0.coin()
    }

    /// May be empty.
    fn text(&mut self) -> String {
        (0..self.0.below(9))
            .map(|_| ['a', 'Z', '0', '/', ' ', 'ä', '步', '\n', '"'][self.0.below(9) as usize])
            .collect()
    }

    fn some_text(&mut self) -> String {
        format!("x{}", self.text())
    }

    fn name(&mut self) -> String {
        format!("step-{}", self.u64())
    }

    fn option<T>(&mut self, value: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.bool().then(|| value(self))
    }

    fn list<T>(&mut self, mut value: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.0.below(4)).map(|_| value(self)).collect()
    }

    fn code(&mut self) -> ExitCode {
        ExitCode::ALL[self.0.below(ExitCode::ALL.len() as u32) as usize]
    }

    fn state(&mut self) -> StateId {
        StateId { lineage: Lineage(self.u64()), generation: Generation(self.u64()), step: Step(self.u64()) }
    }

    fn skipped(&mut self) -> Skipped {
        Skipped { position: self.u64(), file: self.text(), reason: self.text() }
    }

    fn gpu(&mut self) -> GpuHealth {
        GpuHealth {
            device: self.text(),
            utilization_percent: self.u32(),
            memory_used: self.u64(),
            memory_total: self.u64(),
            temperature_c: self.u32(),
        }
    }

    fn worker(&mut self) -> WorkerId {
        WorkerId(self.some_text())
    }

    fn worker_says(&mut self, kind: u32) -> FromWorker {
        match kind {
            0 => FromWorker::Hello(Hello {
                protocol: self.u32(),
                build: self.text(),
                worker: self.worker(),
                host: self.text(),
                pid: self.u32(),
                devices: self.list(Self::text),
                isa: self.text(),
                run_id: self.option(Self::some_text),
            }),
            1 => FromWorker::Ready(Ready {
                data: DataIdentity {
                    name: self.some_text(),
                    num_train: self.u64(),
                    num_test: self.u64(),
                    num_classes: self.u32(),
                    fingerprint: self.some_text(),
                },
                canary: self.option(Self::some_text),
                state: self.option(Self::state),
                addresses: self.list(Self::text),
                sees_run_dir: self.bool(),
            }),
            2 => FromWorker::Synced(Synced { generation: Generation(self.u64()), state_sha256: self.some_text() }),
            3 => FromWorker::Reported(StepReport {
                generation: Generation(self.u64()),
                rank: Rank(self.u32()),
                step: Step(self.u64()),
                loss: self.f64(),
                wrong: self.u64(),
                samples: self.u64(),
                digest: self.0.next_u64(),
                skipped: self.list(Self::skipped),
                ready: self.option(Self::f64),
                times: StepTimes { data: self.f64(), compute: self.f64(), comm: self.f64(), wall: self.f64() },
            }),
            4 => FromWorker::Evaluated(EvalReport {
                generation: Generation(self.u64()),
                rank: Rank(self.u32()),
                epoch: Epoch(self.u64()),
                step: Step(self.u64()),
                loss: self.f64(),
                error: self.f64(),
                error_top5: self.f64(),
                samples: self.u64(),
                skipped: self.list(Self::skipped),
                seconds: self.f64(),
            }),
            5 => FromWorker::CheckpointSaved(CheckpointSaved {
                generation: Generation(self.u64()),
                state: self.state(),
                epoch: Epoch(self.u64()),
                dir: self.name(),
                bytes: self.u64(),
                state_sha256: self.some_text(),
            }),
            6 => FromWorker::Complained(Complaint {
                generation: Generation(self.u64()),
                rank: Rank(self.u32()),
                step: Step(self.u64()),
                culprit: self.option(|any| Rank(any.u32())),
                what: self.text(),
            }),
            7 => FromWorker::Halted(Halted { generation: Generation(self.u64()), state: self.option(Self::state) }),
            8 => FromWorker::Progress(Progress {
                generation: Generation(self.u64()),
                ranks: self.list(|any| RankProgress {
                    rank: Rank(any.u32()),
                    beats: any.u64(),
                    is_waiting: any.bool(),
                }),
                gpus: self.list(Self::gpu),
            }),
            9 => FromWorker::Leaving(Leaving { reason: self.text() }),
            10 => FromWorker::CheckpointBad(CheckpointBad {
                generation: Generation(self.u64()),
                dir: self.name(),
                reason: self.text(),
            }),
            _ => FromWorker::Left(Left { code: self.code(), reason: self.text() }),
        }
    }

    fn plan_item(&mut self) -> PlanItem {
        match self.0.below(3) {
            0 => PlanItem::Step(StepPlan {
                step: Step(self.u64()),
                epoch: Epoch(self.u64()),
                lr: self.f64(),
                batch: SampleRange { start: self.u64() >> 1, len: self.u64() >> 1 },
                shards: self.list(Self::u32),
            }),
            1 => PlanItem::Evaluate { epoch: Epoch(self.u64()), step: Step(self.u64()) },
            _ => PlanItem::Checkpoint { step: Step(self.u64()), epoch: Epoch(self.u64()) },
        }
    }

    fn open(&mut self) -> Open {
        let world = 1 + self.0.below(4);
        Open {
            generation: Generation(self.u64()),
            lineage: Lineage(self.u64()),
            base: self.state(),
            members: (0..world)
                .map(|rank| Member {
                    rank: Rank(rank),
                    worker: self.worker(),
                    replica: self.u32(),
                    address: self.text(),
                })
                .collect(),
            leader: Rank(self.0.below(world)),
            source: match self.0.below(3) {
                0 => Source::Init,
                1 => Source::Held,
                _ => Source::Checkpoint { dir: self.name() },
            },
            rendezvous: self.text(),
        }
    }

    fn coordinator_says(&mut self, kind: u32) -> ToWorker {
        match kind {
            0 => ToWorker::Welcome(Welcome {
                run_id: self.some_text(),
                recipe_toml: self.some_text(),
                run_dir: self.text(),
                run_nonce: self.text(),
                isa: self.text(),
            }),
            1 => ToWorker::Refused(Refused { code: self.code(), reason: self.text() }),
            2 => ToWorker::Open(self.open()),
            3 => ToWorker::Plan(Plan { generation: Generation(self.u64()), items: self.list(Self::plan_item) }),
            4 => ToWorker::Close(Close { generation: Generation(self.u64()), reason: self.text() }),
            5 => ToWorker::Committed { generation: Generation(self.u64()), step: Step(self.u64()) },
            6 => ToWorker::Drain(Drain { reason: self.text() }),
            _ => ToWorker::Finish(Finish { code: self.code(), reason: self.text() }),
        }
    }

    fn status(&mut self) -> Status {
        use Phase::{Done, Draining, Failed, Halting, Syncing, Training, Waiting};
        let phases = [Waiting, Syncing, Training, Halting, Draining, Done, Failed];
        Status {
            run_id: self.some_text(),
            name: self.text(),
            run_dir: self.text(),
            phase: phases[self.0.below(7) as usize],
            generation: Generation(self.u64()),
            lineage: Lineage(self.u64()),
            world_size: self.u32(),
            step: Step(self.u64()),
            total_steps: self.u64(),
            epoch: Epoch(self.u64()),
            total_epochs: self.u64(),
            loss: self.option(Self::f64),
            error: self.option(Self::f64),
            lr: self.option(Self::f64),
            test_error: self.option(Self::f64),
            images_per_s: self.option(Self::f64),
            eta_s: self.option(Self::f64),
            members: self.list(|any| MemberStatus {
                worker: any.worker(),
                host: any.text(),
                pid: any.u32(),
                devices: any.list(Self::text),
                ranks: any.list(|any| Rank(any.u32())),
                last_step: Step(any.u64()),
                last_report_age_s: any.f64(),
                gpus: any.list(Self::gpu),
            }),
            last_event: self.option(Self::some_text),
            started_unix_s: self.f64(),
            updated_unix_s: self.f64(),
        }
    }

    fn upload(&mut self) -> UploadPart {
        if self.bool() {
            return UploadPart::Chunk { file: self.u32(), bytes: self.list(|any| any.u64() as u8) };
        }
        UploadPart::Header(UploadHeader {
            run_id: self.some_text(),
            worker: self.worker(),
            generation: Generation(self.u64()),
            state: self.state(),
            epoch: Epoch(self.u64()),
            dir: self.name(),
            files: self.list(|any| FileEntry { name: any.name(), bytes: any.u64(), sha256: any.some_text() }),
        })
    }

    fn download(&mut self) -> DownloadPart {
        match self.bool() {
            true => DownloadPart::File { name: self.name(), bytes: self.u64() },
            false => DownloadPart::Chunk { bytes: self.list(|any| any.u64() as u8) },
        }
    }
}

/// To protobuf, to bytes, and back.
fn survives<T, P>(message: T) -> Result<(), TestCaseError>
where
    T: Clone + PartialEq + std::fmt::Debug + TryFrom<P, Error = WireError>,
    P: Message + Default + From<T>,
{
    let bytes = P::from(message.clone()).encode_to_vec();
    let decoded = P::decode(bytes.as_slice()).map_err(|error| TestCaseError::fail(error.to_string()))?;
    prop_assert_eq!(T::try_from(decoded), Ok(message));
    Ok(())
}

proptest! {
    #[test]
    fn every_message_of_a_worker_survives_the_wire(seed: u64, kind in 0u32..12) {
        survives::<_, pb::FromWorker>(Any::new(seed).worker_says(kind))?;
    }

    #[test]
    fn every_message_of_the_coordinator_survives_the_wire(seed: u64, kind in 0u32..8) {
        survives::<_, pb::ToWorker>(Any::new(seed).coordinator_says(kind))?;
    }

    #[test]
    fn status_control_and_checkpoints_survive_the_wire(seed: u64) {
        let mut any = Any::new(seed);
        survives::<_, pb::RunStatus>(any.status())?;
        survives::<_, pb::ControlRequest>(Control::Stop { reason: any.text() })?;
        survives::<_, pb::UploadPart>(any.upload())?;
        survives::<_, pb::DownloadRequest>(DownloadRequest { run_id: any.some_text(), dir: any.name() })?;
        survives::<_, pb::DownloadPart>(any.download())?;
    }

    /// Whatever a peer sends, it is a message or an error.
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(message) = pb::FromWorker::decode(bytes.as_slice()) {
            let _ = FromWorker::try_from(message);
        }
        if let Ok(message) = pb::ToWorker::decode(bytes.as_slice()) {
            let _ = ToWorker::try_from(message);
        }
        if let Ok(message) = pb::UploadPart::decode(bytes.as_slice()) {
            let _ = UploadPart::try_from(message);
        }
        if let Ok(message) = pb::RunStatus::decode(bytes.as_slice()) {
            let _ = Status::try_from(message);
        }
    }
}

fn to_worker(kind: pb::to_worker::Kind) -> Result<ToWorker, WireError> {
    pb::ToWorker { kind: Some(kind) }.try_into()
}

fn from_worker(kind: pb::from_worker::Kind) -> Result<FromWorker, WireError> {
    pb::FromWorker { kind: Some(kind) }.try_into()
}

fn open_with(change: impl FnOnce(&mut pb::Open)) -> WireError {
    let mut open = pb::Open::from(Any::new(1).open());
    change(&mut open);
    to_worker(pb::to_worker::Kind::Open(open)).unwrap_err()
}

#[test]
fn a_message_of_no_known_kind_is_an_error() {
    let unknown = |message| WireError::UnknownKind { message };
    assert_eq!(ToWorker::try_from(pb::ToWorker { kind: None }), Err(unknown("to_worker")));
    assert_eq!(FromWorker::try_from(pb::FromWorker { kind: None }), Err(unknown("from_worker")));
    assert_eq!(PlanItem::try_from(pb::PlanItem { kind: None }), Err(unknown("plan_item")));
    assert_eq!(Control::try_from(pb::ControlRequest { kind: None }), Err(unknown("control_request")));
    assert_eq!(UploadPart::try_from(pb::UploadPart { kind: None }), Err(unknown("upload_part")));
    assert_eq!(DownloadPart::try_from(pb::DownloadPart { kind: None }), Err(unknown("download_part")));
    assert_eq!(open_with(|open| open.source = Some(pb::Source { kind: None })), unknown("open.source"));
}

#[test]
fn a_missing_part_is_named() {
    let missing = |field| WireError::Missing { field };
    assert_eq!(open_with(|open| open.base = None), missing("open.base"));
    assert_eq!(open_with(|open| open.source = None), missing("open.source"));
    let hello = pb::Hello::default();
    assert_eq!(from_worker(pb::from_worker::Kind::Hello(hello)), Err(missing("hello.worker")));
    let ready = pb::Ready::default();
    assert_eq!(from_worker(pb::from_worker::Kind::Ready(ready)), Err(missing("ready.data")));
    let report = pb::StepReport::default();
    assert_eq!(from_worker(pb::from_worker::Kind::Reported(report)), Err(missing("step_report.times")));
    let saved = pb::CheckpointSaved::default();
    assert_eq!(from_worker(pb::from_worker::Kind::CheckpointSaved(saved)), Err(missing("checkpoint_saved.state")));
    assert_eq!(missing("open.base").to_string(), "message lacks `open.base`; are both sides of the same version?");
    assert_eq!(missing("open.base").exit_code(), ExitCode::Protocol);
}

#[test]
fn there_but_empty_is_neither_presence_nor_absence() {
    let hello = pb::Hello { worker: "w".to_owned(), run_id: Some(String::new()), ..pb::Hello::default() };
    let error = from_worker(pb::from_worker::Kind::Hello(hello));
    assert_eq!(error, Err(WireError::Missing { field: "hello.run_id" }));
}

#[test]
fn an_unknown_exit_code_or_phase_is_an_error() {
    for code in [1, 63, 79, 256, u32::MAX] {
        let error = to_worker(pb::to_worker::Kind::Finish(pb::Finish { code, reason: String::new() }));
        assert_eq!(error, Err(WireError::UnknownCode { field: "finish.code", code: code.into() }));
    }
    for code in [0, 8, -1] {
        let status = pb::RunStatus { run_id: "r".to_owned(), phase: code, ..pb::RunStatus::default() };
        let error = Status::try_from(status);
        assert_eq!(error, Err(WireError::UnknownCode { field: "run_status.phase", code: code.into() }));
    }
}

#[test]
fn ranks_that_are_not_all_of_a_world_are_an_error() {
    let field = |error| match error {
        WireError::Invalid { field, .. } => field,
        other => panic!("{other}"),
    };
    assert_eq!(field(open_with(|open| open.members[0].rank = 1)), "open.members");
    assert_eq!(field(open_with(|open| open.leader = 99)), "open.leader");
    assert_eq!(field(open_with(|open| open.members.clear())), "open.leader");
}

#[test]
fn a_range_past_the_last_number_is_an_error() {
    let range = pb::SampleRange { start: u64::MAX, len: 1 };
    assert!(SampleRange::try_from(range).is_err());
    let range = pb::SampleRange { start: u64::MAX, len: 0 };
    assert!(SampleRange::try_from(range).is_ok());
}

#[test]
fn a_name_that_leaves_its_folder_is_an_error() {
    for dir in ["..", ".", "", "a/b", "/etc", "a\\b", "a\0b"] {
        let request = pb::DownloadRequest { run_id: "r".to_owned(), dir: dir.to_owned() };
        assert!(DownloadRequest::try_from(request).is_err(), "{dir:?}");
        let file = pb::download_part::File { name: dir.to_owned(), bytes: 0 };
        let part = pb::DownloadPart { kind: Some(pb::download_part::Kind::File(file)) };
        assert!(DownloadPart::try_from(part).is_err(), "{dir:?}");
    }
}

#[test]
fn a_chunk_that_is_too_long_is_an_error() {
    let part = |len| {
        let chunk = pb::upload_part::Chunk { file: 0, bytes: vec![0; len] };
        UploadPart::try_from(pb::UploadPart { kind: Some(pb::upload_part::Kind::Chunk(chunk)) })
    };
    assert!(part(crate::transfer::MAX_CHUNK_BYTES).is_ok());
    assert!(part(crate::transfer::MAX_CHUNK_BYTES + 1).is_err());
}

#[test]
fn wire_errors_are_invalid_arguments() {
    let status = tonic::Status::from(WireError::UnknownKind { message: "to_worker" });
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert!(status.message().contains("`to_worker`"));
}
