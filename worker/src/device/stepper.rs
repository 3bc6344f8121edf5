//! Steps and evaluations on a device: loads, uploads, decides how a step runs, and asks for outcomes late.
//!
//! With `data.image.bad = "skip"` ranks tell each other what they left out before a step is enqueued: all divide by the same
//! number of samples. That costs a message between hosts in every step, and a step that lacks samples is not captured.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use lockstep_collective::{Lane, Op as Operation};
use lockstep_data::{Delivered, Split, Wanted};
use lockstep_proto::ids::{Epoch, Generation, SampleRange, Step};
use lockstep_proto::message::{Skipped, StepPlan};
use lockstep_proto::recipe::{BadImage, Evaluate, Recipe, Reduction};
use lockstep_proto::split;
use lockstep_torch::TorchError;
use rayon::ThreadPool;
use tch::{Kind, Tensor};

use super::body::{Body, Frame, TARGET, control};
use super::captures::{Captures, Mode, Shape};
use super::gpu::{Event, Gpu, GpuError, Place, Stream, Work};
use super::memory::Memory;
use super::pending::{DEPTH, Enqueue, Pending, gpu_error};
use super::resident::{Resident, Staged};
use super::wanted::{Of, batches, pieces, targets};
use super::{average, ballot};
use crate::compute::{EvalOutcome, StepOutcome};
use crate::load::{Loaded as Pace, Source};
use crate::pulse::Pulse;
use crate::shard::{Shard, positions};
use crate::skip::{gather, some_left};
use crate::step::StepError;

/// Samples that an evaluation takes at a time, where their order of summation is not fixed.
const EVAL_BATCH: u64 = 512;

/// Where a batch waits on the host until the device has copied it: room for one of which nothing is left out.
struct Staging {
    slot: u32,
    images: Tensor,
    targets: Tensor,
    /// Behind the last copy.
    read: Option<Event>,
}

/// Everything but the state's copy on the host.
pub struct Stepper {
    pub(super) body: Body,
    pub(super) gpu: Box<dyn Gpu>,
    pub(super) source: Source,
    pub(super) pulse: Arc<Pulse>,
    pub(super) captures: Captures,
    pub(super) pending: Pending,
    recipe: Recipe,
    /// Loads: everything else belongs to the thread that owns the device's streams.
    pool: ThreadPool,
    /// By samples and size of a batch: rings, so that a batch is not overwritten while it is copied.
    stagings: BTreeMap<[i64; 4], Vec<Staging>>,
    /// The same for choices of samples.
    choices: BTreeMap<usize, Vec<Staged>>,
    /// The device's own copy of the set.
    resident: Option<Resident>,
    /// Counts batches.
    loaded: usize,
    /// Rooms of a kind that may be in use at once.
    depth: usize,
    /// Counts the room that they wait in.
    slots: u32,
    shard: Option<Shard>,
}

/// What was loaded.
#[derive(Debug, Default)]
struct Loaded {
    /// Digest of what the loader delivered.
    digest: u64,
    /// Samples of each batch.
    lens: Vec<u64>,
    /// What this rank left out.
    skipped: Vec<Skipped>,
    /// How it went.
    pace: Pace,
}

impl Stepper {
    /// For a run.
    ///
    /// # Errors
    /// No memory on the device, or on the host.
    pub fn new(
        recipe: &Recipe,
        body: Body,
        (source, pool): (Source, ThreadPool),
        gpu: Box<dyn Gpu>,
    ) -> Result<Self, GpuError> {
        let resident = match (source.loader.dataset().resident(), gpu.fused()) {
            (Some(set), Some(fused)) => Some(Resident::new(set, fused, gpu.device())?),
            _ => None,
        };
        Ok(Self {
            resident,
            choices: BTreeMap::new(),
            pending: Pending::new(&*gpu)?,
            captures: Captures::new(Step(0), None),
            stagings: BTreeMap::new(),
            loaded: 0,
            depth: 0,
            slots: 0,
            shard: None,
            pulse: Arc::default(),
            recipe: recipe.clone(),
            pool,
            body,
            source,
            gpu,
        })
    }

