//! Gradients on their way out: chunk gradients are added in tree order into buckets, slices of the flat layout in the
//! order in which backward finishes; a full bucket goes to a thread that adds it over ranks while backward still runs.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, unbounded};
use lockstep_collective::{Collective, CollectiveError, Lane, Layout, Op};
use lockstep_proto::ids::Step;
use lockstep_proto::tree::Node;
use lockstep_torch::{TorchError, tree_sum};
use tch::Tensor;

use super::chunk::Chunk;
use super::meeting::LocalTree;
use crate::number::Number;
use crate::program::{FlatLayout, ParamId, Program};
use crate::tuning::Tuning;

/// A slice of the flat layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// First element.
    pub start: usize,
    /// Number of elements.
    pub len: usize,
    /// Matrices in it; empty for the slice of vectors.
    pub params: Vec<ParamId>,
}

/// Cuts the matrices that train into slices of about `target` elements, the first of a quarter so that the first
/// reduction starts early; vectors are the last slice.
pub fn slices(program: &Program, layout: &FlatLayout, trains: impl Fn(ParamId) -> bool, target: usize) -> Vec<Slice> {
    let mut slices: Vec<Slice> = Vec::new();
    let matrices = layout.order.iter().filter(|id| !program.params[id.0].is_vector() && trains(**id));
    let mut open: Option<Slice> = None;
    for id in matrices {
        let entry = layout.entries[id.0];
        let slice = open.get_or_insert_with(|| Slice { start: entry.offset, len: 0, params: Vec::new() });
        slice.params.push(*id);
        slice.len = entry.offset + entry.len - slice.start;
        let wanted = if slices.is_empty() { target / 4 } else { target };
        if slice.len >= wanted {
            slices.extend(open.take());
        }
    }
    slices.extend(open.take());
    slices.push(Slice { start: layout.vectors, len: layout.len - layout.vectors, params: Vec::new() });
    slices
}

/// The numbers of one bucket: a partial sum for each maximal node of this rank, and the sum over all ranks.
pub struct Bucket<A> {
    partials: Vec<Vec<A>>,
    sum: Vec<A>,
}

/// The gradient of one step.
pub struct Buckets<A> {
    slices: Vec<Slice>,
    buckets: Vec<Option<Bucket<A>>>,
    waiting: Vec<usize>,
    bucket_of: Vec<usize>,
    /// Of each bucket, sums over subtrees of the chunks that earlier parts of the step have computed.
    held: Vec<Vec<(Node, Vec<A>)>>,
}

/// Chunks that are computed together: all of a rank's, or with `train.accumulate` some of them.
#[derive(Clone, Debug)]
pub struct Together {
    /// In the tree of the rank's chunks.
    pub local: LocalTree,
    /// How many sums the rank sends of each bucket, when these are the last chunks of its step.
    pub sends: Option<usize>,
}

impl<A: Number> Buckets<A> {
    /// [`slices`] of about `bytes`, of what trains.
    pub fn new(program: &Program, layout: &FlatLayout, tuning: &Tuning, bytes: u64) -> Self {
        let target = (bytes as usize / size_of::<A>()).max(1);
        let slices = slices(program, layout, |id| !tuning.is_frozen(id), target);
        let mut bucket_of = vec![0; program.params.len()];
        for (index, slice) in slices.iter().enumerate() {
            slice.params.iter().for_each(|id| bucket_of[id.0] = index);
        }
        let buckets = slices.iter().map(|_| Some(Bucket { partials: Vec::new(), sum: Vec::new() })).collect();
        let held = slices.iter().map(|_| Vec::new()).collect();
        Self { waiting: vec![0; slices.len()], slices, buckets, bucket_of, held }
    }

    /// Number of buckets.
    pub fn len(&self) -> usize {
        self.slices.len()
    }

    /// Whether there is none (never: vectors always have one).
    pub fn is_empty(&self) -> bool {
        self.slices.is_empty()
    }

    /// Forgets what a step that was cut short left behind.
    pub fn begin_step(&mut self) {
        self.held.iter_mut().for_each(Vec::clear);
    }

    /// Readies all buckets for the gradients of these chunks.
    pub fn begin(&mut self, together: &Together) {
        let num_sums = together.local.tree.maximal(together.local.chunks.clone()).len();
        for ((slice, bucket), waiting) in self.slices.iter().zip(&mut self.buckets).zip(&mut self.waiting) {
            let bucket = bucket.get_or_insert_with(|| Bucket { partials: Vec::new(), sum: Vec::new() });
            bucket.partials.resize_with(num_sums, Vec::new);
            bucket.partials.iter_mut().for_each(|partial| partial.resize(slice.len, A::default()));
            bucket.sum.resize(slice.len, A::default());
            *waiting = slice.params.len();
        }
    }

