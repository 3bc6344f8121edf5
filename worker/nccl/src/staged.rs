//! Operations on host slices: copied to the device, done there by NCCL, copied back, and checked.
//!
//! ```text
//! every operation   frames, all-gathered: does everyone mean the same? Small payloads are done with that.
//! canonical sums    partials of slice s ─► rank s, which adds them in tree order on the host ─► all-gather of slices
//! any order         ncclAllReduce
//! large ones        in segments, then frames again: nobody aborted meanwhile, so nothing is junk
//! ```
//! Why the second frames tell: a rank puts them on its stream only after it has seen the operation end and no failure, and
//! remembers a failure before it aborts. So frames from everyone mean that nobody had aborted before the end.

use std::sync::{Arc, MutexGuard, PoisonError};

use lockstep_collective::{Collective, CollectiveError, Element, Lane, Layout, Op, check_reduce, check_root};
use lockstep_proto::ids::Rank;

use crate::communicator::DataType;
use crate::device::{Context, DeviceBuffer, Event, HostBuffer, Stream};
use crate::error::NcclError;
use crate::frame::{FRAME, Frame, INLINE, shape};
use crate::mesh::{Core, LAST_WORD, NcclMesh};
use crate::ring::{Progress, index};

/// Bytes of a segment: of a buffer, about.
const SEGMENT: usize = 8 << 20;
/// Borders of slices, in bytes.
const ALIGN: usize = 256;
/// Bytes that a peer may send in a gather, so that a broken one cannot ask for all memory.
const MOST: u64 = 1 << 30;

/// Of one lane.
pub(crate) struct Staging {
    context: Arc<Context>,
    /// `None` once forgotten.
    stream: Option<Stream>,
    done: Option<Event>,
    buffers: Option<Buffers>,
    /// Outgrown: freeing them would wait for the other lane.
    outgrown: Vec<Buffers>,
}

struct Buffers {
    host_out: HostBuffer,
    host_in: HostBuffer,
    device_out: DeviceBuffer,
    device_in: DeviceBuffer,
    bytes: usize,
}

impl Buffers {
    fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, NcclError> {
        Ok(Self {
            host_out: HostBuffer::new(context, bytes)?,
            host_in: HostBuffer::new(context, bytes)?,
            device_out: DeviceBuffer::new(context, bytes)?,
            device_in: DeviceBuffer::new(context, bytes)?,
            bytes,
        })
    }
}

impl Staging {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Self, NcclError> {
        Ok(Self {
            context: Arc::clone(context),
            stream: Some(Stream::new(context)?),
            done: Some(Event::new(context)?),
            buffers: None,
            outgrown: Vec::new(),
        })
    }

    pub(crate) fn stream(&self) -> &Stream {
        // It is taken only by `forget`, when the mesh is dropped, after its last use.
        self.stream.as_ref().expect("a stream")
    }

    /// Leaks everything: something may still write there.
    pub(crate) fn forget(&mut self) {
        std::mem::forget((
            self.stream.take(),
            self.done.take(),
            self.buffers.take(),
            std::mem::take(&mut self.outgrown),
        ));
    }

    /// Buffers of at least as many bytes each, with the stream and the event.
    fn take(&mut self, bytes: usize) -> Result<(&mut Buffers, &Stream, &Event), NcclError> {
        if self.buffers.as_ref().is_none_or(|buffers| buffers.bytes < bytes) {
            let new = Buffers::new(&self.context, bytes.next_power_of_two().max(1 << 16))?;
            self.outgrown.extend(self.buffers.replace(new));
        }
        match (&mut self.buffers, &self.stream, &self.done) {
            (Some(buffers), Some(stream), Some(done)) => Ok((buffers, stream, done)),
            _ => Err(NcclError::Closed),
        }
    }
}

/// One operation under way on its lane.
struct Turn<'a> {
    mesh: &'a NcclMesh,
    staging: MutexGuard<'a, Staging>,
    op: &'a Op,
    number: u64,
    frame: Frame,
    before: String,
    /// Its first exchange has begun.
    is_under_way: bool,
}

