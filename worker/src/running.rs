//! What BatchNorm's running statistics take in from a step.

use lockstep_proto::message::StepPlan;

use crate::exec::{Chunk, Scope};
use crate::load::Loaded;
use crate::number::Number;
use crate::program::Norm;
use crate::state::State;
use crate::step::{Layer, Pass, StepError, Stepper};

impl<A: Number> Stepper<A> {
    /// What the running statistics are to take in: mean and unbiased variance of every layer, one after another. One
    /// message with global statistics; else one a chunk, weighted by its samples.
    pub(crate) fn running_messages(&self, pass: &Pass<A>, layers: &[Option<Layer<A>>]) -> Vec<Vec<f64>> {
        let flat = |i: usize| -> Vec<f64> {
            let of = |layer: &Layer<A>| {
                let s = &layer.statistics[i.min(layer.statistics.len() - 1)];
                let unbiased = (0..s.mean.len()).map(|c| s.unbiased(c)).collect::<Vec<_>>();
                s.mean.iter().copied().chain(unbiased).collect::<Vec<_>>()
            };
            let follows = |(norm, _): &(usize, &Option<Layer<A>>)| !self.tuning.is_fixed(*norm);
            layers.iter().enumerate().filter(follows).filter_map(|(_, layer)| layer.as_ref()).flat_map(of).collect()
        };
        if pass.meeting.scope == Scope::Global {
            return vec![flat(0)];
        }
        let batch = pass.batch as f64;
        let weighted = |(i, chunk): (usize, &Chunk<A>)| {
            flat(i).into_iter().map(|x| x * chunk.len() as f64 / batch).collect::<Vec<_>>()
        };
        self.chunks.iter().enumerate().map(weighted).collect()
    }

    /// The messages of all of the rank's chunks as one over all ranks. It waits until the gradient is whole.
    pub(crate) fn running(&self, pass: &mut Pass<A>, mut messages: Vec<Vec<f64>>) -> Result<Vec<f64>, StepError> {
        if pass.meeting.scope == Scope::Global {
            return Ok(messages.pop().unwrap_or_default());
        }
        let follow = |(i, norm): (usize, &Norm)| if self.tuning.is_fixed(i) { 0 } else { norm.channels };
        let len = 2 * self.program.norms.iter().enumerate().map(follow).sum::<usize>();
        Ok(pass.wait(|m| m.over_ranks(m.op("running statistics", 0), messages, len))?)
    }

    /// The forward pass of a step, for what the running statistics would take in.
    ///
    /// # Errors
    /// As for a step.
    pub(crate) fn statistics_of(&mut self, state: &State, plan: &StepPlan) -> Result<Vec<f64>, StepError> {
        let (shard, mut pass) = self.begin(state, plan)?;
        let (mut messages, mut loaded) = (Vec::new(), Loaded::default());
        self.count(&mut pass, plan, &shard, &mut loaded)?;
        for part in shard.parts(self.recipe.train.accumulate, 0) {
            self.load(state, plan, &part.chunks, &mut loaded)?;
            let layers = self.forward(&mut pass)?;
            messages.extend(self.running_messages(&pass, &layers));
            self.chunks.iter_mut().for_each(Chunk::clear);
        }
        self.running(&mut pass, messages)
    }
}
