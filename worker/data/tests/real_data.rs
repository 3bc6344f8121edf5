//! With `LOCKSTEP_TEST_DATA` set to a folder that holds `cifar-10-batches-bin`: the real files.

use std::path::PathBuf;
use std::time::Instant;

use lockstep_data::{DataError, Loader, Split, expected_digest};
use lockstep_proto::ids::{Epoch, SampleRange};
use lockstep_proto::recipe::{DataKind, Recipe};

fn cifar10() -> Option<Recipe> {
    let Some(folder) = std::env::var_os("LOCKSTEP_TEST_DATA") else {
        assert!(std::env::var_os("LOCKSTEP_TEST_REQUIRE").is_none(), "nothing may skip: set LOCKSTEP_TEST_DATA");
        println!("skipped: LOCKSTEP_TEST_DATA is not set");
        return None;
    };
    let mut recipe = Recipe::default();
    recipe.data.kind = DataKind::Cifar10;
    recipe.data.path = PathBuf::from(folder).join("cifar-10-batches-bin").to_string_lossy().into_owned();
    Some(recipe)
}

#[test]
fn real_cifar_10_is_whole_balanced_normalised_and_audited() -> Result<(), DataError> {
    let Some(recipe) = cifar10() else { return Ok(()) };
    let dataset = lockstep_data::open(&recipe.data, 0)?;
    let identity = dataset.identity();
    assert_eq!((identity.num_train, identity.num_test, identity.num_classes), (50_000, 10_000, 10));
    for (split, each) in [(Split::Train, 5_000), (Split::Test, 1_000)] {
        let mut counts = [0; 10];
        (0..each * 10).for_each(|sample| counts[dataset.label(split, sample) as usize] += 1);
        assert_eq!(counts, [each; 10]);
    }

    // Mean image gone; spread of all values 1, less what the mean image took with it.
    let (mut sum, mut squares, mut image) = (0.0, 0.0, vec![0.0_f32; 3072]);
    for sample in 0..50_000 {
        dataset.image(Split::Train, sample, None, &mut image).unwrap();
        sum += image.iter().copied().map(f64::from).sum::<f64>();
        squares += image.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>();
    }
    let count = 50_000.0 * 3072.0;
    assert!((sum / count).abs() < 1e-5, "mean {}", sum / count);
    assert!((0.9..1.0).contains(&(squares / count)), "variance {}", squares / count);

    let loader = Loader::with_fault(dataset.clone(), &recipe, None);
    let (mut images, mut labels) = (vec![0.0; 128 * 3072], vec![0; 128]);
    let (mut digest, started) = (0_u64, Instant::now());
    for start in (0..50_000).step_by(128) {
        let len = (50_000 - start).min(128);
        let (images, labels) = (&mut images[..len as usize * 3072], &mut labels[..len as usize]);
        let part = loader.load_train(Epoch(1), SampleRange { start, len }, images, labels).unwrap();
        digest = digest.wrapping_add(part);
    }
    println!("loaded {:.0} images a second", 50_000.0 / started.elapsed().as_secs_f64());
    let whole = SampleRange { start: 0, len: 50_000 };
    assert_eq!(digest, expected_digest(dataset.as_ref(), &recipe, Epoch(1), whole));
    Ok(())
}