    /// Enqueues a step. Returns what is known by now of steps that were enqueued.
    ///
    /// # Errors
    /// Any, of this step or one before it; the state is that of the last step that counted.
    pub fn advance(&mut self, generation: Generation, plan: &StepPlan) -> Result<Vec<(Step, StepOutcome)>, StepError> {
        let began = Instant::now();
        let mut known = Vec::new();
        while self.pending.len() >= DEPTH {
            known.extend(self.settle()?);
        }
        let (frame, loaded) = self.take_up(plan)?;
        let (skipped, pace) = (loaded.skipped, loaded.pace);
        self.enqueue(generation, plan, (&frame, loaded.digest, skipped.is_empty())).map_err(gpu_error)?;
        let done = self.outcome().map_err(gpu_error)?;
        self.pending.push(Enqueue { plan, generation, skipped, began, pace }, done);
        self.pulse.beat();
        self.shard = Some(frame.shard);
        while self.pending.is_known(&mut *self.gpu).map_err(gpu_error)? {
            known.extend(self.settle()?);
        }
        Ok(known)
    }

    /// Waits for the oldest step under way.
    ///
    /// # Errors
    /// As [`advance`](Self::advance).
    pub fn settle(&mut self) -> Result<Option<(Step, StepOutcome)>, StepError> {
        let (pending, gpu) = (&mut self.pending, &mut self.gpu);
        self.pulse.wait(|| pending.settle(&mut **gpu))
    }

    /// Loads this rank's part of a step; what was left out is that of all ranks.
    fn take_up(&mut self, plan: &StepPlan) -> Result<(Frame, Loaded), StepError> {
        let train = &self.recipe.train;
        let (rank, chunk, is_apart) = (self.gpu.rank(), train.chunk, self.body.is_apart());
        let shard = Shard::new(plan, rank, chunk, train.reduction, self.shard.as_ref());
        let (ranges, parts) = (batches(shard.chunks.clone(), is_apart), self.parts(&shard));
        let num = self.pool.current_num_threads();
        self.source.begin(plan, |plan| {
            let own = batches(positions(plan, rank, chunk).collect(), is_apart);
            own.into_iter().flat_map(|range| pieces(range, num)).collect()
        });
        let mut loaded = self.load(Of::Train(plan.epoch, plan.batch), &ranges)?;
        let op = Operation { lane: Lane::Norm, step: plan.step, name: "samples left out", index: 0 };
        let own = std::mem::take(&mut loaded.skipped);
        let what = || format!("step {} (positions {} of epoch {})", plan.step, plan.batch, plan.epoch);
        loaded.skipped = self.left_out(&op, &own, (plan.batch.len, &what))?;
        let [h, w, _] = self.source.loader.dataset().train_shape(plan.epoch);
        let (batch, lens) = (plan.batch.len - loaded.skipped.len() as u64, std::mem::take(&mut loaded.lens));
        Ok((Frame { step: plan.step, batch, shard, image: (h, w), lens, parts }, loaded))
    }

    /// Which batches are computed together.
    fn parts(&self, shard: &Shard) -> Vec<Range<usize>> {
        if !self.body.is_apart() {
            return std::iter::once(0..1).collect();
        }
        let mut at = 0;
        let part = |part: crate::shard::Part| {
            at += part.chunks.len();
            at - part.chunks.len()..at
        };
        shard.parts(self.recipe.train.accumulate, 0).into_iter().map(part).collect()
    }

    /// What all ranks left out of `total` samples, ascending.
    fn left_out(
        &mut self,
        op: &Operation,
        own: &[Skipped],
        (total, what): (u64, &dyn Fn() -> String),
    ) -> Result<Vec<Skipped>, StepError> {
        if self.recipe.data.image.bad != BadImage::Skip {
            return Ok(Vec::new());
        }
        let gpu = &mut self.gpu;
        let all = self.pulse.wait(|| gather(op, own, |mine| gpu.gather(op, mine)).map_err(gpu_error))?;
        some_left(all, total, what)
    }

    /// Loads batches and has them copied.
    fn load(&mut self, of: Of, ranges: &[SampleRange]) -> Result<Loaded, StepError> {
        let began = Instant::now();
        let mut loaded = Loaded::default();
        self.depth = (DEPTH + 1) * ranges.len().max(1);
        for (batch, range) in ranges.iter().enumerate() {
            self.load_one(of, (batch, *range), &mut loaded)?;
        }
        loaded.pace.seconds = began.elapsed().as_secs_f64();
        Ok(loaded)
    }

