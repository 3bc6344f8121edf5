//! Steps and evaluations on a device: loads, uploads, decides how a step runs, and asks for outcomes late.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use lockstep_collective::{Lane, Op as Operation};
use lockstep_data::{Delivered, Loader, Part, Partner, Split, Wanted};
use lockstep_proto::ids::{Epoch, Generation, SampleRange, Step};
use lockstep_proto::message::StepPlan;
use lockstep_proto::recipe::{Evaluate, Recipe, Reduction};
use lockstep_proto::split;
use lockstep_torch::TorchError;
use rayon::ThreadPool;
use rayon::prelude::*;
use tch::{Kind, Tensor};

use super::body::{Body, Frame, TARGET, control};
use super::captures::{Captures, Mode, Shape};
use super::gpu::{Event, Gpu, GpuError, Place, Stream, Work};
use super::memory::Memory;
use super::pending::{DEPTH, Enqueue, Pending, gpu_error};
use super::resident::{Resident, Staged};
use super::{average, ballot};
use crate::compute::{EvalOutcome, StepOutcome};
use crate::pulse::Pulse;
use crate::shard::Shard;
use crate::step::StepError;

/// Samples that an evaluation takes at a time, where their order of summation is not fixed.
const EVAL_BATCH: u64 = 512;

/// Where a batch waits on the host until the device has copied it.
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
    pub(super) loader: Loader,
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
    /// Counts the room that they wait in.
    slots: u32,
    shard: Option<Shard>,
}

/// Samples that are loaded together, and where they go.
#[derive(Clone, Copy)]
enum Source {
    /// Of which epoch, and of which global batch.
    Train(Epoch, SampleRange),
    Test,
}

/// Class, the class of the rest, and the first one's share, sample by sample.
fn targets(rows: &Delivered) -> Vec<f64> {
    let own = rows.labels.iter().map(|label| Partner { label: *label, keep: 1.0 });
    let partners: Vec<Partner> = if rows.partners.is_empty() { own.collect() } else { rows.partners.clone() };
    let target = |(label, partner): (&i64, &Partner)| [*label as f64, partner.label as f64, partner.keep];
    rows.labels.iter().zip(&partners).flat_map(target).collect()
}

