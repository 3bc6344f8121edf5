//! Evaluation over the whole test set: running statistics, one plain view, chunks of `train.eval_chunk` shared out over
//! ranks, sums in tree order. Exact, and the same bits on any world.
//!
//! With `model.bn_precise` = K the statistics are taken anew (Wu & Johnson 2021, section 3.2): the plain average over the
//! first K batches of epoch 1, with the weights as they are. They serve this evaluation; the state keeps its running ones.

use std::time::Instant;

use lockstep_collective::{Lane, Layout, Op as Operation};
use lockstep_data::{Delivered, Wanted};
use lockstep_proto::ids::{Epoch, SampleRange, Step};
use lockstep_proto::message::{Skipped, StepPlan};
use lockstep_proto::recipe::Evaluate;
use lockstep_proto::split;
use lockstep_proto::tree::Tree;
use lockstep_torch::TorchError;
use rayon::prelude::*;

use crate::compute::EvalOutcome;
use crate::exec::{Chunk, Forward, LocalTree, Statistics, Targets, cross_entropy, forward, running_update};
use crate::number::Number;
use crate::program::{Op, Program};
use crate::pulse::Pulse;
use crate::skip::{gather, some_left};
use crate::state::{Running, State};
use crate::step::{StepError, Stepper};

impl<A: Number> Stepper<A> {
    /// Mean loss and error fractions of `state`, or of the average in it (`train.evaluate`), of the whole test set but
    /// what is left out of it, equal on every rank. The loss is plain cross-entropy, whatever training makes of its targets.
    ///
    /// # Errors
    /// An image that cannot be read; a collective that failed; libtorch.
    pub fn evaluate(&mut self, state: &mut State, step: Step) -> Result<EvalOutcome, StepError> {
        match self.recipe.train.evaluate {
            Evaluate::Model => self.evaluate_weights(state, step),
            Evaluate::Ema => state.with_average(|state| self.evaluate_weights(state, step)),
        }
    }

    fn evaluate_weights(&mut self, state: &State, step: Step) -> Result<EvalOutcome, StepError> {
        let started = Instant::now();
        let samples = self.source.loader.dataset().identity().num_test;
        let size = self.recipe.train.eval_chunk;
        let num_chunks = split::num_chunks(samples, size);
        let (rank, world) = (self.collective().rank(), self.collective().world());
        let counts = split::split_even(num_chunks, world);
        let own = split::ranges(&counts)[rank.0 as usize].clone();
        let all = SampleRange { start: 0, len: samples };
        let ranges: Vec<SampleRange> = own.clone().map(|i| split::chunk_positions(all, size, i)).collect();

        self.take_weights(state)?;
        let layers = self.layers(state, step)?;
        let mut sums: Vec<Vec<f64>> = Vec::new();
        let num_at_once = rayon::current_num_threads().max(1);
        let mut rows: Vec<Delivered> = ranges.iter().take(num_at_once).map(|_| Delivered::default()).collect();
        let mut own_skipped = Vec::new();
        for (number, group) in ranges.chunks(num_at_once).enumerate() {
            self.make_room(state, group.len())?;
            let soon = ranges[number * num_at_once..].iter().take(2 * num_at_once);
            self.source.expect(soon.map(|range| Wanted::Test(*range)));
            let (program, source, pulse) = (&self.program, &self.source, &self.pulse);
            let image = source.loader.dataset().test_shape();
            let run = |((chunk, rows), range): ((&mut Chunk<A>, &mut Delivered), &SampleRange)| {
                source.take(Wanted::Test(*range), rows)?;
                chunk.take_rows(rows, image)?;
                let logits = infer(program, chunk, &layers, pulse)?;
                let counts = cross_entropy(&logits, Targets::plain(&chunk.labels), chunk.len() as f64, None);
                chunk.clear();
                Ok(vec![counts.loss, counts.wrong as f64, counts.wrong_top5 as f64])
            };
            let group_sums: Result<Vec<_>, StepError> =
                self.chunks.par_iter_mut().with_max_len(1).zip(&mut rows).zip(group).map(run).collect();
            sums.extend(group_sums?);
            own_skipped.extend(rows.iter_mut().flat_map(|rows| rows.skipped.drain(..)));
        }
        let skipped = self.left_out(step, &own_skipped)?;
        let counted = samples - skipped.len() as u64;

        let partials = LocalTree { tree: Tree::new(num_chunks), chunks: own }.fold(sums);
        let refs: Vec<&[f64]> = partials.iter().map(Vec::as_slice).collect();
        let mut total = vec![0.0; 3];
        let op = Operation { lane: Lane::Norm, step, name: "evaluation", index: 0 };
        self.collective().reduce_f64(&op, &Layout::canonical(num_chunks, &counts), &refs, &mut total)?;
        let of = |sum: f64| sum / counted as f64;
        let (loss, error, error_top5) = (of(total[0]), of(total[1]), of(total[2]));
        let seconds = started.elapsed().as_secs_f64();
        Ok(EvalOutcome { loss, error, error_top5, samples: counted, skipped, seconds })
    }

