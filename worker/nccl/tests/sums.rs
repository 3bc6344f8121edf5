//! Whatever goes over NCCL is what goes over TCP: in the canonical order to the bit.
#![allow(clippy::unwrap_used)] // a panic is how tests fail

mod common;

use std::sync::Arc;

use common::{PATIENCE, meshes, op, ranks, tcp_meshes};
use lockstep_collective::{Collective, CollectiveError, Lane, Layout};
use lockstep_nccl::{DataType, DeviceBuffer, Event, Progress, Stream};
use lockstep_proto::ids::Rank;

/// A number that depends on chunk and place, of very different sizes: another order of addition gives other bits.
fn value(chunk: u32, i: usize) -> f64 {
    let hash = (u64::from(chunk) << 32 | i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((hash >> 40) as f64 - 8e6) * 10f64.powi((hash % 9) as i32 - 4)
}

fn partials<T: Copy + std::ops::AddAssign>(
    layout: &Layout,
    rank: Rank,
    len: usize,
    of: impl Fn(f64) -> T,
) -> Vec<Vec<T>> {
    let share = layout.share(rank);
    let leaves = share.clone().map(|chunk| (0..len).map(|i| of(value(chunk, i))).collect()).collect();
    let add = |left: &mut Vec<T>, right: Vec<T>| left.iter_mut().zip(right).for_each(|(left, right)| *left += right);
    layout.tree().fold_chunks(share, leaves, add).into_iter().map(|(_, sum)| sum).collect()
}

/// Sums of both widths on one rank, as bits.
fn sums(mesh: &dyn Collective, lane: Lane, layout: &Layout, len: usize) -> (Vec<u32>, Vec<u64>) {
    let (singles, doubles) =
        (partials(layout, mesh.rank(), len, |v| v as f32), partials(layout, mesh.rank(), len, |v| v));
    let (mut single, mut double) = (vec![9f32; len], vec![9f64; len]);
    let parts: Vec<&[f32]> = singles.iter().map(Vec::as_slice).collect();
    mesh.reduce_f32(&op(lane, "singles", 0), layout, &parts, &mut single).unwrap();
    let parts: Vec<&[f64]> = doubles.iter().map(Vec::as_slice).collect();
    mesh.reduce_f64(&op(lane, "doubles", 1), layout, &parts, &mut double).unwrap();
    (single.into_iter().map(f32::to_bits).collect(), double.into_iter().map(f64::to_bits).collect())
}

const SPLITS: &[&[u32]] =
    &[&[7, 6], &[13, 0], &[0, 13], &[3, 5, 5], &[0, 12, 1], &[4, 4, 4, 1], &[0, 0, 13], &[1, 2, 3, 4, 3]];

#[test]
fn canonical_sums_have_the_bits_that_tcp_gives_however_chunks_are_spread() {
    for counts in SPLITS {
        let world = counts.len() as u32;
        let (ours, tcp) = (meshes(world, PATIENCE), tcp_meshes(world));
        let layout = Layout::canonical(13, counts);
        // Of one frame, of one segment, of borders that nothing divides, of none.
        for (lane, len) in [(Lane::Norm, 37), (Lane::Buckets, 20_011), (Lane::Norm, 999), (Lane::Buckets, 0)] {
            let expected = ranks(world, |rank| sums(&*tcp[rank as usize], lane, &layout, len));
            let found = ranks(world, |rank| sums(&*ours[rank as usize], lane, &layout, len));
            assert!(found == expected, "{counts:?}, {len} elements on the {lane} lane");
        }
    }
}

#[test]
fn sums_of_many_segments_have_the_bits_that_tcp_gives() {
    let (ours, tcp) = (meshes(2, PATIENCE), tcp_meshes(2));
    let layout = Layout::canonical(5, &[2, 3]);
    let len = 1_500_007;
    let expected = ranks(2, |rank| sums(&*tcp[rank as usize], Lane::Buckets, &layout, len));
    let found = ranks(2, |rank| sums(&*ours[rank as usize], Lane::Buckets, &layout, len));
    assert!(found == expected);
}

#[test]
fn in_any_order_sums_are_equal_on_all_ranks_and_to_rounding() {
    for world in [2u32, 3] {
        let (ours, tcp) = (meshes(world, PATIENCE), tcp_meshes(world));
        let layout = Layout::by_rank(world);
        for len in [10, 50_000, 2_200_000] {
            let sum = |mesh: &dyn Collective| {
                let input: Vec<f32> =
                    (0..len).map(|i| ((i * 31 + mesh.rank().0 as usize * 7) % 101) as f32 * 0.1).collect();
                let mut out = vec![0.0; len];
                mesh.reduce_f32(&op(Lane::Buckets, "fast", 0), &layout, &[&input], &mut out).unwrap();
                out
            };
            let found = ranks(world, |rank| sum(&*ours[rank as usize]));
            let expected = ranks(world, |rank| sum(&*tcp[rank as usize]));
            assert!(found.iter().all(|out| *out == found[0]));
            assert!(
                found[0].iter().zip(&expected[0]).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs()),
                "{world} ranks, {len}"
            );
        }
    }
}

