//! Whoever holds which chunks: the same bits on every rank.
#![allow(clippy::unwrap_used)] // a panic is how tests fail

mod common;

use std::fmt::Debug;

use common::{PATIENCE, meshes, op, ranks};
use lockstep_collective::{Collective, CollectiveError, Element, Lane, Layout, Op, TcpMesh};
use lockstep_proto::ids::Rank;
use lockstep_proto::tree::{Node, Tree};
use proptest::prelude::*;

trait Number: Element + Debug {
    fn of(value: f64) -> Self;
    fn reduce(
        mesh: &TcpMesh,
        op: &Op,
        layout: &Layout,
        partials: &[&[Self]],
        out: &mut [Self],
    ) -> Result<(), CollectiveError>;
}

impl Number for f32 {
    fn of(value: f64) -> Self {
        value as f32
    }

    fn reduce(m: &TcpMesh, op: &Op, layout: &Layout, p: &[&[f32]], out: &mut [f32]) -> Result<(), CollectiveError> {
        m.reduce_f32(op, layout, p, out)
    }
}

impl Number for f64 {
    fn of(value: f64) -> Self {
        value
    }

    fn reduce(m: &TcpMesh, op: &Op, layout: &Layout, p: &[&[f64]], out: &mut [f64]) -> Result<(), CollectiveError> {
        m.reduce_f64(op, layout, p, out)
    }
}

