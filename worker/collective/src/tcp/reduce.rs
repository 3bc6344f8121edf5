//! A sum over ranks.
//!
//! ```text
//! direct     every rank sends its partials to every other, and adds them all itself: one way, least latency
//! scattered  every rank sends slice s of its partials to rank s, which adds them and sends the sum to all
//! ```
//! Both in segments, so that adding and sending on go along with receiving, in cache. All ranks choose alike, by the
//! layout and the length.

use lockstep_proto::ids::Rank;

use super::exchange::{Exchange, SEGMENT, Segments, slices};
use super::frame::{Frame, Kind};
use crate::element::Element;
use crate::layout::Layout;

/// Bytes up to which partials go directly, whatever the traffic.
const SMALL: usize = 32 << 10;
/// Segments of a peer that may wait to be added.
const RING: usize = 4;
/// Borders of slices, in elements.
const ALIGN: usize = 64;

/// What has gone to and come from one peer, in frames.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    parts_sent: usize,
    sums_sent: usize,
    parts_received: usize,
    sums_received: usize,
}

pub(crate) struct Reduce<'a, T> {
    me: usize,
    layout: &'a Layout,
    partials: &'a [&'a [T]],
    out: &'a mut [T],
    scattered: bool,
    /// What each rank adds.
    regions: Vec<Segments>,
    /// Number of partials of each rank.
    counts: Vec<usize>,
    peers: Vec<Progress>,
    /// Segments of this rank's region that are added.
    folded: usize,
    /// Elements of a full segment.
    segment: usize,
    sums: &'a mut [T],
    ring: &'a mut [T],
}

/// How a reduction will go, before it has its memory.
pub(crate) struct Shape {
    me: usize,
    scattered: bool,
    segment: usize,
    sums_len: usize,
    ring_len: usize,
}

impl Shape {
    pub(crate) fn new<T: Element>(layout: &Layout, me: usize, len: usize) -> Self {
        let segment = (SEGMENT / T::BYTES).min(len.max(1));
        let total = layout.first_partial(layout.world() as usize);
        let others = total - layout.num_partials(Rank(me as u32));
        let scattered = len * T::BYTES > SMALL && prefers_slices(layout);
        Self { me, scattered, segment, sums_len: layout.plan().scratch_len(), ring_len: others * RING * segment }
    }

    /// Elements of scratch memory that it takes.
    pub(crate) fn scratch_len(&self) -> usize {
        self.sums_len + self.ring_len
    }
}

/// Whether the busiest rank moves no more in slices than directly: at equal traffic each sum is added only once. In units of the output's length over the world's size.
fn prefers_slices(layout: &Layout) -> bool {
    let world = layout.world() as usize;
    let total = layout.first_partial(world);
    let busiest =
        |cost: &dyn Fn(usize) -> usize| (0..world).map(|rank| cost(layout.num_partials(Rank(rank as u32)))).max();
    let direct = busiest(&|own| own * (world - 1) * world + (total - own) * world);
    let sliced = busiest(&|own| own * (world - 1) + (total - own) + 2 * (world - 1));
    sliced <= direct
}

impl<'a, T: Element> Reduce<'a, T> {
    /// `scratch` as long as `shape` says.
    pub(crate) fn new(
        shape: &Shape,
        layout: &'a Layout,
        partials: &'a [&'a [T]],
        out: &'a mut [T],
        scratch: &'a mut [T],
    ) -> Self {
        let world = layout.world() as usize;
        let regions = if shape.scattered { slices(out.len(), world, ALIGN) } else { vec![0..out.len(); world] };
        let (sums, ring) = scratch.split_at_mut(shape.sums_len);
        Self {
            me: shape.me,
            layout,
            partials,
            out,
            scattered: shape.scattered,
            regions: regions.into_iter().map(|region| Segments::new(region, shape.segment)).collect(),
            counts: (0..world).map(|rank| layout.num_partials(Rank(rank as u32))).collect(),
            peers: vec![Progress::default(); world],
            folded: 0,
            segment: shape.segment,
            sums,
            ring,
        }
    }

    /// Partials that `from` sends to `to`, in frames: all of a segment before the next.
    fn num_parts(&self, from: usize, to: usize) -> usize {
        self.counts[from] * self.regions[to].count()
    }

    fn num_sums(&self, from: usize) -> usize {
        if self.scattered { self.regions[from].count() } else { 0 }
    }
}

/// Where in the ring a partial of a segment lies.
fn slot(layout: &Layout, me: usize, peer: usize, segment: usize, partial: usize) -> usize {
    let own = layout.num_partials(Rank(me as u32));
    let before = layout.first_partial(peer) - if peer > me { own } else { 0 };
    let count = layout.num_partials(Rank(peer as u32));
    before * RING + (segment % RING) * count + partial
}