impl Stepper {
    /// For a run.
    ///
    /// # Errors
    /// No memory on the device, or on the host.
    pub fn new(
        recipe: &Recipe,
        body: Body,
        (loader, pool): (Loader, ThreadPool),
        gpu: Box<dyn Gpu>,
    ) -> Result<Self, GpuError> {
        let resident = match (loader.dataset().resident(), gpu.fused()) {
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
            slots: 0,
            shard: None,
            pulse: Arc::default(),
            recipe: recipe.clone(),
            pool,
            body,
            loader,
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
        let frame = self.frame(plan);
        let ranges = self.ranges(&frame.shard);
        let (digest, data) = self.load(Source::Train(plan.epoch, plan.batch), &ranges)?;
        self.enqueue(generation, plan, (&frame, digest)).map_err(gpu_error)?;
        let done = self.outcome().map_err(gpu_error)?;
        self.pending.push(Enqueue { plan, generation, began, data }, done);
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

    fn frame(&self, plan: &StepPlan) -> Frame {
        let train = &self.recipe.train;
        let shard = Shard::new(plan, self.gpu.rank(), train.chunk, train.reduction, self.shard.as_ref());
        let [h, w, _] = self.loader.dataset().train_shape(plan.epoch);
        Frame { step: plan.step, batch: plan.batch.len, shard, image: (h, w) }
    }

    /// What each tape holds: a chunk, or with the fast order all of them.
    fn ranges(&self, shard: &Shard) -> Vec<SampleRange> {
        if self.recipe.train.reduction == Reduction::Canonical {
            return shard.chunks.clone();
        }
        let start = shard.chunks.first().map_or(0, |range| range.start);
        vec![SampleRange { start, len: shard.chunks.iter().map(|range| range.len).sum() }]
    }

    /// Loads batches, one a tape, and has them copied. Returns their digest, and the seconds that loading took.
    fn load(&mut self, source: Source, ranges: &[SampleRange]) -> Result<(u64, f64), StepError> {
        let began = Instant::now();
        self.body.make_room(ranges.len())?;
        let mut digest = 0_u64;
        for (tape, range) in ranges.iter().enumerate() {
            digest = digest.wrapping_add(self.load_one(source, tape, *range)?);
        }
        Ok((digest, began.elapsed().as_secs_f64()))
    }

    fn load_one(&mut self, source: Source, tape: usize, range: SampleRange) -> Result<u64, StepError> {
        let shape = match source {
            Source::Train(epoch, _) => self.loader.dataset().train_shape(epoch),
            Source::Test => self.loader.dataset().test_shape(),
        };
        let whole = match source {
            Source::Train(epoch, batch) => Wanted::Train(Part { epoch, batch, positions: range }),
            Source::Test => Wanted::Test(range),
        };
        if let Some(digest) = self.choose(whole, tape, shape).map_err(gpu_error)? {
            return Ok(digest);
        }
        let piece = range.len.div_ceil(self.pool.current_num_threads() as u64).max(1);
        let starts: Vec<u64> = (range.start..range.end()).step_by(piece as usize).collect();
        let mut pieces: Vec<Delivered> = starts.iter().map(|_| Delivered::default()).collect();
        let loader = &self.loader;
        self.pool.install(|| {
            pieces.par_iter_mut().zip(&starts).try_for_each(|(rows, start)| {
                let positions = SampleRange { start: *start, len: piece.min(range.end() - start) };
                let wanted = match source {
                    Source::Train(epoch, batch) => Wanted::Train(Part { epoch, batch, positions }),
                    Source::Test => Wanted::Test(positions),
                };
                loader.deliver(wanted, rows)
            })
        })?;
        self.hand_over(tape, &pieces, shape).map_err(gpu_error)?;
        Ok(pieces.iter().fold(0_u64, |sum, rows| sum.wrapping_add(rows.digest)))
    }

    /// Has the device take a batch from its own copy of the set, where it has one.
    fn choose(&mut self, wanted: Wanted, tape: usize, [h, w, c]: [usize; 3]) -> Result<Option<u64>, GpuError> {
        let Some(resident) = &self.resident else { return Ok(None) };
        let Some(chosen) = self.loader.choose(wanted) else { return Ok(None) };
        let n = chosen.samples.len();
        let ring = self.choices.entry(n).or_default();
        while ring.len() < (DEPTH + 1) * self.body.tapes.len() {
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
            let (images, mut targets) = body.place(tape, &[n, h, w, c].map(|x| x as i64))?;
            resident.take(split, &chosen, staged, (&images, &mut targets))
        })?;
        staged.read = Some(self.gpu.record(Stream::Compute)?);
        Ok(Some(chosen.digest))
    }

    /// Copies a batch to the device, behind what is enqueued.
    fn hand_over(&mut self, tape: usize, pieces: &[Delivered], [h, w, c]: [usize; 3]) -> Result<(), GpuError> {
        let n: usize = pieces.iter().map(|rows| rows.labels.len()).sum();
        let shape = [n, h, w, c].map(|x| x as i64);
        let ring = self.stagings.entry(shape).or_default();
        let wanted = (DEPTH + 1) * self.body.tapes.len();
        while ring.len() < wanted {
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
        let body = &mut self.body;
        let work = Work { name: "batch", reads: &[place], writes: &[Place::Batch] };
        self.gpu.run(Stream::Compute, work, &mut || body.take_batch(tape, (&staging.images, &staging.targets)))?;
        staging.read = Some(self.gpu.record(Stream::Compute)?);
        Ok(())
    }

    fn enqueue(&mut self, generation: Generation, plan: &StepPlan, batch: (&Frame, u64)) -> Result<(), GpuError> {
        let (frame, digest) = batch;
        self.upload(generation, plan, digest)?;
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
        let samples = self.loader.dataset().identity().num_test;
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
        for i in own {
            self.load(Source::Test, &[split::chunk_positions(all, size, i)])?;
            self.body.infer(&mut *self.gpu, &running, &sums).map_err(gpu_error)?;
            self.pulse.beat();
        }
        let op = Operation { lane: Lane::Norm, step, name: "evaluation", index: 0 };
        self.gpu.all_reduce(Stream::Compute, &op, Place::Totals, &sums).map_err(gpu_error)?;
        let total = self.read(&sums).map_err(gpu_error)?;
        let of = |sum: f64| sum / samples as f64;
        let (loss, error, error_top5) = (of(total[0]), of(total[1]), of(total[2]));
        let seconds = started.elapsed().as_secs_f64();
        Ok(EvalOutcome { loss, error, error_top5, samples, skipped: Vec::new(), seconds })
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
        let num_positions = self.loader.num_positions();
        let (batch, chunk) = (self.recipe.train.batch, self.recipe.train.chunk);
        let sum = self.body.running.f_zeros_like().map_err(TorchError::from)?;
        let batches = batches.min(num_positions.div_ceil(batch));
        self.body.round(&mut *self.gpu).map_err(gpu_error)?;
        for index in 0..batches {
            let start = index * batch;
            let range = SampleRange { start, len: batch.min(num_positions - start) };
            let shards = split::split_even(split::num_chunks(range.len, chunk), self.gpu.world());
            let plan = StepPlan { step, epoch: Epoch(1), lr: 0.0, batch: range, shards };
            let frame = self.frame(&plan);
            let ranges = self.ranges(&frame.shard);
            self.load(Source::Train(Epoch(1), range), &ranges)?;
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
