//! What is found, what is missing, and the real NCCL, which needs no GPU to be opened.
#![allow(clippy::unwrap_used)] // a panic is how tests fail

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lockstep_nccl::{Communicator, Libraries, Nccl, NcclError, Place, Runtime};
use lockstep_proto::exit::ExitCode;

fn functions(list: &str) -> Vec<&str> {
    list.lines().filter(|line| !line.starts_with('#')).collect()
}

#[test]
fn every_function_that_is_bound_is_in_nccl_2_18_and_in_the_newest() {
    assert!(Nccl::SYMBOLS.len() >= 16);
    for (version, list) in
        [("2.18.3", include_str!("symbols/2.18.3.txt")), ("2.32.3", include_str!("symbols/2.32.3.txt"))]
    {
        let list = functions(list);
        assert!(list.len() > 20, "a list of {} functions of {version}", list.len());
        for symbol in Nccl::SYMBOLS {
            assert!(list.contains(symbol), "{symbol} is not in NCCL {version}");
        }
    }
}

#[test]
fn what_is_missing_is_named_and_ends_with_78() {
    let absent = Libraries { nccl: Some("/no/such/libnccl.so.2".into()), ..common::double() };
    let error = Runtime::open(&absent, 0).unwrap_err();
    assert!(error.to_string().starts_with("no libnccl.so.2: tried /no/such/libnccl.so.2 ("), "{error}");
    assert_eq!(error.exit_code(), ExitCode::Config);

    let no_driver = Libraries { driver: Some("/no/such/libcuda.so.1".into()), ..common::double() };
    let error = Runtime::open(&no_driver, 0).unwrap_err();
    assert!(matches!(error, NcclError::NoDriver { .. }), "{error}");
    assert!(error.to_string().ends_with("or use --devices cpu"), "{error}");
    assert_eq!(error.exit_code(), ExitCode::Config);

    // A library, but another one.
    let wrong = Libraries { nccl: Some(lockstep_nccl_double::driver()), ..common::double() };
    match Runtime::open(&wrong, 0).unwrap_err() {
        NcclError::Symbol { symbol, .. } => assert_eq!(symbol, Nccl::SYMBOLS[0]),
        other => panic!("{other}"),
    }
    let error = Runtime::open(&common::double(), 99).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Config, "{error}");
}

#[test]
fn the_double_says_that_it_is_one() {
    let nccl = Nccl::open(&lockstep_nccl_double::nccl()).unwrap();
    assert_eq!(nccl.version_text(), "2.18.99");
    assert_ne!(nccl.unique_id().unwrap(), nccl.unique_id().unwrap());
}

/// The real library, where it has been fetched (`cargo xtask nccl`).
fn real() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = || set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let cache = set("LOCKSTEP_CACHE").or_else(|| base().map(|base| base.join("lockstep")))?;
    let path = cache.join("nccl-2.28.9/libnccl.so.2");
    if path.is_file() {
        return Some(path);
    }
    assert!(set("LOCKSTEP_TEST_REQUIRE").is_none(), "{} is not there: cargo xtask nccl", path.display());
    eprintln!("skipped: {} is not there: cargo xtask nccl", path.display());
    None
}

#[test]
fn the_real_nccl_opens_and_without_a_driver_refuses_with_78() {
    let Some(path) = real() else { return };
    let nccl = Arc::new(Nccl::open(&path).unwrap());
    assert_eq!((nccl.version(), nccl.version_text().as_str()), (22809, "2.28.9"));
    let id = nccl.unique_id().unwrap();
    assert_ne!(id.0, [0; 128]);
    if Path::new("/dev/nvidiactl").exists() {
        return; // with a driver the rest is another test's
    }
    let place = Place { rank: 0, world: 1 };
    let limits = (None, Duration::from_secs(10));
    let error = Communicator::begin(&nccl, &Arc::default(), &id, place, limits)
        .and_then(|comm| comm.wait_ready("ncclCommInitRankConfig"))
        .unwrap_err();
    assert!(error.to_string().starts_with("ncclCommInitRankConfig failed: unhandled cuda error"), "{error}");
    assert_eq!((error.exit_code(), error.is_passing()), (ExitCode::Config, false));

    let libraries = Libraries { nccl: Some(path), driver: None };
    let error = Runtime::open(&libraries, 0).unwrap_err();
    assert!(matches!(error, NcclError::NoDriver { .. }), "{error}");
    assert_eq!(error.exit_code(), ExitCode::Config);
}