    /// Adds a finished matrix of all chunks into its bucket. Returns the bucket when that was its last.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn add_matrix(
        &mut self,
        param: ParamId,
        layout: &FlatLayout,
        chunks: &mut [Chunk<A>],
        tree: &LocalTree,
    ) -> Result<Option<usize>, TorchError> {
        let index = self.bucket_of[param.0];
        let entry = layout.entries[param.0];
        let at = entry.offset - self.slices[index].start;
        let gradients: Vec<Tensor> = chunks.iter_mut().filter_map(|c| c.tape.matrices[param.0].take()).collect();
        let mut left = gradients.iter();
        if let Some(bucket) = &mut self.buckets[index] {
            for (node, partial) in tree.tree.maximal(tree.chunks.clone()).into_iter().zip(&mut bucket.partials) {
                let leaves: Vec<&Tensor> = left.by_ref().take(tree.tree.leaves(node).len()).collect();
                tree_sum(&leaves, &mut partial[at..at + entry.len])?;
            }
        }
        self.waiting[index] -= 1;
        Ok((self.waiting[index] == 0).then_some(index))
    }

    /// Adds the vectors of all chunks into the last bucket and returns its index.
    pub fn add_vectors(&mut self, chunks: &[Chunk<A>], tree: &LocalTree) -> usize {
        let index = self.slices.len() - 1;
        let sums = tree.fold(chunks.iter().map(|c| c.vectors.clone()).collect());
        if let Some(bucket) = &mut self.buckets[index] {
            for (partial, sum) in bucket.partials.iter_mut().zip(sums) {
                *partial = sum;
            }
        }
        index
    }

    /// Takes what these chunks put into a bucket to the sums of the chunks before. Whether the bucket is to be sent: it
    /// holds the sums of all of the rank's chunks then, zeros where it has none.
    pub fn close(&mut self, index: usize, together: &Together) -> bool {
        let Some(bucket) = &mut self.buckets[index] else { return false };
        let (tree, held) = (together.local.tree, &mut self.held[index]);
        let sums = std::mem::take(&mut bucket.partials);
        for value in tree.maximal(together.local.chunks.clone()).into_iter().zip(sums) {
            tree.grow(held, value, |left, right| left.iter_mut().zip(right).for_each(|(l, r)| *l += r));
        }
        let Some(num_sums) = together.sends else { return false };
        bucket.partials = held.drain(..).map(|(_, sum)| sum).collect();
        // With the fast order every rank is a leaf, also one without chunks.
        bucket.partials.resize_with(num_sums, || vec![A::default(); self.slices[index].len]);
        true
    }

    /// The sums over ranks, with where they begin in the flat layout.
    pub fn sums(&self) -> impl Iterator<Item = (usize, &[A])> {
        let buckets = self.buckets.iter().flatten();
        self.slices.iter().zip(buckets).map(|(slice, bucket)| (slice.start, bucket.sum.as_slice()))
    }
}

struct Job<A> {
    index: usize,
    step: Step,
    layout: Arc<Layout>,
    bucket: Bucket<A>,
}

struct Done<A> {
    index: usize,
    bucket: Bucket<A>,
    result: Result<(), CollectiveError>,
}

/// The thread that adds buckets over ranks, in the order in which they come. Alone in the world there is no thread.
pub struct Reducer<A> {
    collective: Arc<dyn Collective>,
    jobs: Option<Sender<Job<A>>>,
    done: Receiver<Done<A>>,
    thread: Option<std::thread::JoinHandle<()>>,
    in_flight: usize,
}

impl<A: Number> Reducer<A> {
    /// Starts the thread; it ends when this is dropped.
    pub fn new(collective: Arc<dyn Collective>) -> Self {
        let (jobs, inbox) = unbounded::<Job<A>>();
        let (outbox, done) = unbounded();
        let own = Arc::clone(&collective);
        let thread = (collective.world() > 1).then(|| {
            std::thread::spawn(move || {
                for Job { index, step, layout, mut bucket } in inbox {
                    let result = reduce(&*own, &layout, step, index, &mut bucket);
                    if outbox.send(Done { index, bucket, result }).is_err() {
                        return;
                    }
                }
            })
        });
        Self { collective, jobs: thread.is_some().then_some(jobs), done, thread, in_flight: 0 }
    }

    /// Sends a finished bucket on its way.
    ///
    /// # Errors
    /// A collective that failed (here only when there is no thread).
    pub fn send(
        &mut self,
        buckets: &mut Buckets<A>,
        index: usize,
        step: Step,
        layout: &Arc<Layout>,
    ) -> Result<(), CollectiveError> {
        let Some(mut bucket) = buckets.buckets[index].take() else { return Ok(()) };
        match &self.jobs {
            None => {
                let result = reduce(&*self.collective, layout, step, index, &mut bucket);
                buckets.buckets[index] = Some(bucket);
                result
            }
            Some(jobs) => {
                self.in_flight += 1;
                // invariant: the thread lives as long as `jobs`
                let _ = jobs.send(Job { index, step, layout: Arc::clone(layout), bucket });
                Ok(())
            }
        }
    }

    /// Waits for every bucket that was sent. Returns the seconds of waiting: communication that compute did not hide.
    ///
    /// # Errors
    /// The first collective that failed; the gradient must not be used then.
    pub fn wait(&mut self, buckets: &mut Buckets<A>) -> Result<f64, CollectiveError> {
        let start = Instant::now();
        let mut first_error = None;
        while self.in_flight > 0 {
            let Ok(done) = self.done.recv() else { return Err(CollectiveError::Aborted) };
            self.in_flight -= 1;
            buckets.buckets[done.index] = Some(done.bucket);
            if let Err(error) = done.result {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(start.elapsed().as_secs_f64()), Err)
    }
}

impl<A> Drop for Reducer<A> {
    fn drop(&mut self) {
        self.jobs = None;
        if self.in_flight > 0 {
            self.collective.abort();
        }
        if let Some(thread) = self.thread.take() {
            // Whatever is in flight was aborted, so this ends; a panic in the thread has ended the process already.
            let _ = thread.join();
        }
    }
}

fn reduce<A: Number>(
    collective: &dyn Collective,
    layout: &Layout,
    step: Step,
    index: usize,
    bucket: &mut Bucket<A>,
) -> Result<(), CollectiveError> {
    let op = Op { lane: Lane::Buckets, step, name: "gradient bucket", index: index as u32 };
    let partials: Vec<&[A]> = bucket.partials.iter().map(Vec::as_slice).collect();
    A::reduce(collective, &op, layout, &partials, &mut bucket.sum)
}