    fn load_one(&mut self, of: Of, (batch, range): (usize, SampleRange), loaded: &mut Loaded) -> Result<(), StepError> {
        let dataset = self.source.loader.dataset();
        let shape = match of {
            Of::Train(epoch, _) => dataset.train_shape(epoch),
            Of::Test => dataset.test_shape(),
        };
        if let Some(digest) = self.choose(of.wanted(range), batch, shape).map_err(gpu_error)? {
            loaded.digest = loaded.digest.wrapping_add(digest);
            loaded.lens.push(range.len);
            return Ok(());
        }
        let all: Vec<Wanted> =
            pieces(range, self.pool.current_num_threads()).map(|positions| of.wanted(positions)).collect();
        let (source, pace) = (&mut self.source, &mut loaded.pace);
        let mut rows = self.pool.install(|| source.fetch(&all, pace))?;
        self.hand_over((batch, range.len), &rows, shape).map_err(gpu_error)?;
        loaded.digest = rows.iter().fold(loaded.digest, |sum, rows| sum.wrapping_add(rows.digest));
        loaded.lens.push(rows.iter().map(|rows| rows.labels.len() as u64).sum());
        loaded.skipped.extend(rows.iter_mut().flat_map(|rows| rows.skipped.drain(..)));
        self.source.give_back(rows);
        Ok(())
    }

    /// Has the device take a batch from its own copy of the set, where it has one.
    fn choose(&mut self, wanted: Wanted, batch: usize, [h, w, c]: [usize; 3]) -> Result<Option<u64>, GpuError> {
        let Some(resident) = &self.resident else { return Ok(None) };
        let Some(chosen) = self.source.loader.choose(wanted) else { return Ok(None) };
        let n = chosen.samples.len();
        let ring = self.choices.entry(n).or_default();
        while ring.len() < self.depth {
            self.slots += 1;
            ring.push(Resident::room(&*self.gpu, n, self.slots)?);
        }
        self.loaded += 1;
        let at = self.loaded % ring.len();
        let (staged, body) = (&mut ring[at], &mut self.body);
        let split = if matches!(wanted, Wanted::Train(_)) { Split::Train } else { Split::Test };
        let from = Place::Staging(staged.slot);
        self.gpu.release(from, staged.read)?;
        let work = Work { name: "batch", reads: &[from], writes: &[Place::Batch] };
        self.gpu.run(Stream::Compute, work, &mut || {
            let (images, mut targets) = body.place(batch, &[n, h, w, c].map(|x| x as i64), n as i64)?;
            resident.take(split, &chosen, staged, (&images, &mut targets))
        })?;
        staged.read = Some(self.gpu.record(Stream::Compute)?);
        Ok(Some(chosen.digest))
    }

    /// Copies a batch to the device, behind what is enqueued: to where `room` samples have room.
    fn hand_over(
        &mut self,
        (batch, room): (usize, u64),
        pieces: &[Delivered],
        [h, w, c]: [usize; 3],
    ) -> Result<(), GpuError> {
        let n = room as usize;
        let shape = [n, h, w, c].map(|x| x as i64);
        let ring = self.stagings.entry(shape).or_default();
        while ring.len() < self.depth {
            let images = self.gpu.host_room(n * h * w * c, Kind::Float)?;
            let targets = self.gpu.host_room(n * TARGET as usize, Kind::Double)?;
            let images = images.f_view(shape).map_err(TorchError::from)?;
            let targets = targets.f_view([n as i64, TARGET]).map_err(TorchError::from)?;
            self.slots += 1;
            ring.push(Staging { slot: self.slots, images, targets, read: None });
        }
        self.loaded += 1;
        let at = self.loaded % ring.len();
        let staging = &mut ring[at];
        let place = Place::Staging(staging.slot);
        self.gpu.release(place, staging.read)?;
        let mut first = 0;
        for rows in pieces {
            let len = rows.labels.len() as i64;
            let part = |of: &Tensor| of.f_narrow(0, first, len).map_err(TorchError::from);
            lockstep_torch::write(&mut part(&staging.images)?, &rows.images)?;
            lockstep_torch::write(&mut part(&staging.targets)?, &targets(rows))?;
            first += len;
        }
        let (body, room) = (&mut self.body, room as i64);
        let there = |of: &Tensor| of.f_narrow(0, 0, first).map_err(TorchError::from);
        let (images, targets) = (there(&staging.images)?, there(&staging.targets)?);
        let work = Work { name: "batch", reads: &[place], writes: &[Place::Batch] };
        self.gpu.run(Stream::Compute, work, &mut || body.take_batch((batch, room), (&images, &targets)))?;
        staging.read = Some(self.gpu.record(Stream::Compute)?);
        Ok(())
    }

