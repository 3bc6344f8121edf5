//! The step loop, top to bottom as the algorithm: load · forward · loss · backward, with buckets reduced meanwhile · wait ·
//! optimizer · running statistics. Everything before the wait leaves the state as it was, so a collective that fails never
//! reaches the weights. What is left out of a batch is known before the first forward: all divide by the same number.

use std::sync::Arc;
use std::time::Instant;

use lockstep_collective::{Collective, CollectiveError, Solo};
use lockstep_data::DataError;
use lockstep_proto::ids::{Epoch, Generation, SampleRange, StateId, Step};
use lockstep_proto::message::{StepPlan, StepTimes};
use lockstep_proto::recipe::{BatchNorm, Precision, Recipe};
use lockstep_torch::TorchError;
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use crate::compute::StepOutcome;
use crate::exec::{
    Backward, Buckets, Chunk, Counts, Forward, Meeting, Reducer, Scope, Statistics, Targets, Together, backward,
    backward_fixed, cross_entropy, forward, running_update,
};
use crate::load::{Loaded, Source};
use crate::number::Number;
use crate::optim::{Optimizer, Pace};
use crate::program::{FlatLayout, NormId, Op, Param, ParamId, Program, Segment};
use crate::pulse::Pulse;
use crate::shard::Shard;
use crate::state::{State, view_of};
use crate::tally::{Tally, Totals};
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
    /// No sample of a batch can be read.
    #[error(
        "{what} has no image that can be read; the first is {file}: {reason}: look at the data (`lockstep data verify`)"
    )]
    NothingLeft {
        /// Which batch.
        what: String,
        /// The first file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The device cannot be used any more by this process.
    #[error("{0}")]
    Lost(String),
    /// The loss or the gradient is NaN or infinite.
    #[error(transparent)]
    NotFinite(#[from] NotFinite),
}

/// A step that cannot be taken, and where to look.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "the {what} in step {step} (positions {positions} of epoch {epoch}): {samples}; lower the learning rate, warm it up \
     or set optim.clip_norm, and look at these samples"
)]
pub struct NotFinite {
    /// The step.
    pub step: Step,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its global batch.
    pub positions: SampleRange,
    /// `loss is NaN`
    pub what: String,
    /// Which samples, as far as that can be told.
    pub samples: String,
}

