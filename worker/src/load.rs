//! What a step computes on: this rank's chunks, loaded now or read ahead, and which samples count.
//!
//! ```text
//! plan ─► announce ─► ReadAhead ─┐                        ┌─► rows ─► chunks, part by part
//!                                ├─► take ─► what is left out
//! the step in hand ─► Loader ────┘                        └─► gather: the same on every rank
//! ```
//! With `data.image.bad = "skip"` a broken image has no row in its chunk, on whichever rank that is. Ranks tell each other
//! what they left out before the first forward, so that all divide by the same number of samples and each can report the
//! whole batch. So then all chunks are loaded before the first part of an accumulated step; else each part's when its turn
//! comes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use lockstep_data::{DataError, Delivered, Loader, Part, ReadAhead, Wanted};
use lockstep_proto::ids::SampleRange;
use lockstep_proto::message::{Skipped, StepPlan};
use lockstep_proto::recipe::BadImage;
use rayon::prelude::*;

use crate::number::Number;
use crate::pulse::Pulse;
use crate::shard::{Shard, positions};
use crate::skip::{gather, some_left};
use crate::state::State;
use crate::step::{Pass, StepError, Stepper};

/// Where a stepper's samples come from.
pub(crate) struct Source {
    pub(crate) loader: Loader,
    ahead: Option<ReadAhead>,
    /// Steps to read ahead, and threads that do.
    depth: (usize, usize),
    /// Steps of the plan that were announced.
    planned: VecDeque<StepPlan>,
    /// Chunks of the step in hand that are loaded and not taken yet, in order.
    rows: VecDeque<Delivered>,
    /// Buffers to use again.
    spare: Vec<Delivered>,
}

/// How the loading of a step went.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Loaded {
    /// Seconds that the step waited for samples.
    pub(crate) seconds: f64,
    /// Chunks, and those of them that lay ready; none are counted where nothing is read ahead.
    num_chunks: usize,
    num_ready: usize,
}

impl Loaded {
    /// Share of the chunks that lay ready; `None` where nothing is read ahead.
    pub(crate) fn ready(&self) -> Option<f64> {
        (self.num_chunks > 0).then(|| self.num_ready as f64 / self.num_chunks as f64)
    }
}

/// Training samples of a step.
fn wanted(plan: &StepPlan, positions: SampleRange) -> Wanted {
    Wanted::Train(Part { epoch: plan.epoch, batch: plan.batch, positions })
}

impl Source {
    /// Reads `depth.0` steps ahead on `depth.1` threads, once steps are announced. What lies in memory is not read ahead.
    pub(crate) fn new(loader: Loader, depth: (usize, usize)) -> Self {
        Self { loader, ahead: None, depth, planned: VecDeque::new(), rows: VecDeque::new(), spare: Vec::new() }
    }

    /// Counts samples as signs of life.
    pub(crate) fn watch(&mut self, pulse: Arc<Pulse>) {
        self.loader.on_sample(Arc::new(move || pulse.beat()));
    }

    /// A step of the plan, which may be read ahead from now on.
    pub(crate) fn announce(&mut self, plan: &StepPlan) {
        if self.depth.0 == 0 || self.loader.dataset().is_in_memory() {
            return;
        }
        if self.ahead.is_none() {
            match ReadAhead::start(&self.loader, self.depth.1) {
                Ok(ahead) => self.ahead = Some(ahead),
                Err(error) => {
                    tracing::warn!("no thread to read ahead ({error}): samples are loaded when they are needed");
                    self.depth.0 = 0;
                    return;
                }
            }
        }
        self.planned.push_back(plan.clone());
    }

    /// The plan is void.
    pub(crate) fn forget(&mut self) {
        self.planned.clear();
        if let Some(ahead) = &self.ahead {
            ahead.forget();
        }
    }

    /// Has others begin with what is wanted soon.
    pub(crate) fn expect(&self, wanted: impl IntoIterator<Item = Wanted>) {
        if let Some(ahead) = &self.ahead {
            ahead.expect(wanted);
        }
    }

    /// Fills `into`; whether it lay ready, if anything is read ahead.
    pub(crate) fn take(&self, wanted: Wanted, into: &mut Delivered) -> Result<Option<bool>, DataError> {
        match &self.ahead {
            Some(ahead) => ahead.take(wanted, into).map(Some),
            None => self.loader.deliver(wanted, into).map(|()| None),
        }
    }