impl<T: Element> Exchange for Reduce<'_, T> {
    fn next_frame(&mut self, peer: usize) -> Option<Frame> {
        let (num_sums, num_parts) = (self.num_sums(self.me).min(self.folded), self.num_parts(self.me, peer));
        let progress = &mut self.peers[peer];
        if progress.sums_sent < num_sums {
            let part = progress.sums_sent;
            progress.sums_sent += 1;
            let len = self.regions[self.me].get(part).len() * T::BYTES;
            return Some(Frame { kind: Kind::Result, part: part as u32, len });
        }
        if progress.parts_sent < num_parts {
            let part = progress.parts_sent;
            progress.parts_sent += 1;
            let len = self.regions[peer].get(part / self.counts[self.me]).len() * T::BYTES;
            return Some(Frame { kind: Kind::Part, part: part as u32, len });
        }
        None
    }

    fn payload(&self, peer: usize, frame: &Frame) -> &[u8] {
        let part = frame.part as usize;
        bytemuck::cast_slice(match frame.kind {
            Kind::Result => &self.out[self.regions[self.me].get(part)],
            Kind::Part => {
                let own = self.counts[self.me];
                &self.partials[part % own][self.regions[peer].get(part / own)]
            }
        })
    }

    fn expects(&self, peer: usize) -> bool {
        let progress = &self.peers[peer];
        progress.parts_received < self.num_parts(peer, self.me) || progress.sums_received < self.num_sums(peer)
    }

    fn accept(&mut self, peer: usize, frame: &Frame) -> Result<bool, String> {
        let (progress, part) = (&self.peers[peer], frame.part as usize);
        let (next, end, segments, segment) = match frame.kind {
            Kind::Part => {
                let segment = part / self.counts[peer].max(1);
                (progress.parts_received, self.num_parts(peer, self.me), &self.regions[self.me], segment)
            }
            Kind::Result => (progress.sums_received, self.num_sums(peer), &self.regions[peer], part),
        };
        if part != next || part >= end || segments.get(segment).len() * T::BYTES != frame.len {
            return Err(format!("{frame:?} instead of number {next} of {end}"));
        }
        Ok(frame.kind == Kind::Result || segment < self.folded + RING)
    }

    fn buffer(&mut self, peer: usize, frame: &Frame) -> &mut [u8] {
        let part = frame.part as usize;
        bytemuck::cast_slice_mut(match frame.kind {
            Kind::Result => &mut self.out[self.regions[peer].get(part)],
            Kind::Part => {
                let count = self.counts[peer];
                let at = slot(self.layout, self.me, peer, part / count, part % count) * self.segment;
                &mut self.ring[at..][..frame.len / T::BYTES]
            }
        })
    }

    fn received(&mut self, peer: usize, frame: &Frame) {
        match frame.kind {
            Kind::Part => self.peers[peer].parts_received += 1,
            Kind::Result => self.peers[peer].sums_received += 1,
        }
    }

    fn advance(&mut self) -> bool {
        let before = self.folded;
        while self.folded < self.regions[self.me].count() {
            let segment = self.folded;
            let complete = |peer: usize| self.peers[peer].parts_received >= (segment + 1) * self.counts[peer];
            if !(0..self.counts.len()).all(|peer| peer == self.me || complete(peer)) {
                break;
            }
            let range = self.regions[self.me].get(segment);
            let mut inputs: Vec<&[T]> = Vec::with_capacity(self.layout.first_partial(self.counts.len()));
            for (rank, &count) in self.counts.iter().enumerate() {
                inputs.extend((0..count).map(|partial| {
                    if rank == self.me {
                        &self.partials[partial][range.clone()]
                    } else {
                        &self.ring[slot(self.layout, self.me, rank, segment, partial) * self.segment..][..range.len()]
                    }
                }));
            }
            self.layout.plan().run(|k| inputs[k], self.sums, &mut self.out[range]);
            self.folded += 1;
        }
        self.folded > before
    }

    fn laggard(&self) -> Option<usize> {
        let peers = || (0..self.counts.len()).filter(|&peer| peer != self.me);
        let segments = |peer: usize| self.peers[peer].parts_received / self.counts[peer].max(1);
        let no_part = peers().filter(|&peer| self.peers[peer].parts_received < self.num_parts(peer, self.me));
        let no_sum = || peers().filter(|&peer| self.peers[peer].sums_received < self.num_sums(peer));
        no_part
            .min_by_key(|&peer| segments(peer))
            .or_else(|| no_sum().min_by_key(|&peer| self.peers[peer].sums_received))
    }
}