    /// What all ranks left out of the test set.
    fn left_out(&self, step: Step, own: &[Skipped]) -> Result<Vec<Skipped>, StepError> {
        if !self.skips() {
            return Ok(Vec::new());
        }
        let op = Operation { lane: Lane::Norm, step, name: "test samples left out", index: 0 };
        let skipped = gather(&op, own, |mine| self.collective().all_gather(&op, mine))?;
        some_left(skipped, self.source.loader.dataset().identity().num_test, || "the test set".to_owned())
    }

    /// What every norm layer does in evaluation.
    pub(crate) fn layers(&mut self, state: &State, step: Step) -> Result<Vec<Forward<A>>, StepError> {
        Ok(match self.recipe.model.bn_precise {
            0 => self.fixed(state, &state.running)?,
            batches => {
                let precise = self.precise(state, step, batches)?;
                self.fixed(state, &precise)?
            }
        })
    }

    /// The plain average of batch statistics over `batches` training batches (at most an epoch), on every rank.
    fn precise(&mut self, state: &State, step: Step, batches: u64) -> Result<Vec<Running>, StepError> {
        let num_positions = self.source.loader.num_positions();
        let (batch, chunk) = (self.recipe.train.batch, self.recipe.train.chunk);
        let mut running = state.running.clone();
        for index in 0..batches.min(num_positions.div_ceil(batch)) {
            let start = index * batch;
            let len = batch.min(num_positions - start);
            let shards = split::split_even(split::num_chunks(len, chunk), self.collective().world());
            let plan = StepPlan { step, epoch: Epoch(1), lr: 0.0, batch: SampleRange { start, len }, shards };
            let found = self.statistics_of(state, &plan)?;
            running_update::<A>(self.tuning.following(&mut running), &found, 1.0 / (1.0 + index as f64));
        }
        Ok(running)
    }

    /// Coefficients of every layer from fixed statistics.
    fn fixed(&self, state: &State, running: &[Running]) -> Result<Vec<Forward<A>>, TorchError> {
        let vectors = self.vectors(state)?;
        let layers = self.program.norms.iter().zip(running);
        let one = |(norm, running): (&crate::program::Norm, &Running)| {
            let statistics = Statistics::fixed(&running.mean, &running.variance, self.recipe.model.bn_eps);
            forward(&statistics, self.vector(&vectors, norm.gamma), self.vector(&vectors, norm.beta))
        };
        Ok(layers.map(one).collect())
    }
}

/// The whole program on one chunk, with fixed statistics: its logits, row by row.
pub(crate) fn infer<A: Number>(
    program: &Program,
    chunk: &mut Chunk<A>,
    layers: &[Forward<A>],
    pulse: &Pulse,
) -> Result<Vec<A>, TorchError> {
    for op in &program.ops {
        pulse.beat();
        match op {
            Op::Norm { norm, .. } => chunk.apply(op, &layers[norm.0])?,
            _ => chunk.run(op)?,
        }
    }
    chunk.logits(program.logits)
}