#[test]
fn broadcasts_and_gathers_bring_what_tcp_brings() {
    for world in [1u32, 2, 3] {
        let meshes = meshes(world, PATIENCE);
        for len in [0usize, 1, 1000, 70_000, 9_000_001] {
            for root in 0..world {
                ranks(world, |rank| {
                    let text = |rank: u32| (0..len).map(move |i| (i as u32 * 7 + rank) as u8).collect::<Vec<u8>>();
                    let mut bytes = text(rank);
                    meshes[rank as usize].broadcast(&op(Lane::Buckets, "heal", root), Rank(root), &mut bytes).unwrap();
                    assert!(bytes == text(root), "{len} bytes from {root} of {world}");
                });
            }
        }
        for scale in [77, 77_777, 3_000_000] {
            let message = |rank: u32| vec![rank as u8 + 1; (rank as usize * scale) % (2 * scale)];
            ranks(world, |rank| {
                let mesh = &meshes[rank as usize];
                let all = mesh.all_gather(&op(Lane::Norm, "gather", 0), &message(rank)).unwrap();
                assert!(all == (0..world).map(message).collect::<Vec<_>>());
            });
        }
    }
}

#[test]
fn two_lanes_work_at_once_and_remember_their_last_64_calls() {
    let meshes = meshes(3, PATIENCE);
    let tcp = tcp_meshes(3);
    let layout = Layout::canonical(5, &[1, 1, 3]);
    let expected = ranks(3, |rank| sums(&*tcp[rank as usize], Lane::Norm, &layout, 30_000));
    ranks(6, |thread| {
        let mesh = &meshes[thread as usize / 2];
        if thread % 2 == 0 {
            for index in 0..100 {
                mesh.all_gather(&op(Lane::Norm, "norm", index), &[7]).unwrap();
            }
        } else {
            for _ in 0..3 {
                assert!(sums(&**mesh, Lane::Buckets, &layout, 30_000) == expected[thread as usize / 2]);
            }
        }
    });
    let ring = meshes[0].ring(Lane::Norm);
    assert_eq!(
        (ring.calls().count(), ring.last().unwrap().number),
        (64, 102),
        "after initialisation and first meeting"
    );
    assert!(ring.calls().all(|call| call.progress == Progress::Finished));
    assert_eq!(meshes[1].ring(Lane::Buckets).last().unwrap().to_string(), "doubles 1 of step 7 (number 8)");
}

#[test]
fn device_memory_is_summed_by_a_call_that_only_enqueues() {
    let meshes = meshes(2, PATIENCE);
    let reached = ranks(2, |rank| {
        let mesh = &meshes[rank as usize];
        let context = mesh.runtime().context();
        let (stream, done) = (Stream::new(context).unwrap(), Event::new(context).unwrap());
        let buffer = DeviceBuffer::new(context, 4 * 1000).unwrap();
        let numbers: Vec<u64> = (0..5)
            .map(|index| {
                let op = op(Lane::Buckets, "bucket", index);
                mesh.enqueue_all_reduce(&op, buffer.ptr(), (1000, DataType::F32), &stream).unwrap()
            })
            .collect();
        done.record(&stream).unwrap();
        mesh.wait(&op(Lane::Buckets, "bucket", 4), &done).unwrap();
        numbers.iter().for_each(|&number| mesh.reached(Lane::Buckets, number));
        assert!(stream.is_idle().unwrap());
        mesh.ring(Lane::Buckets).calls().all(|call| call.progress == Progress::Finished)
    });
    assert_eq!(reached, [true, true]);
}

#[test]
fn different_operations_are_named_on_both_sides() {
    type Kind = fn(&dyn Collective) -> Result<(), CollectiveError>;
    let kinds: [(Kind, &str); 3] = [
        (
            |mesh| {
                let name = if mesh.rank() == Rank(0) { "left" } else { "right" };
                mesh.all_gather(&op(Lane::Norm, name, 0), &[]).map(drop)
            },
            "another operation",
        ),
        (
            |mesh| {
                let len = 2000 + mesh.rank().0 as usize;
                mesh.reduce_f32(&op(Lane::Norm, "sum", 0), &Layout::by_rank(2), &[&vec![0.0; len]], &mut vec![0.0; len])
            },
            "the same but of another type, length, layout or root",
        ),
        (|mesh| mesh.broadcast(&op(Lane::Norm, "heal", 0), mesh.rank(), &mut [1; 10]), "of another type"),
    ];
    for (kind, what) in kinds {
        let meshes = meshes(2, PATIENCE);
        for error in ranks(2, |rank| kind(&*meshes[rank as usize]).unwrap_err()) {
            // Whoever hears of it first from the other has it as a mismatch too.
            assert!(matches!(error, CollectiveError::Mismatch { .. }), "{error}");
            assert!(error.to_string().contains(what) || error.to_string().contains("says rank"), "{error}");
        }
    }
}

#[test]
fn an_abort_from_another_thread_ends_a_wait_and_everything_later() {
    let meshes = meshes(2, PATIENCE);
    let lonely = Arc::clone(&meshes[0]);
    let waiting = std::thread::spawn(move || lonely.all_gather(&op(Lane::Buckets, "lonely", 0), &[1]));
    while meshes[0].ring(Lane::Buckets).last().is_none_or(|call| call.name != "lonely") {
        std::thread::yield_now();
    }
    meshes[0].abort();
    assert_eq!(waiting.join().unwrap(), Err(CollectiveError::Aborted));
    assert_eq!(meshes[0].barrier(&op(Lane::Norm, "after", 0)), Err(CollectiveError::Aborted));
    let error = meshes[1].barrier(&op(Lane::Norm, "after", 0)).unwrap_err();
    assert_eq!(error.culprit(), Some(Rank(0)), "{error}");
}