    fn enqueue(
        &mut self,
        generation: Generation,
        plan: &StepPlan,
        (frame, digest, is_whole): (&Frame, u64, bool),
    ) -> Result<(), GpuError> {
        self.upload(generation, plan, digest)?;
        if !is_whole {
            // Every rank knows it, and shapes like these do not come again.
            return self.body.enqueue(&mut *self.gpu, frame);
        }
        let shape = Shape { batch: plan.batch.len, shards: plan.shards.clone(), image: frame.image };
        match self.captures.decide(plan.step, &shape) {
            Mode::Eager => self.body.enqueue(&mut *self.gpu, frame),
            Mode::Replay(graph) => self.gpu.replay(graph),
            Mode::Capture => self.capture(frame, shape),
        }
    }

    /// Captures a step and runs it; or, where one rank cannot, every rank runs it eagerly, now and later.
    fn capture(&mut self, frame: &Frame, shape: Shape) -> Result<(), GpuError> {
        let body = &mut self.body;
        let captured = self.gpu.capture(&mut |gpu| body.enqueue(gpu, frame));
        let op = Operation { lane: Lane::Norm, step: frame.step, name: "capture", index: 0 };
        if self.gpu.agree(&op, captured.is_ok())? {
            let graph = captured?;
            self.captures.keep(shape, graph);
            return self.gpu.replay(graph);
        }
        let why = match captured {
            Ok(graph) => {
                self.gpu.destroy(graph)?;
                "another rank could not capture a step".to_owned()
            }
            Err(error) => format!("a step could not be captured: {error}"),
        };
        tracing::warn!("{why}; steps run without graphs");
        self.captures.refuse(why);
        self.body.enqueue(&mut *self.gpu, frame)
    }

    fn upload(&mut self, generation: Generation, plan: &StepPlan, digest: u64) -> Result<(), GpuError> {
        let index = plan.batch.start / self.recipe.train.batch;
        let mut numbers = vec![0.0; control::LEN as usize];
        numbers[control::LR as usize] = plan.lr;
        numbers[control::STEP as usize] = plan.step.0 as f64;
        numbers[control::VOTE as usize] = ballot::vote(generation, plan.step, self.gpu.rank());
        numbers[control::EXPECTED as usize] = ballot::expected(generation, plan.step, self.gpu.world());
        let (keep, take) = average::shares(&self.recipe.train, plan.epoch, plan.step);
        numbers[control::AVERAGE_KEEP as usize] = keep;
        numbers[control::AVERAGE_TAKE as usize] = take;
        numbers[control::BN_MOMENTUM as usize] = self.recipe.model.bn_momentum.at(index);
        for i in 0..4 {
            numbers[control::DIGEST as usize + i] = ((digest >> (16 * i)) & 0xffff) as f64;
        }
        self.gpu.upload(Stream::Compute, Place::Control, &mut self.body.control, &numbers)
    }

    /// Has the outcome copied to the host.
    fn outcome(&mut self) -> Result<Event, GpuError> {
        let (slot, mut room) = self.pending.room();
        let body = &self.body;
        let reads = [Place::Totals, Place::Vote, Place::Applied];
        let work = Work { name: "outcome", reads: &reads, writes: &[Place::Outcome(slot)] };
        self.gpu.run(Stream::Compute, work, &mut || {
            let all = Tensor::f_cat(&[&body.totals, &body.votes, &body.applied], 0)?;
            lockstep_torch::copy_later(&mut room, &all)
        })?;
        self.gpu.record(Stream::Compute)
    }

    /// Mean loss and error fractions of the state, of the whole test set, equal on every rank.
    ///
    /// # Errors
    /// A collective that failed; libtorch.
    pub fn evaluate(&mut self, step: Step) -> Result<EvalOutcome, StepError> {
        let started = Instant::now();
        let samples = self.source.loader.dataset().identity().num_test;
        let averaged = match self.recipe.train.evaluate {
            Evaluate::Ema => self.body.swap_average()?,
            Evaluate::Model => false,
        };
        let result = self.evaluate_weights(step, (started, samples));
        if averaged {
            self.body.swap_average()?;
        }
        result
    }

