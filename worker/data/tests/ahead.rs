//! Reading ahead: what comes out is what the loader gives, errors at their own samples, and nobody waits in vain.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};

use common::{jpeg, put, recipe};
use lockstep_data::{Delivered, Loader, Part, ReadAhead, Wanted};
use lockstep_proto::ids::{Epoch, SampleRange};

fn wanted(start: u64) -> Wanted {
    let (batch, positions) = (SampleRange { start: 0, len: 24 }, SampleRange { start, len: 4 });
    Wanted::Train(Part { epoch: Epoch(1), batch, positions })
}

/// A loader of 24 images, of which number 9 is broken if the recipe does not skip.
fn loader(root: &std::path::Path, skips: bool) -> Loader {
    for number in 0..24 {
        put(root, &format!("train/a/{number:02}.JPEG"), &jpeg(40 + number, 50));
    }
    put(root, "train/a/09.JPEG", b"hello");
    put(root, "val/a/0.JPEG", &jpeg(40, 40));
    let mut recipe = recipe(root);
    if skips {
        recipe.data.image.bad = lockstep_proto::recipe::BadImage::Skip;
    }
    Loader::new(lockstep_data::open(&recipe.data, 0).unwrap(), &recipe)
}

#[test]
fn what_was_read_ahead_is_what_the_loader_gives() {
    let dir = tempfile::tempdir().unwrap();
    let loader = loader(dir.path(), true);
    let all: Vec<Wanted> =
        (0..6).map(|i| wanted(4 * i)).chain([Wanted::Test(SampleRange { start: 0, len: 1 })]).collect();
    let plain: Vec<Delivered> = all
        .iter()
        .map(|wanted| {
            let mut into = Delivered::default();
            loader.deliver(*wanted, &mut into).unwrap();
            into
        })
        .collect();
    assert_eq!(plain.iter().map(|rows| rows.skipped.len()).sum::<usize>(), 1);
    assert_eq!(plain.iter().map(|rows| rows.labels.len()).sum::<usize>(), 24);
    for num_threads in [1, 3] {
        let ahead = ReadAhead::start(&loader, num_threads).unwrap();
        let mut into = Delivered::default();
        for _ in 0..3 {
            ahead.expect(all.iter().take(5).copied());
            ahead.expect(all.iter().take(3).copied()); // known already
            for (wanted, plain) in all.iter().zip(&plain) {
                ahead.take(*wanted, &mut into).unwrap();
                assert_eq!(into, *plain, "{wanted:?} with {num_threads} threads");
            }
        }
    }
}

#[test]
fn an_error_comes_out_where_its_sample_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let loader = loader(dir.path(), false);
    let ahead = ReadAhead::start(&loader, 2).unwrap();
    ahead.expect((0..6).map(|i| wanted(4 * i)));
    let mut into = Delivered::default();
    let results: Vec<_> = (0..6).map(|i| ahead.take(wanted(4 * i), &mut into)).collect();
    let failed: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    assert_eq!(failed.len(), 1);
    assert!(failed[0].to_string().contains("train/a/09.JPEG: not a JPEG or PNG but text"), "{}", failed[0]);
}

/// The only thread stands still inside the first batch; the second is loaded by whoever takes it, the first is waited for.
#[test]
fn what_no_thread_has_begun_is_loaded_by_whoever_takes_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut loader = loader(dir.path(), true);
    let gate = Arc::new(Barrier::new(2));
    let heard = Arc::new(AtomicU64::new(0));
    loader.on_sample({
        let (gate, heard) = (Arc::clone(&gate), Arc::clone(&heard));
        Arc::new(move || {
            if std::thread::current().name() == Some("load-0") && heard.fetch_add(1, Ordering::SeqCst) == 0 {
                gate.wait();
                gate.wait();
            }
        })
    });
    let ahead = ReadAhead::start(&loader, 1).unwrap();
    ahead.expect([wanted(0), wanted(4)]);
    gate.wait();
    let mut into = Delivered::default();
    assert!(!ahead.take(wanted(4), &mut into).unwrap(), "nobody had begun");
    gate.wait();
    ahead.take(wanted(0), &mut into).unwrap();
    assert_eq!(heard.load(Ordering::SeqCst), 4, "the thread loaded the first batch and nothing else");
}

#[test]
fn what_is_forgotten_is_loaded_anew() {
    let dir = tempfile::tempdir().unwrap();
    let mut loader = loader(dir.path(), true);
    let gate = Arc::new(Barrier::new(2));
    let first = AtomicU64::new(0);
    loader.on_sample({
        let gate = Arc::clone(&gate);
        Arc::new(move || {
            if first.fetch_add(1, Ordering::SeqCst) == 0 {
                gate.wait();
                gate.wait();
            }
        })
    });
    let ahead = ReadAhead::start(&loader, 1).unwrap();
    ahead.expect([wanted(0)]);
    gate.wait();
    ahead.forget(); // while a thread is at it
    let mut into = Delivered::default();
    assert!(!ahead.take(wanted(0), &mut into).unwrap());
    gate.wait();
}