/// The frames that came: header and payload of each rank.
type Frames = Vec<(Frame, Vec<u8>)>;

impl<'a> Turn<'a> {
    fn begin(mesh: &'a NcclMesh, op: &'a Op, sign: u64, bytes: usize) -> Result<Self, CollectiveError> {
        let staging = mesh.lanes[index(op.lane)].lock().unwrap_or_else(PoisonError::into_inner);
        mesh.core.check()?;
        let before = mesh.core.ring(op.lane).last().map_or_else(|| "nothing".into(), ToString::to_string);
        let number = mesh.core.begin(op, sign, bytes);
        let frame = Frame::new(mesh.core.generation, op, number, sign);
        Ok(Self { mesh, staging, op, number, frame, before, is_under_way: false })
    }

    fn core(&self) -> &'a Core {
        &self.mesh.core
    }

    /// One exchange through the device: `fill` writes the first `sent` bytes, `work` enqueues; what came back is in the
    /// first `received` bytes of what is returned.
    fn pass(
        &mut self,
        (sent, received): (usize, usize),
        fill: impl FnOnce(&mut [u8]),
        work: impl FnOnce(&Buffers, &Stream) -> Result<(), NcclError>,
    ) -> Result<&[u8], CollectiveError> {
        let core = self.core();
        let (op, number) = (self.op, self.number);
        if std::mem::replace(&mut self.is_under_way, true) {
            core.ring(op.lane).next_part(number);
        }
        let operation = || op.to_string();
        let failed = |error| core.fail(core.error(operation, error));
        let (buffers, stream, done) = self.staging.take(sent.max(received)).map_err(failed)?;
        fill(&mut buffers.host_out.bytes_mut()[..sent]);
        core.check()?;
        let enqueued = stream
            .copy_in(&buffers.host_out, buffers.device_out.ptr(), sent)
            .and_then(|()| work(buffers, stream))
            .and_then(|()| stream.copy_out(buffers.device_in.ptr(), &mut buffers.host_in, received))
            .and_then(|()| done.record(stream));
        enqueued.map_err(failed)?;
        core.ring(op.lane).reach(number, Progress::Enqueued);
        core.wait(op.lane, &operation, || done.is_reached())?;
        Ok(&buffers.host_in.bytes()[..received])
    }

    /// Everybody's frame, after checking that all mean the same.
    fn frames(&mut self, frame: Frame, payload: &[u8]) -> Result<Frames, CollectiveError> {
        let (core, op, before) = (self.core(), self.op, self.before.clone());
        let (world, comm) = (core.world(), self.mesh.communicator(op.lane));
        let frame = frame.with_len(payload.len());
        let inline = if payload.len() <= INLINE { payload } else { &[] };
        let bytes = self.pass(
            (FRAME, world * FRAME),
            |out| frame.write(inline, out),
            |buffers, stream| comm.all_gather((buffers.device_out.ptr(), buffers.device_in.ptr()), FRAME, stream),
        )?;
        let mut frames = Vec::with_capacity(world);
        for (rank, bytes) in bytes.chunks_exact(FRAME).enumerate() {
            let rank = Rank(rank as u32);
            match Frame::read(bytes) {
                Some((theirs, payload)) if theirs.is_in_turn(&frame) => frames.push((theirs, payload.to_vec())),
                Some((theirs, _)) => return Err(junk(core, rank, theirs.describe())),
                None => return Err(junk(core, rank, "not a frame".into())),
            }
        }
        for (rank, (theirs, _)) in frames.iter().enumerate() {
            let detail = if !theirs.is_same_operation(&frame) {
                "another operation"
            } else if theirs.shape != frame.shape {
                "the same but of another type, length, layout or root"
            } else {
                continue;
            };
            return Err(core.fail(CollectiveError::Mismatch {
                rank: Rank(rank as u32),
                ours: frame.describe(),
                theirs: theirs.describe(),
                detail: detail.into(),
                before,
            }));
        }
        Ok(frames)
    }

    /// The frames before the operation.
    fn open(&mut self, payload: &[u8]) -> Result<Frames, CollectiveError> {
        self.frames(self.frame, payload)
    }

    /// The frames behind a large operation: without them its outcome counts for nothing.
    fn seal(&mut self) -> Result<(), CollectiveError> {
        self.frames(self.frame.behind(), &[]).map(drop)
    }

    fn end(self) {
        self.core().ring(self.op.lane).reach(self.number, Progress::Finished);
    }

    /// A segment of a sum in tree order, where each rank owns a slice of `slice` elements of it.
    fn reduce_segment<T: Element>(
        &mut self,
        layout: &Layout,
        (at, slice): (usize, usize),
        partials: &[&[T]],
        out: &mut [T],
    ) -> Result<(), CollectiveError> {
        let (me, world) = (self.core().rank().0 as usize, self.core().world());
        let comm = self.mesh.communicator(self.op.lane);
        let (own, bytes) = (partials.len(), slice * T::BYTES);
        let owned = |owner: usize, partial: &'_ [T]| {
            let (from, to) = ((owner * slice).min(out.len()), ((owner + 1) * slice).min(out.len()));
            at + from..(at + to).min(partial.len())
        };
        let count = |rank: usize| layout.num_partials(Rank(rank as u32));
        let total = layout.first_partial(world);
        // Out: by owner, then partial. In: by partial of all ranks.
        let received = self.pass(
            (world * own * bytes, total * bytes),
            |host| {
                let host: &mut [T] = bytemuck::cast_slice_mut(host);
                for (owner, host) in host.chunks_mut((own * slice).max(1)).enumerate() {
                    for (partial, host) in partials.iter().zip(host.chunks_mut(slice)) {
                        let part = &partial[owned(owner, partial)];
                        host[..part.len()].copy_from_slice(part);
                    }
                }
            },
            |buffers, stream| {
                let peers = || (0..world).filter(|&peer| peer != me);
                let (from, to) = (buffers.device_out.ptr(), buffers.device_in.ptr());
                let sends: Vec<_> = peers()
                    .filter(|_| own > 0)
                    .map(|peer| (peer as u32, from.part(peer * own * bytes, own * bytes)))
                    .collect();
                let receives: Vec<_> = peers()
                    .filter(|&peer| count(peer) > 0)
                    .map(|peer| (peer as u32, to.part(layout.first_partial(peer) * bytes, count(peer) * bytes)))
                    .collect();
                if sends.is_empty() && receives.is_empty() { Ok(()) } else { comm.group(&sends, &receives, stream) }
            },
        )?;
        let received: &[T] = bytemuck::cast_slice(received);
        let mine = owned(me, partials.first().copied().unwrap_or(&[]));
        let len = ((me + 1) * slice).min(out.len()).saturating_sub(me * slice);
        let mut sums = vec![T::ZERO; len];
        let first = layout.first_partial(me);
        let inputs: Vec<&[T]> = (0..total)
            .map(|k| match partials.get(k.wrapping_sub(first)) {
                Some(own) if k >= first => &own[mine.clone()],
                _ => &received[k * slice..][..len],
            })
            .collect();
        layout.fold(&inputs, &mut sums);
        let all = self.pass(
            (bytes, world * bytes),
            |host| {
                host[..len * T::BYTES].copy_from_slice(bytemuck::cast_slice(&sums));
            },
            |buffers, stream| comm.all_gather((buffers.device_out.ptr(), buffers.device_in.ptr()), bytes, stream),
        )?;
        let len = out.len();
        out.copy_from_slice(&bytemuck::cast_slice(all)[..len]);
        Ok(())
    }

    /// A segment of a sum in NCCL's order.
    fn sum_segment<T: Element>(&mut self, partial: &[T], out: &mut [T]) -> Result<(), CollectiveError> {
        let comm = self.mesh.communicator(self.op.lane);
        let dtype = if T::BYTES == 8 { DataType::F64 } else { DataType::F32 };
        let bytes = out.len() * T::BYTES;
        let sums = self.pass(
            (bytes, bytes),
            |host| host.copy_from_slice(bytemuck::cast_slice(partial)),
            |buffers, stream| {
                comm.all_reduce((buffers.device_out.ptr(), buffers.device_in.ptr()), bytes / T::BYTES, dtype, stream)
            },
        )?;
        out.copy_from_slice(bytemuck::cast_slice(sums));
        Ok(())
    }
}