    fn evaluate_weights(&mut self, step: Step, (started, samples): (Instant, u64)) -> Result<EvalOutcome, StepError> {
        let is_ordered = self.recipe.train.reduction == Reduction::Canonical;
        let size = if is_ordered { self.recipe.train.eval_chunk } else { EVAL_BATCH as u32 };
        let num_chunks = split::num_chunks(samples, size);
        let counts = split::split_even(num_chunks, self.gpu.world());
        let own = split::ranges(&counts)[self.gpu.rank().0 as usize].clone();
        let all = SampleRange { start: 0, len: samples };
        let running = match self.recipe.model.bn_precise {
            0 => self.body.running.shallow_clone(),
            batches => self.precise(step, batches)?,
        };
        let sums = Tensor::f_zeros([3], (Kind::Double, self.gpu.device())).map_err(TorchError::from)?;
        self.body.round(&mut *self.gpu).map_err(gpu_error)?;
        let mut skipped = Vec::new();
        let num = self.pool.current_num_threads();
        for i in own.clone() {
            let soon = (i..own.end).take(1 + DEPTH).flat_map(|i| pieces(split::chunk_positions(all, size, i), num));
            self.source.expect(soon.map(Wanted::Test));
            let loaded = self.load(Of::Test, &[split::chunk_positions(all, size, i)])?;
            skipped.extend(loaded.skipped);
            self.body.infer(&mut *self.gpu, &running, &sums).map_err(gpu_error)?;
            self.pulse.beat();
        }
        let op = Operation { lane: Lane::Norm, step, name: "test samples left out", index: 0 };
        let skipped = self.left_out(&op, &skipped, (samples, &|| "the test set".to_owned()))?;
        let samples = samples - skipped.len() as u64;
        let op = Operation { lane: Lane::Norm, step, name: "evaluation", index: 0 };
        self.gpu.all_reduce(Stream::Compute, &op, Place::Totals, &sums).map_err(gpu_error)?;
        let total = self.read(&sums).map_err(gpu_error)?;
        let of = |sum: f64| sum / samples as f64;
        let (loss, error, error_top5) = (of(total[0]), of(total[1]), of(total[2]));
        let seconds = started.elapsed().as_secs_f64();
        Ok(EvalOutcome { loss, error, error_top5, samples, skipped, seconds })
    }

    /// Waits for numbers of the device.
    fn read(&mut self, numbers: &Tensor) -> Result<Vec<f64>, GpuError> {
        let mut room = self.gpu.host_room(numbers.numel(), Kind::Double)?;
        let place = Place::Outcome(u32::MAX);
        let work = Work { name: "read", reads: &[Place::Totals], writes: &[place] };
        self.gpu.run(Stream::Compute, work, &mut || lockstep_torch::copy_later(&mut room, numbers))?;
        let done = self.gpu.record(Stream::Compute)?;
        self.gpu.fetch(done, place, &room)
    }

    /// The plain average of batch statistics over training batches of epoch 1, at most an epoch (Wu & Johnson 2021,
    /// section 3.2).
    fn precise(&mut self, step: Step, batches: u64) -> Result<Tensor, StepError> {
        let num_positions = self.source.loader.num_positions();
        let (batch, chunk) = (self.recipe.train.batch, self.recipe.train.chunk);
        let sum = self.body.running.f_zeros_like().map_err(TorchError::from)?;
        let batches = batches.min(num_positions.div_ceil(batch));
        self.body.round(&mut *self.gpu).map_err(gpu_error)?;
        for index in 0..batches {
            let start = index * batch;
            let range = SampleRange { start, len: batch.min(num_positions - start) };
            let shards = split::split_even(split::num_chunks(range.len, chunk), self.gpu.world());
            let plan = StepPlan { step, epoch: Epoch(1), lr: 0.0, batch: range, shards };
            let (frame, _) = self.take_up(&plan)?;
            self.body.add_statistics(&mut *self.gpu, &frame, &sum).map_err(gpu_error)?;
        }
        Ok(sum.f_div_scalar(batches.max(1) as f64).map_err(TorchError::from)?)
    }

    /// What is on the device, by part; `None` where it is the host's memory.
    pub fn memory(&self) -> Option<Memory> {
        let memory = self.body.memory(self.gpu.usage()?);
        Some(memory.with("data set", self.resident.iter().flat_map(|resident| resident.tensors())))
    }

    /// The gradient of the last step, flat, on the device: for proofs and the canary.
    pub fn gradient(&self) -> &Tensor {
        self.body.gradient()
    }
}
