//! The step loop, top to bottom as the algorithm: load · forward · loss · backward, with buckets reduced meanwhile ·
//! wait · optimizer · running statistics. Everything before the wait leaves the state as it was, so a collective that
//! fails never reaches the weights.

use std::sync::Arc;
use std::time::Instant;

use lockstep_collective::{Collective, CollectiveError, Solo};
use lockstep_data::{DataError, Loader};
use lockstep_proto::ids::{Generation, SampleRange, StateId, Step};
use lockstep_proto::message::{StepPlan, StepTimes};
use lockstep_proto::recipe::{BatchNorm, Precision, Recipe};
use lockstep_torch::TorchError;
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use crate::compute::StepOutcome;
use crate::exec::{
    Backward, Buckets, Chunk, Counts, Forward, Meeting, Reducer, Scope, Statistics, backward, backward_fixed,
    cross_entropy, forward, running_update,
};
use crate::number::Number;
use crate::optim::{Optimizer, Pace};
use crate::program::{FlatLayout, NormId, Op, Param, ParamId, Program, Segment};
use crate::pulse::Pulse;
use crate::shard::Shard;
use crate::state::{State, view_of};
use crate::tuning::Tuning;

/// Why a step did not happen. The state is as it was.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// A collective failed.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// libtorch.
    #[error(transparent)]
    Torch(#[from] TorchError),
    /// A sample cannot be delivered.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The loss is NaN or infinite.
    #[error(
        "the loss of step {step} is {loss} (positions {positions} of epoch {epoch}): lower the learning rate or \
             warm it up, and look at these samples"
    )]
    NotFinite {
        /// The step.
        step: Step,
        /// The loss.
        loss: f64,
        /// Its epoch.
        epoch: u64,
        /// Its global batch.
        positions: SampleRange,
    },
}

/// Everything but the state that steps need; `A` is the number type of the weights.
pub struct Stepper<A> {
    pub(crate) program: Arc<Program>,
    pub(crate) layout: Arc<FlatLayout>,
    pub(crate) segments: Vec<Segment>,
    pub(crate) tuning: Tuning,
    pub(crate) chunks: Vec<Chunk<A>>,
    pub(crate) loader: Loader,
    pub(crate) recipe: Recipe,
    kind: Kind,
    image: [usize; 3],
    /// What operations see: the master weights, or with bf16 a buffer cast once a step.
    compute: Tensor,
    gradient: Tensor,
    optimizer: Optimizer,
    collective: Arc<dyn Collective>,
    reducer: Reducer<A>,
    buckets: Buckets<A>,
    shard: Option<Shard>,
    /// Counts chunks.
    pub(crate) pulse: Arc<Pulse>,
}

/// Numbers of one norm layer between forward and backward.
pub(crate) struct Layer<A> {
    /// One for all chunks, or one a chunk.
    pub(crate) statistics: Vec<Statistics>,
    forward: Vec<Forward<A>>,
}

/// What the parts of one step share.
pub(crate) struct Pass<A> {
    pub(crate) meeting: Meeting,
    /// The vector region of the master weights: biases, γ and β.
    vectors: Vec<A>,
    /// Statistics of the layers that have fixed ones.
    fixed: Vec<Option<Statistics>>,
    /// Samples of the global batch.
    pub(crate) batch: u64,
    /// Seconds spent on communication that compute did not hide.
    comm: f64,
}

impl<A> Pass<A> {
    /// Runs what waits for other ranks, and counts its seconds.
    pub(crate) fn wait<T>(&mut self, f: impl FnOnce(&Meeting) -> T) -> T {
        let start = Instant::now();
        let out = f(&self.meeting);
        self.comm += start.elapsed().as_secs_f64();
        out
    }
}