/// Something came that nobody sends: most likely after an abort, of which word is on its way.
fn junk(core: &Core, rank: Rank, what: String) -> CollectiveError {
    let start = std::time::Instant::now();
    while start.elapsed() < LAST_WORD {
        if let Err(cause) = core.check() {
            return cause;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    core.fail(CollectiveError::Garbled { rank, generation: core.generation, what })
}

impl NcclMesh {
    fn reduce<T: Element>(
        &self,
        op: &Op,
        layout: &Layout,
        partials: &[&[T]],
        out: &mut [T],
    ) -> Result<(), CollectiveError> {
        check_reduce(op, layout, self, partials, out).map_err(|error| self.core.fail(error))?;
        let world = self.core.world();
        let most = (0..world).map(|rank| layout.num_partials(Rank(rank as u32))).max().unwrap_or(0);
        let sign = shape(&[1, T::BYTES as u64, out.len() as u64, layout.digest()]);
        let mut turn = Turn::begin(self, op, sign, out.len() * T::BYTES)?;
        if most * out.len() * T::BYTES <= INLINE {
            let payload: Vec<u8> =
                partials.iter().flat_map(|partial| bytemuck::cast_slice::<T, u8>(partial)).copied().collect();
            let frames = turn.open(&payload)?;
            let all: Vec<T> = frames
                .iter()
                .flat_map(|(_, payload)| payload.chunks_exact(T::BYTES).map(bytemuck::pod_read_unaligned))
                .collect();
            let inputs: Vec<&[T]> = if out.is_empty() {
                vec![&[]; layout.first_partial(world)]
            } else {
                all.chunks_exact(out.len()).collect()
            };
            layout.fold(&inputs, out);
            turn.end();
            return Ok(());
        }
        turn.open(&[])?;
        if layout.allows_any_order() {
            let elements = SEGMENT / T::BYTES;
            for (partial, out) in partials[0].chunks(elements).zip(out.chunks_mut(elements)) {
                turn.sum_segment(partial, out)?;
            }
        } else {
            // As long as no buffer is longer than a segment: of partials of all ranks for one slice, or of one's own for all.
            let total = layout.first_partial(world);
            let longest = SEGMENT / T::BYTES / (total.div_ceil(world)).max(most).max(1);
            let align = ALIGN / T::BYTES;
            let slice = out.len().min(longest).div_ceil(world).next_multiple_of(align);
            for (number, out) in out.chunks_mut(slice * world).enumerate() {
                turn.reduce_segment(layout, (number * slice * world, slice), partials, out)?;
            }
        }
        turn.seal()?;
        turn.end();
        Ok(())
    }
}

impl Collective for NcclMesh {
    fn rank(&self) -> Rank {
        self.core.rank()
    }

    fn world(&self) -> u32 {
        self.core.world() as u32
    }

    fn reduce_f32(
        &self,
        op: &Op,
        layout: &Layout,
        partials: &[&[f32]],
        out: &mut [f32],
    ) -> Result<(), CollectiveError> {
        self.reduce(op, layout, partials, out)
    }

    fn reduce_f64(
        &self,
        op: &Op,
        layout: &Layout,
        partials: &[&[f64]],
        out: &mut [f64],
    ) -> Result<(), CollectiveError> {
        self.reduce(op, layout, partials, out)
    }

    fn broadcast(&self, op: &Op, root: Rank, bytes: &mut [u8]) -> Result<(), CollectiveError> {
        check_root(op, root, self).map_err(|error| self.core.fail(error))?;
        let is_root = root == self.core.rank();
        let sign = shape(&[2, u64::from(root.0), bytes.len() as u64]);
        let mut turn = Turn::begin(self, op, sign, bytes.len())?;
        let is_small = bytes.len() <= INLINE;
        let frames = turn.open(if is_root && is_small { &*bytes } else { &[] })?;
        if is_small {
            let (_, payload) = &frames[root.0 as usize];
            if payload.len() != bytes.len() {
                return Err(junk(&self.core, root, format!("{} bytes instead of {}", payload.len(), bytes.len())));
            }
            bytes.copy_from_slice(payload);
            turn.end();
            return Ok(());
        }
        let comm = self.communicator(op.lane);
        for bytes in bytes.chunks_mut(SEGMENT) {
            let len = bytes.len();
            let fill = |host: &mut [u8]| {
                if is_root {
                    host.copy_from_slice(bytes);
                }
            };
            let came = turn.pass((len, len), fill, |buffers, stream| {
                comm.broadcast((buffers.device_out.ptr(), buffers.device_in.ptr()), len, root.0, stream)
            })?;
            bytes.copy_from_slice(came);
        }
        turn.seal()?;
        turn.end();
        Ok(())
    }

    fn all_gather(&self, op: &Op, mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        let mut turn = Turn::begin(self, op, shape(&[3]), mine.len())?;
        let frames = turn.open(mine)?;
        let most = frames.iter().map(|(frame, _)| frame.len).max().unwrap_or(0);
        if let Some((rank, (frame, _))) = frames.iter().enumerate().find(|(_, (frame, _))| frame.len > MOST) {
            let what = format!("{} bytes to be gathered; at most {MOST}", frame.len);
            return Err(junk(&self.core, Rank(rank as u32), what));
        }
        if most <= INLINE as u64 {
            turn.end();
            return Ok(frames.into_iter().map(|(_, payload)| payload).collect());
        }
        let (comm, world, most) = (self.communicator(op.lane), self.core.world(), most as usize);
        let lens: Vec<usize> = frames.iter().map(|(frame, _)| frame.len as usize).collect();
        let mut messages: Vec<Vec<u8>> = lens.iter().map(|&len| Vec::with_capacity(len)).collect();
        let segment = (SEGMENT / world).next_multiple_of(ALIGN);
        for at in (0..most).step_by(segment) {
            let len = segment.min(most - at);
            let fill = |host: &mut [u8]| {
                let part = mine.get(at..).unwrap_or_default();
                let part = &part[..part.len().min(len)];
                host[..part.len()].copy_from_slice(part);
            };
            let came = turn.pass((len, world * len), fill, |buffers, stream| {
                comm.all_gather((buffers.device_out.ptr(), buffers.device_in.ptr()), len, stream)
            })?;
            for ((message, &whole), came) in messages.iter_mut().zip(&lens).zip(came.chunks_exact(len)) {
                message.extend(&came[..whole.saturating_sub(at).min(len)]);
            }
        }
        turn.seal()?;
        turn.end();
        Ok(messages)
    }

    fn abort(&self) {
        self.core.fail(CollectiveError::Aborted);
    }

    fn underneath(&self) -> Option<&(dyn std::any::Any + Send + Sync)> {
        Some(self)
    }
}

/// Lanes by name, for who looks at one.
impl NcclMesh {
    /// What is on a lane's own stream is done.
    ///
    /// # Errors
    /// Something on it failed.
    pub fn is_idle(&self, lane: Lane) -> Result<bool, NcclError> {
        self.lanes[index(lane)].lock().unwrap_or_else(PoisonError::into_inner).stream().is_idle()
    }
}