/// A number that depends on chunk and place, of very different sizes: another order of addition gives other bits.
fn value(chunk: u32, i: usize) -> f64 {
    let hash = (u64::from(chunk) << 32 | i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((hash >> 40) as f64 - 8e6) * 10f64.powi((hash % 9) as i32 - 4)
}

fn chunk<T: Number>(chunk: u32, len: usize) -> Vec<T> {
    (0..len).map(|i| T::of(value(chunk, i))).collect()
}

fn add<T: Number>(left: &mut [T], right: Vec<T>) {
    left.iter_mut().zip(right).for_each(|(left, right)| *left += right);
}

/// What one process alone finds.
fn expected<T: Number>(num_chunks: u32, len: usize) -> Vec<T> {
    let leaves = (0..num_chunks).map(|index| (Node { level: 0, index }, chunk(index, len))).collect();
    Tree::new(num_chunks)
        .fold(leaves, |left: &mut Vec<T>, right| add(left, right))
        .unwrap_or_else(|| vec![T::ZERO; len])
}

fn reduce<T: Number>(mesh: &TcpMesh, op: &Op, layout: &Layout, len: usize) -> Vec<T> {
    let share = layout.share(mesh.rank());
    let leaves = share.clone().map(|index| chunk(index, len)).collect();
    let partials: Vec<Vec<T>> = layout
        .tree()
        .fold_chunks(share, leaves, |left: &mut Vec<T>, right| add(left, right))
        .into_iter()
        .map(|(_, sum)| sum)
        .collect();
    let partials: Vec<&[T]> = partials.iter().map(Vec::as_slice).collect();
    let mut out = vec![T::of(99.0); len];
    T::reduce(mesh, op, layout, &partials, &mut out).unwrap();
    out
}

fn equal_everywhere<T: Number>(lane: Lane, num_chunks: u32, len: usize, splits: &[&[u32]]) {
    let expected = expected::<T>(num_chunks, len);
    for counts in splits {
        let world = counts.len() as u32;
        let meshes = meshes(world, PATIENCE);
        let layout = Layout::canonical(num_chunks, counts);
        for index in 0..2 {
            let sums = ranks(world, |rank| reduce::<T>(&meshes[rank as usize], &op(lane, "sum", index), &layout, len));
            for (rank, sum) in sums.iter().enumerate() {
                assert!(
                    bytemuck::cast_slice::<T, u8>(sum) == bytemuck::cast_slice::<T, u8>(&expected),
                    "rank {rank} of {counts:?}"
                );
            }
        }
    }
}

const SPLITS: &[&[u32]] = &[
    &[13],
    &[7, 6],
    &[13, 0],
    &[0, 13],
    &[3, 5, 5],
    &[0, 12, 1],
    &[4, 4, 4, 1],
    &[0, 0, 0, 13],
    &[1, 2, 3, 4, 3],
    &[3, 2, 2, 2, 2, 2],
    &[0, 5, 0, 5, 0, 3, 0],
    &[2, 2, 2, 2, 2, 1, 1, 1],
];

#[test]
fn small_sums_have_the_same_bits_however_chunks_are_spread() {
    equal_everywhere::<f32>(Lane::Norm, 13, 37, SPLITS);
    equal_everywhere::<f64>(Lane::Norm, 13, 129, SPLITS);
}

#[test]
fn sums_of_many_segments_have_the_same_bits_however_chunks_are_spread() {
    equal_everywhere::<f32>(Lane::Buckets, 13, 200_003, SPLITS);
    equal_everywhere::<f64>(Lane::Buckets, 13, 70_001, SPLITS);
}

#[test]
fn a_ring_of_segments_may_go_round_many_times() {
    equal_everywhere::<f32>(Lane::Buckets, 5, 1_500_007, &[&[2, 3], &[1, 2, 2], &[1, 1, 1, 2]]);
}

#[test]
fn without_chunks_the_sum_is_zeros() {
    equal_everywhere::<f32>(Lane::Norm, 0, 10, &[&[0], &[0, 0], &[0, 0, 0]]);
    equal_everywhere::<f64>(Lane::Buckets, 0, 40_000, &[&[0, 0, 0]]);
}

#[test]
fn an_empty_sum_is_no_trouble() {
    equal_everywhere::<f32>(Lane::Norm, 3, 0, &[&[3], &[1, 2], &[1, 1, 1]]);
}

#[test]
fn the_fast_layout_adds_one_value_a_rank() {
    for world in 1..=4 {
        let meshes = meshes(world, PATIENCE);
        let layout = Layout::by_rank(world);
        for len in [1, 50_000] {
            let sums =
                ranks(world, |rank| reduce::<f32>(&meshes[rank as usize], &op(Lane::Norm, "fast", 0), &layout, len));
            assert!(sums.iter().all(|sum| *sum == expected::<f32>(world, len)), "{world} ranks, {len} elements");
        }
    }
}

#[test]
fn two_lanes_work_at_once() {
    let meshes = meshes(3, PATIENCE);
    let layout = Layout::canonical(5, &[1, 1, 3]);
    let (small, large) = (expected::<f64>(5, 16), expected::<f32>(5, 300_000));
    ranks(6, |thread| {
        let mesh = &meshes[thread as usize / 2];
        if thread % 2 == 0 {
            for index in 0..200 {
                assert_eq!(reduce::<f64>(mesh, &op(Lane::Norm, "norm", index), &layout, 16), small);
            }
        } else {
            for index in 0..4 {
                assert_eq!(reduce::<f32>(mesh, &op(Lane::Buckets, "bucket", index), &layout, 300_000), large);
            }
        }
    });
    assert_eq!(meshes[0].history(Lane::Norm).len(), 64);
    assert_eq!(meshes[0].history(Lane::Buckets)[3], "bucket 3 of step 7 (buckets lane, number 4)");
}

#[test]
fn a_broadcast_of_any_length_from_any_root_reaches_everyone() {
    for world in 1..=5u32 {
        let meshes = meshes(world, PATIENCE);
        for len in [0, 1, 1000, 70_000, 3_000_001] {
            for root in 0..world {
                ranks(world, |rank| {
                    let text = |rank: u32| (0..len).map(move |i| (i as u32 * 7 + rank) as u8).collect::<Vec<u8>>();
                    let mut bytes = text(rank);
                    let op = op(Lane::Buckets, "heal", root);
                    meshes[rank as usize].broadcast(&op, Rank(root), &mut bytes).unwrap();
                    assert!(bytes == text(root), "{len} bytes from {root} of {world}");
                });
            }
        }
    }
}

#[test]
fn messages_of_unequal_length_are_gathered() {
    for world in 1..=5u32 {
        let meshes = meshes(world, PATIENCE);
        let message = |rank: u32| vec![rank as u8; (rank as usize * 77_777) % 200_000];
        ranks(world, |rank| {
            let mesh = &meshes[rank as usize];
            let all = mesh.all_gather(&op(Lane::Norm, "gather", 0), &message(rank)).unwrap();
            assert!(all == (0..world).map(message).collect::<Vec<_>>());
            mesh.barrier(&op(Lane::Norm, "barrier", 0)).unwrap();
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn sums_are_those_of_plain_addition(counts in prop::collection::vec(0u32..6, 1..6), len in 0usize..9000) {
        let num_chunks = counts.iter().sum();
        let world = counts.len() as u32;
        let meshes = meshes(world, PATIENCE);
        let layout = Layout::canonical(num_chunks, &counts);
        let sums = ranks(world, |rank| reduce::<f64>(&meshes[rank as usize], &op(Lane::Buckets, "sum", 0), &layout, len));
        for sum in &sums {
            prop_assert!(sum == &sums[0]);
            for (i, &sum) in sum.iter().enumerate() {
                let (plain, size) = (0..num_chunks).fold((0.0, 0.0), |(a, b), c| (a + value(c, i), b + value(c, i).abs()));
                prop_assert!((sum - plain).abs() <= 1e-14 * size);
            }
        }
    }
}