impl<A: Number> Stepper<A> {
    /// For a run; `state` holds the weights that operations will see.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn new(recipe: &Recipe, program: Program, loader: Loader, state: &State) -> Result<Self, TorchError> {
        let layout = FlatLayout::new(&program);
        let tuning = Tuning::new(recipe, &program, &layout);
        let kind = match recipe.train.precision {
            Precision::Fp32 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
            Precision::Fp64 => Kind::Double,
        };
        let compute = if kind == Kind::BFloat16 { state.master.f_to_kind(kind)? } else { state.master.shallow_clone() };
        let collective: Arc<dyn Collective> = Arc::new(Solo::new());
        Ok(Self {
            segments: program.segments(),
            chunks: Vec::new(),
            image: loader.dataset().shape(),
            kind,
            compute,
            gradient: Tensor::f_zeros([layout.len as i64], (A::KIND, Device::Cpu))?,
            optimizer: Optimizer::new(&recipe.optim, &layout).over(tuning.spans()),
            reducer: Reducer::new(Arc::clone(&collective)),
            collective,
            buckets: Buckets::new(&program, &layout, &tuning, recipe.train.bucket_bytes),
            tuning,
            shard: None,
            pulse: Arc::default(),
            program: Arc::new(program),
            layout: Arc::new(layout),
            loader,
            recipe: recipe.clone(),
        })
    }

    /// Uses this collective from now on.
    pub fn join(&mut self, collective: Arc<dyn Collective>) {
        self.reducer = Reducer::new(Arc::clone(&collective));
        self.collective = collective;
        self.shard = None;
    }

    /// One optimizer step over the global batch of `plan`, of which this rank computes its shard.
    ///
    /// # Errors
    /// Any; the state is as it was then.
    pub fn step(
        &mut self,
        state: &mut State,
        generation: Generation,
        plan: &StepPlan,
    ) -> Result<StepOutcome, StepError> {
        let started = Instant::now();
        let (shard, mut pass) = self.begin(state, plan)?;
        self.take_weights(state)?;
        let data = self.load(state, plan, &shard)?;
        let layers = self.forward(&mut pass)?;
        let counts = self.loss(plan.batch.len)?;
        let totals = self.totals(&mut pass, &counts)?;
        if !totals.loss.is_finite() {
            let (step, epoch, positions) = (plan.step, plan.epoch.0, plan.batch);
            return Err(StepError::NotFinite { step, loss: totals.loss, epoch, positions });
        }
        self.backward(&mut pass, &layers)?;
        let running = self.running(&mut pass, &layers)?;
        let comm = pass.comm + self.reducer.wait(&mut self.buckets)?;

        // From here on nothing can fail but this machine: every rank has the whole sum.
        self.take_gradient()?;
        self.optimizer.update(state, &mut self.gradient, Pace { step: plan.step, lr: plan.lr })?;
        let index = plan.batch.start / self.recipe.train.batch;
        let follow = self.tuning.following(&mut state.running);
        running_update::<A>(follow, &running, self.recipe.model.bn_momentum.at(index));
        let lineage = state.id.map(|id| id.lineage).unwrap_or_default();
        state.id = Some(StateId { lineage, generation, step: plan.step });
        self.shard = Some(shard);

        let wall = started.elapsed().as_secs_f64();
        let times = StepTimes { data, compute: (wall - data - comm).max(0.0), comm, wall };
        Ok(StepOutcome {
            loss: totals.loss / plan.batch.len as f64,
            wrong: totals.wrong,
            samples: plan.batch.len,
            digest: totals.digest,
            times,
        })
    }

    pub(crate) fn begin(&self, state: &State, plan: &StepPlan) -> Result<(Shard, Pass<A>), TorchError> {
        let train = &self.recipe.train;
        let shard = Shard::new(plan, self.collective.rank(), train.chunk, train.reduction, self.shard.as_ref());
        let (meeting, vectors) = (self.meeting(&shard, plan.step), self.vectors(state)?);
        let fixed = |norm| self.tuning.statistics(NormId(norm), &state.running, self.recipe.model.bn_eps);
        let fixed = (0..self.program.norms.len()).map(fixed).collect();
        Ok((shard, Pass { meeting, vectors, fixed, batch: plan.batch.len, comm: 0.0 }))
    }

    fn meeting(&self, shard: &Shard, step: Step) -> Meeting {
        let scope = match self.recipe.train.batch_norm {
            BatchNorm::Global => Scope::Global,
            BatchNorm::Local => Scope::Rank,
            BatchNorm::Chunk => Scope::Chunk,
        };
        Meeting {
            scope,
            collective: Arc::clone(&self.collective),
            layout: Arc::clone(&shard.layout),
            local: shard.local.clone(),
            step,
        }
    }

    /// The vector region of the master weights.
    pub(crate) fn vectors(&self, state: &State) -> Result<Vec<A>, TorchError> {
        let (start, len) = (self.layout.vectors, self.layout.len - self.layout.vectors);
        let mut out = vec![A::default(); len];
        lockstep_torch::read(&state.master.f_narrow(0, start as i64, len as i64)?, &mut out)?;
        Ok(out)
    }

    pub(crate) fn vector<'a>(&self, vectors: &'a [A], id: ParamId) -> &'a [A] {
        let entry = self.layout.entries[id.0];
        &vectors[entry.offset - self.layout.vectors..][..entry.len]
    }

    /// bf16: casts the weights once.
    pub(crate) fn take_weights(&mut self, state: &State) -> Result<(), TorchError> {
        if self.kind == Kind::BFloat16 {
            self.compute.f_copy_(&state.master)?;
        }
        Ok(())
    }

    /// Makes room for so many chunks, and drops none: buffers are kept.
    pub(crate) fn make_room(&mut self, state: &State, num_chunks: usize) -> Result<(), TorchError> {
        while self.chunks.len() < num_chunks {
            let view = |(i, param): (usize, &Param)| {
                // The classifier computes in the master's type: ten logits are not worth rounding.
                let of_conv = |op: &Op| matches!(op, Op::Conv { b, .. } if *b == Some(ParamId(i)));
                let rounds = param.shape.len() == 4 || self.program.ops.iter().any(of_conv);
                let flat = if rounds { &self.compute } else { &state.master };
                view_of(flat, &self.program, &self.layout, ParamId(i))
            };
            let weights = self.program.params.iter().enumerate().map(view).collect::<Result<_, _>>()?;
            let (program, layout) = (Arc::clone(&self.program), Arc::clone(&self.layout));
            self.chunks.push(Chunk::new(program, layout, weights, self.kind));
        }
        self.chunks.truncate(num_chunks);
        Ok(())
    }

    /// Returns the seconds that the slowest chunk took.
    pub(crate) fn load(&mut self, state: &State, plan: &StepPlan, shard: &Shard) -> Result<f64, StepError> {
        self.make_room(state, shard.chunks.len())?;
        let (loader, image) = (&self.loader, self.image);
        self.chunks.par_iter_mut().with_max_len(1).zip(&shard.chunks).try_for_each(|(chunk, positions)| {
            let start = Instant::now();
            chunk.images.resize(positions.len as usize * image.iter().product::<usize>(), 0.0);
            chunk.labels.resize(positions.len as usize, 0);
            chunk.digest = loader.load_train(plan.epoch, *positions, &mut chunk.images, &mut chunk.labels)?;
            chunk.take_images(image)?;
            chunk.load_seconds = start.elapsed().as_secs_f64();
            Ok::<(), StepError>(())
        })?;
        Ok(self.chunks.iter().map(|chunk| chunk.load_seconds).fold(0.0, f64::max))
    }

    /// Every chunk through every segment; between two segments they meet.
    pub(crate) fn forward(&mut self, pass: &mut Pass<A>) -> Result<Vec<Option<Layer<A>>>, StepError> {
        let mut layers: Vec<Option<Layer<A>>> = self.program.norms.iter().map(|_| None).collect();
        for segment in &self.segments {
            let entered = segment.enters.and_then(|op| self.program.norm_at(op)).and_then(|n| layers[n.0].as_ref());
            self.chunks.par_iter_mut().with_max_len(1).enumerate().try_for_each(|(i, chunk)| {
                let coefficients = entered.and_then(|layer| layer.forward.get(i).or(layer.forward.first()));
                self.pulse.beat();
                chunk.forward(segment, coefficients)
            })?;
            let Some(norm) = segment.meets.and_then(|op| self.program.norm_at(op)) else { continue };
            let statistics = self.statistics(pass, norm, segment)?;
            let layer = &self.program.norms[norm.0];
            let (gamma, beta) = (self.vector(&pass.vectors, layer.gamma), self.vector(&pass.vectors, layer.beta));
            let forward = statistics.iter().map(|s| forward(s, gamma, beta)).collect();
            layers[norm.0] = Some(Layer { statistics, forward });
        }
        Ok(layers)
    }

    /// Statistics over the scope: one for all chunks, or one a chunk.
    fn statistics(&self, pass: &mut Pass<A>, norm: NormId, segment: &Segment) -> Result<Vec<Statistics>, StepError> {
        if let Some(fixed) = &pass.fixed[norm.0] {
            return Ok(vec![fixed.clone()]);
        }
        let eps = self.recipe.model.bn_eps;
        let pixels = self.pixels(segment);
        if pass.meeting.scope == Scope::Chunk {
            let of = |c: &Chunk<A>| Statistics::from_sums(&c.message, c.len() as f64 * pixels, eps);
            return Ok(self.chunks.iter().map(of).collect());
        }
        let messages = self.chunks.iter().map(|chunk| chunk.message.clone()).collect();
        let len = 2 * self.program.norms[norm.0].channels;
        let sums = pass.wait(|m| m.add(m.op("statistics of norm layer", norm.0), messages, len))?;
        Ok(vec![Statistics::from_sums(&sums, self.scope_samples(pass) * pixels, eps)])
    }

    fn scope_samples(&self, pass: &Pass<A>) -> f64 {
        match pass.meeting.scope {
            Scope::Global => pass.batch as f64,
            Scope::Rank | Scope::Chunk => self.chunks.iter().map(Chunk::len).sum::<usize>() as f64,
        }
    }

    /// Pixels of the tensor that a segment's norm sees: known from the program's strides, without any samples.
    fn pixels(&self, segment: &Segment) -> f64 {
        let Some(Op::Norm { x, .. }) = segment.meets.map(|op| &self.program.ops[op]) else { return 1.0 };
        let [h, w, _] = self.image;
        let stride = self.program.stride_of(*x) as usize;
        (h.div_ceil(stride) * w.div_ceil(stride)) as f64
    }

    /// Sums of this rank's chunks, and the gradient of the logits.
    fn loss(&mut self, batch: u64) -> Result<Vec<Counts>, TorchError> {
        let logits = self.program.logits;
        let one = |chunk: &mut Chunk<A>| {
            let values = chunk.logits(logits)?;
            let mut gradient = vec![A::default(); values.len()];
            let counts = cross_entropy(&values, &chunk.labels, batch as f64, Some(&mut gradient));
            chunk.start_backward(logits, &gradient)?;
            Ok(counts)
        };
        self.chunks.par_iter_mut().with_max_len(1).map(one).collect()
    }

    /// Loss, errors and digest over the global batch. Counts are exact in f64; a digest travels as four 16-bit parts.
    fn totals(&self, pass: &mut Pass<A>, counts: &[Counts]) -> Result<Totals, StepError> {
        let message = |(chunk, counts): (&Chunk<A>, &Counts)| {
            let parts = (0..4).map(|i| ((chunk.digest >> (16 * i)) & 0xffff) as f64);
            [counts.loss, counts.wrong as f64].into_iter().chain(parts).collect()
        };
        let messages: Vec<Vec<f64>> = self.chunks.iter().zip(counts).map(message).collect();
        let sums = pass.wait(|m| m.over_ranks(m.op("loss and digest", 0), messages, 6))?;
        let digest = (0..4).fold(0u64, |sum, i| sum.wrapping_add((sums[2 + i] as u64) << (16 * i)));
        Ok(Totals { loss: sums[0], wrong: sums[1] as u64, digest })
    }

    /// Every chunk back through every segment. A parameter whose gradient is finished in all chunks goes into its
    /// bucket, a full bucket on its way.
    fn backward(&mut self, pass: &mut Pass<A>, layers: &[Option<Layer<A>>]) -> Result<(), StepError> {
        let has_chunks = !self.chunks.is_empty();
        self.buckets.begin(pass.meeting.layout.num_partials(self.collective.rank()), has_chunks);
        let mut met: Vec<Backward<A>> = Vec::new();
        for s in (0..self.segments.len()).rev() {
            let segment = &self.segments[s];
            if self.tuning.ends_before(segment) {
                break;
            }
            let entered = segment.enters.and_then(|op| self.program.norm_at(op));
            let trains = entered.is_some_and(|norm| !self.tuning.is_frozen(self.program.norms[norm.0].gamma));
            let layer = entered.and_then(|norm| layers[norm.0].as_ref());
            self.chunks.par_iter_mut().with_max_len(1).enumerate().try_for_each(|(i, chunk)| {
                self.pulse.beat();
                let coefficients = met.get(i).or(met.first());
                let statistics = layer.and_then(|l| l.statistics.get(i).or(l.statistics.first()));
                let forward = layer.and_then(|l| l.forward.get(i).or(l.forward.first()));
                let mean = forward.map(|f| &f.0[..f.0.len() / 3]);
                chunk.backward(segment, coefficients, mean)?;
                if let (Some(norm), Some(statistics), true) = (entered, statistics, trains) {
                    chunk.finish_norm(norm, statistics);
                }
                Ok::<(), TorchError>(())
            })?;
            self.send_finished(s, &pass.meeting)?;
            if let (Some(norm), Some(layer)) = (entered, layer) {
                met = self.met(pass, norm, layer)?;
            }
        }
        let last = self.buckets.add_vectors(&self.chunks, &pass.meeting.local);
        self.reducer.send(&mut self.buckets, last, pass.meeting.step, &pass.meeting.layout)?;
        self.chunks.iter_mut().for_each(Chunk::clear);
        Ok(())
    }

    /// Coefficients of a norm's gradient, from the gated sums over its scope.
    fn met(&self, pass: &mut Pass<A>, norm: NormId, layer: &Layer<A>) -> Result<Vec<Backward<A>>, StepError> {
        let gamma = self.vector(&pass.vectors, self.program.norms[norm.0].gamma).to_vec();
        if let Some(fixed) = &pass.fixed[norm.0] {
            return Ok(vec![backward_fixed(fixed, &gamma)]);
        }
        if pass.meeting.scope == Scope::Chunk {
            let each = self.chunks.iter().zip(&layer.statistics);
            return Ok(each.map(|(chunk, s)| backward(s, &gamma, &chunk.message)).collect());
        }
        if pass.meeting.scope == Scope::Rank && self.scope_samples(pass) == 0.0 {
            return Ok(Vec::new());
        }
        let messages = self.chunks.iter().map(|chunk| chunk.message.clone()).collect();
        let len = 2 * gamma.len();
        let sums = pass.wait(|m| m.add(m.op("gradient sums of norm layer", norm.0), messages, len))?;
        Ok(layer.statistics.iter().map(|s| backward(s, &gamma, &sums)).collect())
    }

    fn send_finished(&mut self, segment: usize, meeting: &Meeting) -> Result<(), StepError> {
        for op in self.program.ops[self.segments[segment].ops.clone()].iter().rev() {
            let (Op::Conv { w, .. } | Op::Linear { w, .. }) = op else { continue };
            if self.tuning.is_frozen(*w) {
                self.chunks.iter_mut().for_each(|chunk| chunk.matrices[w.0] = None);
                continue;
            }
            if let Some(full) = self.buckets.add_matrix(*w, &self.layout, &mut self.chunks, &meeting.local)? {
                self.reducer.send(&mut self.buckets, full, meeting.step, &meeting.layout)?;
            }
        }
        Ok(())
    }

    fn take_gradient(&mut self) -> Result<(), TorchError> {
        for (start, sum) in self.buckets.sums() {
            let mut place = self.gradient.f_narrow(0, start as i64, sum.len() as i64)?;
            lockstep_torch::write(&mut place, sum)?;
        }
        self.tuning.mask(&self.gradient)
    }

    /// The gradient of the last step, for proofs and the canary.
    pub(crate) fn gradient(&self) -> &Tensor {
        &self.gradient
    }

    pub(crate) fn collective(&self) -> &dyn Collective {
        &*self.collective
    }

    pub(crate) fn image(&self) -> [usize; 3] {
        self.image
    }
}

struct Totals {
    loss: f64,
    wrong: u64,
    digest: u64,
}
