//! What a step's forward pass says to the running statistics.

use lockstep_proto::message::StepPlan;

use crate::exec::{Chunk, Scope};
use crate::number::Number;
use crate::program::Norm;
use crate::state::State;
use crate::step::{Layer, Pass, StepError, Stepper};

impl<A: Number> Stepper<A> {
    /// What the running statistics are to take in: mean and unbiased variance of every layer, one after another. They
    /// wait here until the gradient is whole. With statistics of chunks or ranks: their mean, weighted by samples.
    pub(crate) fn running(&self, pass: &mut Pass<A>, layers: &[Option<Layer<A>>]) -> Result<Vec<f64>, StepError> {
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
            return Ok(flat(0));
        }
        let batch = pass.batch as f64;
        let weighted = |(i, chunk): (usize, &Chunk<A>)| {
            flat(i).into_iter().map(|x| x * chunk.len() as f64 / batch).collect::<Vec<_>>()
        };
        let follow = |(i, norm): (usize, &Norm)| if self.tuning.is_fixed(i) { 0 } else { norm.channels };
        let len = 2 * self.program.norms.iter().enumerate().map(follow).sum::<usize>();
        let messages = self.chunks.iter().enumerate().map(weighted).collect();
        Ok(pass.wait(|m| m.over_ranks(m.op("running statistics", 0), messages, len))?)
    }

    /// The forward pass of a step, for what the running statistics would take in.
    ///
    /// # Errors
    /// As for a step.
    pub(crate) fn statistics_of(&mut self, state: &State, plan: &StepPlan) -> Result<Vec<f64>, StepError> {
        let (shard, mut pass) = self.begin(state, plan)?;
        self.load(state, plan, &shard)?;
        let layers = self.forward(&mut pass)?;
        let running = self.running(&mut pass, &layers)?;
        self.chunks.iter_mut().for_each(Chunk::clear);
        Ok(running)
    }
}
