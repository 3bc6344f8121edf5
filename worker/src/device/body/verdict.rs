//! The end of a step: statistics, the vote, the verdict, and what is written only if it says so.

use lockstep_collective::{Lane, Op as Operation};
use lockstep_proto::ids::Step;
use lockstep_proto::recipe::Solver;
use lockstep_torch::TorchError;
use tch::{Kind, Tensor};

use super::{Body, Frame, Layer, control, copied};
use crate::device::gpu::{Event, Gpu, GpuError, Place, Stream, Work};
use crate::optim::Pace;
use crate::state::{Buffer, State};

impl Body {
    /// What the running statistics are to take in from the batches in hand: mean and unbiased variance of every layer. One
    /// for all ranks, or where each batch has its own, one for each, weighted by its samples.
    pub(super) fn statistics(
        &self,
        gpu: &mut dyn Gpu,
        frame: &Frame,
        layers: &[Layer],
    ) -> Result<Vec<Tensor>, GpuError> {
        let flat = |i: usize| -> Result<Tensor, TorchError> {
            let taken = layers.iter().map(|layer| layer[i.min(layer.len() - 1)].taken());
            Ok(Tensor::f_cat(&taken.collect::<Result<Vec<_>, TorchError>>()?, 0)?)
        };
        let mut each = Vec::new();
        if layers.is_empty() {
            return Ok(each);
        }
        let work = Work { name: "batch statistics", reads: &[Place::Message], writes: &[Place::Message] };
        gpu.run(Stream::Compute, work, &mut || {
            if self.is_global() {
                each = vec![flat(0)?];
                return Ok(());
            }
            let lens = frame.lens[self.part.clone()].iter().enumerate();
            let weighted = |(i, len): (usize, &u64)| Ok(flat(i)?.f_mul_scalar(*len as f64 / frame.batch as f64)?);
            each = lens.map(weighted).collect::<Result<Vec<_>, TorchError>>()?;
            Ok(())
        })?;
        Ok(each)
    }

    /// The running statistics are to take in these, of all batches of this rank, and those of the others.
    pub(super) fn take_statistics(
        &mut self,
        gpu: &mut dyn Gpu,
        frame: &Frame,
        each: Vec<Tensor>,
    ) -> Result<(), GpuError> {
        if self.program.norms.is_empty() {
            return Ok(());
        }
        let work = Work { name: "statistics to take in", reads: &[Place::Message], writes: &[Place::Taken] };
        if self.is_global() {
            return gpu.run(Stream::Compute, work, &mut || Ok(self.taken.f_copy_(&each[0])?));
        }
        let op = Operation { lane: Lane::Norm, step: frame.step, name: "running statistics", index: 0 };
        let partials = self.add_up(gpu, frame, each)?;
        if self.is_ordered() {
            let layout = &*frame.shard.layout;
            return gpu.reduce_in_order(Stream::Compute, &op, (layout, &partials), (Place::Taken, &mut self.taken));
        }
        gpu.run(Stream::Compute, work, &mut || {
            match partials.first() {
                Some(sum) => self.taken.f_copy_(sum)?,
                None => drop(self.taken.f_zero_()?),
            }
            Ok(())
        })?;
        gpu.all_reduce(Stream::Compute, &op, Place::Taken, &self.taken)
    }

    /// The vote, and the digest with it, behind the last bucket. Returns when it is counted.
    pub(super) fn vote(&mut self, gpu: &mut dyn Gpu, frame: &Frame) -> Result<Event, GpuError> {
        let soundness = gpu.soundness();
        let work = Work { name: "vote", reads: &[Place::Control], writes: &[Place::Vote] };
        let ready = gpu.record(Stream::Compute)?;
        gpu.wait(Stream::Buckets, ready)?;
        gpu.run(Stream::Buckets, work, &mut || {
            let vote = self.control.f_narrow(0, control::VOTE, 1)?.f_mul(&soundness)?;
            self.votes.f_narrow(0, 0, 1)?.f_copy_(&vote)?;
            self.votes.f_narrow(0, 1, 4)?.f_copy_(&self.control.f_narrow(0, control::DIGEST, 4)?)?;
            Ok(())
        })?;
        let op = Operation { lane: Lane::Buckets, step: frame.step, name: "vote", index: 0 };
        gpu.all_reduce(Stream::Buckets, &op, Place::Vote, &self.votes)?;
        gpu.record(Stream::Buckets)
    }

