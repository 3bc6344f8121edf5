//! What can be asked of devices where there is none: everything is an error that says so, and nothing crashes.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test may panic")]

use lockstep_torch::{composed, device};
use tch::{Device, Kind, Tensor};

#[test]
fn without_cuda_everything_says_so() {
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(device::open(&[empty.path().to_owned()]).unwrap(), None);
    std::fs::write(empty.path().join(device::LIBRARY), b"no library").unwrap();
    let error = device::open(&[empty.path().to_owned()]).unwrap_err().to_string();
    assert!(error.contains(device::LIBRARY), "{error}");
    let error = device::Stream::new(0, false).unwrap_err().to_string();
    assert!(error.to_lowercase().contains("cuda"), "{error}");
    let plain = Tensor::zeros([4], (Kind::Float, Device::Cpu));
    let error = device::as_seen_by(&plain, 0).unwrap_err().to_string();
    assert!(error.contains("pinned"), "{error}");
    device::allow_tf32(false).unwrap();
    device::keep_bits(true).unwrap();
}

#[test]
fn memory_is_that_of_dense_tensors() {
    let x = Tensor::zeros([2, 3], (Kind::Double, Device::Cpu));
    let (address, bytes) = device::memory(&x).unwrap();
    assert_eq!((address, bytes), (x.data_ptr() as u64, 48));
    assert!(device::memory(&x.narrow(1, 0, 2)).unwrap_err().to_string().contains("holes"));
}

#[test]
fn composed_passes_equal_the_fused_ones() {
    tch::manual_seed(3);
    let nhwc = |x: Tensor| x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
    for (kind, bound) in [(Kind::Double, 1e-12), (Kind::Float, 2e-5)] {
        for (n, c) in [(6, 16), (3, 5), (0, 4), (1, 37)] {
            let x = nhwc((Tensor::randn([n, c, 5, 3], (Kind::Double, Device::Cpu)) * 2.0 + 100.0).to_kind(kind));
            let mut fused = vec![0.0; 2 * c as usize];
            lockstep_torch::stats(&x, &mut fused).unwrap();
            let mut message = Tensor::zeros([2 * c], (Kind::Double, Device::Cpu));
            composed::stats(&x, &mut message).unwrap();
            let off = (&message - Tensor::from_slice(&fused)).abs() / Tensor::from_slice(&fused).abs().clamp_min(1.0);
            assert!(n == 0 || off.max().double_value(&[]) <= bound, "{kind:?} {n} {c}: {off}");
            // The variance survives a mean fifty times as large.
            let count = (n * 15) as f64;
            let statistics = composed::Statistics::from_sums(&message, count, 1e-5, kind).unwrap();
            let exact = x.to_kind(Kind::Double).var_dim([0i64, 2, 3].as_slice(), false, false);
            let off = (&statistics.variance - exact).abs().max().double_value(&[]);
            assert!(n == 0 || off <= 1e-4, "{kind:?} {n} {c}: variance off by {off}");
        }
    }
}
