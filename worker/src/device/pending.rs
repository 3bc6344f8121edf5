//! Outcomes of steps that were enqueued and are not known yet.

use std::collections::VecDeque;
use std::time::Instant;

use lockstep_collective::CollectiveError;
use lockstep_proto::ids::{Generation, Step};
use lockstep_proto::message::{Skipped, StepPlan, StepTimes};
use tch::{Kind, Tensor};

use super::ballot;
use super::body::outcome;
use super::gpu::{Event, Gpu, GpuError, Place};
use crate::compute::StepOutcome;
use crate::load::Loaded;
use crate::step::{NotFinite, StepError};

/// Steps that may be under way: one computes while the next is enqueued.
pub const DEPTH: usize = 2;

/// A step under way.
#[derive(Debug)]
struct Enqueued {
    plan: StepPlan,
    generation: Generation,
    skipped: Vec<Skipped>,
    done: Event,
    slot: u32,
    began: Instant,
    pace: Loaded,
    /// Seconds of enqueueing.
    enqueued: f64,
}

/// The ring of outcomes.
pub struct Pending {
    rooms: Vec<Tensor>,
    queue: VecDeque<Enqueued>,
    next: u32,
    last_known: Option<Instant>,
}

/// A step to be waited for.
pub struct Enqueue<'a> {
    /// Its plan.
    pub plan: &'a StepPlan,
    /// Its generation.
    pub generation: Generation,
    /// What all ranks left out of it.
    pub skipped: Vec<Skipped>,
    /// When it was begun.
    pub began: Instant,
    /// How loading went.
    pub(crate) pace: Loaded,
}

impl Pending {
    /// A ring of rooms on the host.
    ///
    /// # Errors
    /// No memory.
    pub fn new(gpu: &dyn Gpu) -> Result<Self, GpuError> {
        let rooms = (0..=DEPTH).map(|_| gpu.host_room(outcome::LEN, Kind::Double)).collect::<Result<_, _>>()?;
        Ok(Self { rooms, queue: VecDeque::new(), next: 0, last_known: None })
    }

    /// Number of steps under way.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Where the next outcome goes.
    pub fn room(&self) -> (u32, Tensor) {
        (self.next, self.rooms[self.next as usize].shallow_clone())
    }

    /// A step is enqueued; its outcome will be in [`room`](Self::room) after `done`.
    pub fn push(&mut self, enqueue: Enqueue<'_>, done: Event) {
        let Enqueue { plan, generation, skipped, began, pace } = enqueue;
        let enqueued = began.elapsed().as_secs_f64() - pace.seconds;
        let (plan, slot) = (plan.clone(), self.next);
        self.queue.push_back(Enqueued { plan, generation, skipped, done, slot, began, pace, enqueued });
        self.next = (self.next + 1) % self.rooms.len() as u32;
    }

    /// Whether the oldest step is known: settling it waits for nothing.
    ///
    /// # Errors
    /// The device is lost, or a collective has failed.
    pub fn is_known(&self, gpu: &mut dyn Gpu) -> Result<bool, GpuError> {
        self.queue.front().map_or(Ok(false), |oldest| gpu.is_done(oldest.done))
    }

    /// The outcome of the oldest step, once it is known.
    ///
    /// # Errors
    /// A collective that failed, votes that do not add up, a loss that is no number: the state is that before the step.
    pub fn settle(&mut self, gpu: &mut dyn Gpu) -> Result<Option<(Step, StepOutcome)>, StepError> {
        let Some(oldest) = self.queue.pop_front() else { return Ok(None) };
        let room = &self.rooms[oldest.slot as usize];
        let waited = Instant::now();
        let values = gpu.fetch(oldest.done, Place::Outcome(oldest.slot), room).map_err(gpu_error)?;
        let waited = waited.elapsed().as_secs_f64();
        let (plan, generation) = (&oldest.plan, oldest.generation);
        let want = ballot::expected(generation, plan.step, gpu.world());
        if values[outcome::VOTE] != want {
            let sums = format!("{} instead of {want}", values[outcome::VOTE]);
            return Err(CollectiveError::Outvoted { step: plan.step, sums }.into());
        }
        let loss = values[outcome::LOSS];
        if !loss.is_finite() {
            let (step, epoch, positions) = (plan.step, plan.epoch, plan.batch);
            let samples = "which samples, a run with --devices cpu would tell".into();
            return Err(NotFinite { step, epoch, positions, what: format!("loss is {loss}"), samples }.into());
        }
        if values[outcome::APPLIED] != plan.step.0 as f64 {
            let sums = format!("sound, but the state is still that after step {}", values[outcome::APPLIED]);
            return Err(CollectiveError::Outvoted { step: plan.step, sums }.into());
        }
        let digest = (0..4).fold(0_u64, |sum, i| sum.wrapping_add((values[outcome::DIGEST + i] as u64) << (16 * i)));
        let now = Instant::now();
        // A step begins when the one before it is known, or when it was enqueued, whatever is later.
        let began = self.last_known.map_or(oldest.began, |last| last.max(oldest.began));
        self.last_known = Some(now);
        let wall = (now - began).as_secs_f64();
        let compute = (oldest.enqueued + waited).min(wall);
        let samples = plan.batch.len - oldest.skipped.len() as u64;
        Ok(Some((
            plan.step,
            StepOutcome {
                loss: loss / samples as f64,
                wrong: values[outcome::WRONG] as u64,
                samples,
                skipped: oldest.skipped,
                digest,
                ready: oldest.pace.ready(),
                times: StepTimes { data: oldest.pace.seconds, compute, comm: 0.0, wall },
            },
        )))
    }

    /// Forgets all steps under way: their generation is over.
    pub fn clear(&mut self) {
        self.queue.clear();
        self.last_known = None;
    }
}

/// As an error of a step.
pub fn gpu_error(error: GpuError) -> StepError {
    match error {
        GpuError::Collective(error) => StepError::Collective(error),
        GpuError::Torch(error) => StepError::Torch(error),
        GpuError::Lost { .. } => StepError::Lost(error.to_string()),
    }
}
