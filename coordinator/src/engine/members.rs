//! Who is connected.

use std::collections::BTreeMap;
use std::time::Duration;

use lockstep_proto::ids::{StateId, Step, WorkerId};
use lockstep_proto::message::{GpuHealth, Hello, Ready};

use super::event::StreamId;

/// What a worker process is doing, as far as the engine knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Welcomed; loads data and builds its replicas.
    Loading,
    /// Could be given ranks.
    Idle,
    /// Has ranks in the open generation, and was told so.
    Busy,
    /// Was told to halt, and has not said that it did.
    Halting,
}

/// A worker process that was welcomed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Peer {
    pub(super) hello: Hello,
    /// `None` while loading.
    pub(super) ready: Option<Ready>,
    /// What it said it holds, when it last stood still.
    pub(super) state: Option<StateId>,
    pub(super) standing: Standing,
    /// When it last said anything.
    pub(super) heard: Duration,
    /// The last step that all of its ranks reported.
    pub(super) step: Step,
    /// It asked to go.
    pub(super) is_leaving: bool,
    /// How its GPUs are.
    pub(super) gpus: Vec<GpuHealth>,
}

impl Peer {
    pub(super) fn new(hello: Hello, now: Duration) -> Self {
        Self {
            hello,
            ready: None,
            state: None,
            standing: Standing::Loading,
            heard: now,
            step: Step(0),
            is_leaving: false,
            gpus: Vec::new(),
        }
    }

    pub(super) fn worker(&self) -> &WorkerId {
        &self.hello.worker
    }

    pub(super) fn num_replicas(&self) -> u64 {
        self.hello.devices.len() as u64
    }
}

/// All of them, by stream.
#[derive(Debug, Default)]
pub(super) struct Roster(BTreeMap<StreamId, Peer>);

impl Roster {
    pub(super) fn insert(&mut self, stream: StreamId, peer: Peer) {
        self.0.insert(stream, peer);
    }

    pub(super) fn remove(&mut self, stream: StreamId) -> Option<Peer> {
        self.0.remove(&stream)
    }

    pub(super) fn get(&self, stream: StreamId) -> Option<&Peer> {
        self.0.get(&stream)
    }

    pub(super) fn get_mut(&mut self, stream: StreamId) -> Option<&mut Peer> {
        self.0.get_mut(&stream)
    }

    pub(super) fn find(&self, worker: &WorkerId) -> Option<StreamId> {
        self.0.iter().find(|(_, peer)| peer.worker() == worker).map(|(stream, _)| *stream)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (StreamId, &Peer)> {
        self.0.iter().map(|(stream, peer)| (*stream, peer))
    }

    /// Streams of those that stand so, in order of their workers' names.
    pub(super) fn standing(&self, standing: Standing) -> Vec<StreamId> {
        let mut found: Vec<_> = self.iter().filter(|(_, peer)| peer.standing == standing).collect();
        found.sort_by(|(_, a), (_, b)| a.worker().cmp(b.worker()));
        found.into_iter().map(|(stream, _)| stream).collect()
    }
}