    /// The step in hand and those after it; of each the chunks that are this rank's.
    pub(crate) fn begin(&mut self, plan: &StepPlan, own: impl Fn(&StepPlan) -> Vec<SampleRange>) {
        self.spare.extend(self.rows.drain(..)); // of a step that was cut short
        if self.ahead.is_none() {
            return;
        }
        self.planned.retain(|planned| planned.step > plan.step);
        let next = self.planned.iter().take(self.depth.0);
        let all = std::iter::once(plan).chain(next);
        self.expect(all.flat_map(|plan| own(plan).into_iter().map(move |positions| wanted(plan, positions))));
    }

    /// Loads chunks of a step.
    fn load(&mut self, plan: &StepPlan, chunks: &[SampleRange], loaded: &mut Loaded) -> Result<(), DataError> {
        let all: Vec<Wanted> = chunks.iter().map(|positions| wanted(plan, *positions)).collect();
        let rows = self.fetch(&all, loaded)?;
        self.rows.extend(rows);
        Ok(())
    }

    /// Loads these on the threads that this is called on.
    ///
    /// # Errors
    /// A sample that cannot be delivered.
    pub(crate) fn fetch(&mut self, all: &[Wanted], loaded: &mut Loaded) -> Result<Vec<Delivered>, DataError> {
        let started = Instant::now();
        let mut rows: Vec<Delivered> = all.iter().map(|_| self.spare.pop().unwrap_or_default()).collect();
        let (source, num_ready) = (&*self, AtomicUsize::new(0));
        rows.par_iter_mut().with_max_len(1).zip(all).try_for_each(|(rows, wanted)| {
            let ready = source.take(*wanted, rows)?;
            num_ready.fetch_add(usize::from(ready == Some(true)), Ordering::Relaxed);
            Ok::<(), DataError>(())
        })?;
        loaded.seconds += started.elapsed().as_secs_f64();
        if self.ahead.is_some() {
            loaded.num_chunks += all.len();
            loaded.num_ready += num_ready.into_inner();
        }
        Ok(rows)
    }

    /// Keeps buffers for what is loaded next.
    pub(crate) fn give_back(&mut self, rows: Vec<Delivered>) {
        self.spare.extend(rows);
    }
}

impl<A: Number> Stepper<A> {
    /// Begins to load this rank's part of a step, and gives what all ranks left out of it: from now on the pass is over the
    /// others.
    ///
    /// # Errors
    /// A sample that cannot be delivered; a collective that failed; nothing is left of the batch.
    pub(crate) fn count(
        &mut self,
        pass: &mut Pass<A>,
        plan: &StepPlan,
        shard: &Shard,
        loaded: &mut Loaded,
    ) -> Result<Vec<Skipped>, StepError> {
        let (rank, chunk) = (self.collective().rank(), self.recipe.train.chunk);
        self.source.begin(plan, |plan| positions(plan, rank, chunk).collect());
        if !self.skips() {
            return Ok(Vec::new());
        }
        self.source.load(plan, &shard.chunks, loaded)?;
        let own: Vec<Skipped> = self.source.rows.iter_mut().flat_map(|rows| rows.skipped.drain(..)).collect();
        let skipped = pass.wait(|m| {
            let op = m.op("samples left out", 0);
            gather(&op, &own, |mine| m.collective.all_gather(&op, mine))
        })?;
        pass.batch = plan.batch.len.saturating_sub(skipped.len() as u64);
        let what = || format!("step {} (positions {} of epoch {})", plan.step, plan.batch, plan.epoch);
        some_left(skipped, plan.batch.len, what)
    }

    /// Whether broken images are left out.
    pub(crate) fn skips(&self) -> bool {
        self.recipe.data.image.bad == BadImage::Skip
    }

    /// Fills as many chunks as `chunks` has with what is loaded of them, or loads it now.
    ///
    /// # Errors
    /// A sample that cannot be delivered; libtorch.
    pub(crate) fn load(
        &mut self,
        state: &State,
        plan: &StepPlan,
        chunks: &[SampleRange],
        loaded: &mut Loaded,
    ) -> Result<(), StepError> {
        if !self.skips() {
            self.source.load(plan, chunks, loaded)?;
        }
        let started = Instant::now();
        self.make_room(state, chunks.len())?;
        self.image = self.source.loader.dataset().train_shape(plan.epoch);
        let image = self.image;
        let mut rows: Vec<Delivered> = self.source.rows.drain(..chunks.len()).collect();
        self.chunks
            .par_iter_mut()
            .with_max_len(1)
            .zip(&mut rows)
            .try_for_each(|(chunk, rows)| chunk.take_rows(rows, image))?;
        self.source.spare.extend(rows);
        loaded.seconds += started.elapsed().as_secs_f64();
        Ok(())
    }
}
