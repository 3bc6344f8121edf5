//! Workers that reach the coordinator and not each other. Every generation with both in it fails, though each of them
//! lives; so one of them is left out for a while.
//!
//! A complaint names two workers, of which one cannot reach the other: nothing in it tells whose fault that is. Over some
//! generations it shows: whoever has trouble with most others.
//!
//! ```text
//! generation failed without a step ─► one has trouble with two others, and more than anyone ─► it is left out
//!                                     else, after three such generations, one of those that have most ─► the same
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lockstep_proto::ids::WorkerId;
use serde_json::json;

use super::config::{LEFT_OUT, PATIENT_GENERATIONS};
use super::event::StreamId;
use super::members::Standing;
use super::{Engine, Phase};

/// Trouble between workers since the last committed step, and who is left out because of it.
#[derive(Debug, Default)]
pub(super) struct Blame {
    /// Pairs of which one could not reach the other, the lesser name first.
    pairs: BTreeSet<(WorkerId, WorkerId)>,
    /// When the first of them was complained about.
    since: Duration,
    left_out: BTreeMap<WorkerId, LeftOut>,
}

/// Until when, and how often already.
#[derive(Clone, Copy, Debug)]
struct LeftOut {
    until: Duration,
    times: u32,
}

impl Blame {
    pub(super) fn complaint(&mut self, complainer: &WorkerId, culprit: &WorkerId, now: Duration) {
        if complainer == culprit {
            return;
        }
        if self.pairs.is_empty() {
            self.since = now;
        }
        let (lesser, greater) = (complainer.min(culprit), complainer.max(culprit));
        self.pairs.insert((lesser.clone(), greater.clone()));
    }

    /// These workers did a step together.
    pub(super) fn absolve<'a>(&mut self, workers: impl Iterator<Item = &'a WorkerId>) {
        self.pairs.clear();
        if !self.left_out.is_empty() {
            for worker in workers {
                self.left_out.remove(worker);
            }
        }
    }

    pub(super) fn leaves_out(&self, worker: &WorkerId, now: Duration) -> bool {
        self.left_out.get(worker).is_some_and(|left_out| left_out.until > now)
    }

    /// When the next one may come in again.
    pub(super) fn next_return(&self, now: Duration) -> Option<Duration> {
        self.left_out.values().map(|left_out| left_out.until).filter(|until| *until > now).min()
    }

    /// With how many others each of these has trouble, most first; whose name comes last before its equals.
    fn degrees(&self, present: &BTreeSet<WorkerId>) -> Vec<(usize, WorkerId)> {
        let mut degrees = BTreeMap::<&WorkerId, usize>::new();
        for (a, b) in self.pairs.iter().filter(|(a, b)| present.contains(a) && present.contains(b)) {
            *degrees.entry(a).or_default() += 1;
            *degrees.entry(b).or_default() += 1;
        }
        let mut degrees: Vec<_> = degrees.into_iter().map(|(worker, degree)| (degree, worker.clone())).collect();
        degrees.sort();
        degrees.reverse();
        degrees
    }

    /// Whom to do without, after so many generations without a step.
    pub(super) fn most_blamed(&self, present: &BTreeSet<WorkerId>, num_fruitless: u32) -> Option<WorkerId> {
        let degrees = self.degrees(present);
        let (degree, worker) = degrees.first()?.clone();
        let is_alone = degrees.get(1).is_none_or(|(next, _)| *next < degree);
        (degree >= 2 && is_alone || num_fruitless >= PATIENT_GENERATIONS).then_some(worker)
    }
}

impl Engine {
    /// Streams of workers that could be given ranks.
    pub(super) fn available(&self) -> Vec<StreamId> {
        let mut streams = self.roster.standing(Standing::Idle);
        let is_left_out = |stream: &StreamId| {
            self.roster.get(*stream).is_some_and(|peer| self.blame.leaves_out(peer.worker(), self.now))
        };
        streams.retain(|stream| !is_left_out(stream));
        streams
    }

    /// After a generation in which nothing could be done: whether that is because of one worker that the run can do
    /// without.
    pub(super) fn leave_out_who_fails_all(&mut self) {
        if !matches!(self.phase, Phase::Closing { .. }) || self.num_fruitless == 0 {
            return;
        }
        let available = self.available();
        let workers = available.iter().filter_map(|stream| self.roster.get(*stream).map(|peer| peer.worker().clone()));
        let present: BTreeSet<WorkerId> = workers.collect();
        let Some(worker) = self.blame.most_blamed(&present, self.num_fruitless) else { return };
        let Some(stream) = self.roster.find(&worker) else { return };
        let others: Vec<StreamId> = available.into_iter().filter(|other| *other != stream).collect();
        if self.lack_of(&others).is_some() {
            return; // it is needed: only its network's mending helps
        }
        let troubled: Vec<String> = self
            .blame
            .pairs
            .iter()
            .filter(|(a, b)| *a == worker || *b == worker)
            .map(|(a, b)| if *a == worker { b.to_string() } else { a.to_string() })
            .collect();
        let times = self.blame.left_out.get(&worker).map_or(0, |before| before.times) + 1;
        let lost = self.now.saturating_sub(self.blame.since);
        let (least, most) = LEFT_OUT;
        let pause = (lost * 5).max(least).saturating_mul(1 << (times - 1).min(10)).min(most);
        let until = self.now.saturating_add(pause);
        let reason = format!(
            "it and {} cannot reach each other, though the coordinator reaches them; check its data-plane address \
             (--advertise), routes and firewall",
            troubled.join(", ")
        );
        let detail = json!({ "reason": reason, "seconds": pause.as_secs_f64(), "times": times });
        self.note("left_out", Some(worker.clone()), detail);
        self.blame.left_out.insert(worker, LeftOut { until, times });
        self.blame.pairs.clear();
        self.num_fruitless = 0;
    }
}