/// Everything but the state that steps need; `A` is the number type of the weights.
pub struct Stepper<A> {
    pub(crate) program: Arc<Program>,
    pub(crate) layout: Arc<FlatLayout>,
    pub(crate) segments: Vec<Segment>,
    pub(crate) tuning: Tuning,
    pub(crate) chunks: Vec<Chunk<A>>,
    pub(crate) source: Source,
    pub(crate) recipe: Recipe,
    kind: Kind,
    /// Height, width and channels of the batch in hand.
    pub(crate) image: [usize; 3],
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
    /// Samples of the global batch that count.
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
    pub(crate) fn new(recipe: &Recipe, program: Program, source: Source, state: &State) -> Result<Self, TorchError> {
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
            image: source.loader.dataset().shape(),
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
            source,
            recipe: recipe.clone(),
        })
    }

    /// Uses this collective from now on.
    pub fn join(&mut self, collective: Arc<dyn Collective>) {
        self.reducer = Reducer::new(Arc::clone(&collective));
        self.collective = collective;
        self.shard = None;
        self.source.forget();
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
        self.buckets.begin_step();
        let (mut tally, mut totals, mut loaded) = (Tally::default(), Totals::default(), Loaded::default());
        let sends = pass.meeting.layout.num_partials(self.collective.rank());
        let skipped = self.count(&mut pass, plan, &shard, &mut loaded)?;
        for part in shard.parts(self.recipe.train.accumulate, sends) {
            self.load(state, plan, &part.chunks, &mut loaded)?;
            let layers = self.forward(&mut pass)?;
            let counts = self.loss(pass.batch)?;
            tally.count(&self.chunks, &counts);
            if part.together.sends.is_some() {
                let (loader, batch) = (&self.source.loader, pass.batch);
                totals = pass.wait(|meeting| tally.totals(meeting, loader, (plan, batch)))?;
            }
            tally.running.extend(self.running_messages(&pass, &layers));
            self.backward(&mut pass, &layers, &part.together)?;
        }
        let running = self.running(&mut pass, tally.running)?;
        let comm = pass.comm + self.reducer.wait(&mut self.buckets)?;

        // From here on nothing can fail but this machine: every rank has the whole sum.
        self.take_gradient()?;
        self.clip(plan)?;
        self.optimizer.update(state, &mut self.gradient, Pace { step: plan.step, lr: plan.lr })?;
        let index = plan.batch.start / self.recipe.train.batch;
        let follow = self.tuning.following(&mut state.running);
        running_update::<A>(follow, &running, self.recipe.model.bn_momentum.at(index));
        state.update_average::<A>(&self.recipe.train, plan.epoch, plan.step)?;
        let lineage = state.id.map(|id| id.lineage).unwrap_or_default();
        state.id = Some(StateId { lineage, generation, step: plan.step });
        self.shard = Some(shard);

        let (wall, data) = (started.elapsed().as_secs_f64(), loaded.seconds);
        let times = StepTimes { data, compute: (wall - data - comm).max(0.0), comm, wall };
        Ok(StepOutcome {
            loss: totals.loss / pass.batch as f64,
            wrong: totals.wrong,
            samples: pass.batch,
            skipped,
            digest: totals.digest,
            ready: loaded.ready(),
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

    /// Sums of these chunks, and the gradient of the logits.
    fn loss(&mut self, batch: u64) -> Result<Vec<Counts>, TorchError> {
        let (logits, smoothing) = (self.program.logits, self.recipe.train.label_smoothing);
        let one = |chunk: &mut Chunk<A>| {
            let values = chunk.logits(logits)?;
            let mut gradient = vec![A::default(); values.len()];
            let targets = Targets { labels: &chunk.labels, partners: &chunk.partners, smoothing };
            let counts = cross_entropy(&values, targets, batch as f64, Some(&mut gradient));
            chunk.strange = if counts.loss.is_finite() { Vec::new() } else { strange(chunk, &values, targets) };
            chunk.start_backward(logits, &gradient)?;
            Ok(counts)
        };
        self.chunks.par_iter_mut().with_max_len(1).map(one).collect()
    }

    /// Every chunk back through every segment. A parameter whose gradient is finished in all chunks goes into its
    /// bucket, a full bucket on its way.
    fn backward(
        &mut self,
        pass: &mut Pass<A>,
        layers: &[Option<Layer<A>>],
        together: &Together,
    ) -> Result<(), StepError> {
        self.buckets.begin(together);
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
            self.send_finished(s, &pass.meeting, together)?;
            if let (Some(norm), Some(layer)) = (entered, layer) {
                met = self.met(pass, norm, layer)?;
            }
        }
        let last = self.buckets.add_vectors(&self.chunks, &together.local);
        self.send(last, &pass.meeting, together)?;
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
        if pass.meeting.scope == Scope::Rank && self.chunks.is_empty() {
            return Ok(Vec::new());
        }
        let messages = self.chunks.iter().map(|chunk| chunk.message.clone()).collect();
        let len = 2 * gamma.len();
        let sums = pass.wait(|m| m.add(m.op("gradient sums of norm layer", norm.0), messages, len))?;
        Ok(layer.statistics.iter().map(|s| backward(s, &gamma, &sums)).collect())
    }

    fn send_finished(&mut self, segment: usize, meeting: &Meeting, together: &Together) -> Result<(), StepError> {
        let program = Arc::clone(&self.program);
        for op in program.ops[self.segments[segment].ops.clone()].iter().rev() {
            let (Op::Conv { w, .. } | Op::Linear { w, .. }) = op else { continue };
            if self.tuning.is_frozen(*w) {
                self.chunks.iter_mut().for_each(|chunk| chunk.tape.matrices[w.0] = None);
                continue;
            }
            if let Some(full) = self.buckets.add_matrix(*w, &self.layout, &mut self.chunks, &together.local)? {
                self.send(full, meeting, together)?;
            }
        }
        Ok(())
    }

    /// Closes a bucket, and sends it if no more chunks are to come.
    fn send(&mut self, bucket: usize, meeting: &Meeting, together: &Together) -> Result<(), StepError> {
        if self.buckets.close(bucket, together) {
            self.reducer.send(&mut self.buckets, bucket, meeting.step, &meeting.layout)?;
        }
        Ok(())
    }

    /// Clips the gradient, which is that of the global batch, the same on all ranks.
    fn clip(&mut self, plan: &StepPlan) -> Result<(), StepError> {
        let norm = self.optimizer.clip(&mut self.gradient)?;
        if norm.is_finite() {
            return Ok(());
        }
        let what = format!("loss is finite, but the norm of its gradient is {norm}");
        let samples = "a number became too large on the way back".to_owned();
        Err(NotFinite { step: plan.step, epoch: plan.epoch, positions: plan.batch, what, samples }.into())
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
}

/// Positions of a chunk whose own loss is not finite.
fn strange<A: Number>(chunk: &Chunk<A>, logits: &[A], targets: Targets<'_>) -> Vec<u64> {
    let classes = logits.len() / chunk.len().max(1);
    let is_strange = |i: &usize| {
        let one = Targets {
            labels: &targets.labels[*i..=*i],
            partners: targets.partners.get(*i..=*i).unwrap_or_default(),
            smoothing: targets.smoothing,
        };
        !cross_entropy(&logits[i * classes..(i + 1) * classes], one, 1.0, None).loss.is_finite()
    };
    (0..chunk.len()).filter(is_strange).map(|i| chunk.positions[i]).collect()
}