    /// One if every rank was sound, and loss and gradient are numbers, else zero. What does not train has no gradient;
    /// `optim.clip_norm` scales a larger one as PyTorch's `clip_grad_norm_` does.
    pub(super) fn judge(&mut self, gpu: &mut dyn Gpu) -> Result<(), GpuError> {
        let gradients: Vec<Place> = (0..self.slices.len() as u32).map(Place::Gradient).collect();
        let mut reads = vec![Place::Vote, Place::Control, Place::Totals];
        reads.extend(&gradients);
        let mut writes = vec![Place::Verdict, Place::Totals];
        writes.extend(&gradients);
        let work = Work { name: "verdict", reads: &reads, writes: &writes };
        let most = self.recipe.optim.clip_norm;
        gpu.run(Stream::Compute, work, &mut || {
            self.tuning.mask(&self.gradient)?;
            if most > 0.0 {
                let norm = self.gradient.f_mul(&self.gradient)?.f_sum(Kind::Double)?.f_sqrt()?;
                let scale = norm.f_add_scalar(1e-6)?.f_reciprocal()?.f_mul_scalar(most)?.f_clamp_max(1.0)?;
                let _ = self.gradient.f_mul_(&scale.f_to_kind(self.gradient.kind())?)?;
                // A gradient that is no number is told as a loss that is none.
                let _ = self.totals.f_narrow(0, 0, 1)?.f_add_(&norm.f_mul_scalar(0.0)?)?;
            }
            let counted =
                self.votes.f_narrow(0, 0, 1)?.f_eq_tensor(&self.control.f_narrow(0, control::EXPECTED, 1)?)?;
            let finite = self.totals.f_narrow(0, 0, 1)?.f_isfinite()?;
            Ok(self.verdict.f_copy_(&counted.f_logical_and(&finite)?)?)
        })
    }

    /// Weights, momentum, running statistics and the number of the step, where the verdict says so.
    pub(super) fn update(&mut self, gpu: &mut dyn Gpu, step: Step) -> Result<(), GpuError> {
        let mut reads = vec![Place::Verdict, Place::Control, Place::Weights, Place::Momentum];
        reads.extend((0..self.slices.len() as u32).map(Place::Gradient));
        let writes = [Place::Weights, Place::Momentum];
        let work = Work { name: "optimizer", reads: &reads, writes: &writes };
        let (rate, is_sgd) = (self.control.f_narrow(0, control::LR, 1), self.recipe.optim.solver == Solver::Sgd);
        let rate = rate.map_err(TorchError::from)?;
        gpu.run(Stream::Compute, work, &mut || {
            let yes = self.verdict.f_gt(0.5)?;
            let mut next = copy_of(&self.state)?;
            let mut gradient = copied(&self.gradient)?;
            if is_sgd {
                self.optimizer.sgd_at(&next, &gradient, (step, &rate))?;
            } else {
                let lr = rate.f_double_value(&[0])?;
                self.optimizer.update(&mut next, &mut gradient, Pace { step, lr })?;
            }
            keep_if(&yes, &mut self.state.master, &next.master)?;
            for (buffer, new) in self.state.buffers.iter_mut().zip(&next.buffers) {
                keep_if(&yes, &mut buffer.values, &new.values)?;
            }
            Ok(())
        })?;
        let reads = [Place::Verdict, Place::Taken, Place::Running, Place::Control];
        let work = Work { name: "running statistics", reads: &reads, writes: &[Place::Running, Place::Applied] };
        let single = self.state.master.kind() == Kind::Float;
        gpu.run(Stream::Compute, work, &mut || {
            let yes = self.verdict.f_gt(0.5)?;
            let share = self.control.f_narrow(0, control::BN_MOMENTUM, 1)?.f_mul(&self.follows)?;
            let rest = share.f_neg()?.f_add_scalar(1.0)?;
            let mut new = self.running.f_mul(&rest)?.f_add(&self.taken.f_mul(&share)?)?;
            if single {
                // To the precision that checkpoints hold.
                new = new.f_to_kind(Kind::Float)?.f_to_kind(Kind::Double)?;
            }
            keep_if(&yes, &mut self.running, &new)?;
            self.average(&yes, single)?;
            keep_if(&yes, &mut self.applied, &self.control.f_narrow(0, control::STEP, 1)?)
        })
    }

    /// The average, where one is kept, takes in weights and running statistics; between two steps that count for it, it
    /// stays as it is.
    fn average(&mut self, yes: &Tensor, single: bool) -> Result<(), TorchError> {
        let Some((values, running)) = &mut self.average else { return Ok(()) };
        let number = |at: i64| self.control.f_narrow(0, at, 1);
        let (keep, take) = (number(control::AVERAGE_KEEP)?, number(control::AVERAGE_TAKE)?);
        let kind = values.kind();
        let of = |share: &Tensor, values: &Tensor| values.f_mul(&share.f_to_kind(values.kind())?);
        let new = of(&keep, values)?.f_add(&of(&take, &self.state.master)?)?.f_to_kind(kind)?;
        keep_if(yes, values, &new)?;
        let mut new = of(&keep, running)?.f_add(&of(&take, &self.running)?)?;
        if single {
            new = new.f_to_kind(Kind::Float)?.f_to_kind(Kind::Double)?;
        }
        keep_if(yes, running, &new)
    }
}

/// `to = yes ? new : to`
fn keep_if(yes: &Tensor, to: &mut Tensor, new: &Tensor) -> Result<(), TorchError> {
    let kept = new.f_where_self(yes, to)?;
    to.f_copy_(&kept)?;
    Ok(())
}

fn copy_of(state: &State) -> Result<State, TorchError> {
    let buffer = |b: &Buffer| Ok(Buffer { name: b.name, values: copied(&b.values)? });
    let buffers = state.buffers.iter().map(buffer).collect::<Result<_, TorchError>>()?;
    Ok(State { id: state.id, master: copied(&state.master)?, buffers, running: Vec::new(), average: None })
}
