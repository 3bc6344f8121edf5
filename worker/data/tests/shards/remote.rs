//! Shards behind a web server: ranges, the cache, and everything that goes wrong there.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use lockstep_data::shards::{INDEX, Shards};
use lockstep_data::verify::{Kind, verify};
use lockstep_data::{Dataset, Loader, Split, expected_digest};
use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Epoch, SampleRange};
use lockstep_proto::recipe::{Order, Recipe};

use super::server::{Fault, Server};
use super::{folder, options, packed, recipe, refused, seen};
use crate::common::put;

/// A folder, its shards in `set`, a server of them, and a recipe that reads from it without a cache.
fn served(dir: &Path) -> (Server, Recipe, Recipe) {
    folder(&dir.join("folder"));
    packed(&dir.join("folder"), &dir.join("www/set"), &options());
    let server = Server::start(&dir.join("www"));
    let mut remote = recipe(&server.url("set"), &dir.join("cache"));
    remote.data.cache_bytes = 0;
    let local = recipe(&dir.join("www/set").to_string_lossy(), &dir.join("cache"));
    (server, remote, local)
}

fn image(set: &Shards, sample: u64) -> Result<(), lockstep_data::DataError> {
    set.image(Split::Train, sample, None, &mut vec![0.0; 32 * 32 * 3])
}

#[test]
fn shards_behind_a_web_server_are_those_of_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (server, remote, local) = served(dir.path());
    let (far, near) = (Shards::open(&remote.data).unwrap(), Shards::open(&local.data).unwrap());
    assert_eq!(far.identity(), near.identity());
    server.requests();
    assert_eq!(seen(&far), seen(&near));
    let requests = server.requests();
    assert_eq!(requests.len(), 14, "one request a sample");
    for ((path, range), sample) in requests.iter().zip(0..10) {
        let (shard, sample) = near.sample(Split::Train, sample);
        assert_eq!(path, &format!("/set/{}", shard.name));
        assert_eq!(range, &format!("bytes={}-{}", sample.offset, sample.offset + sample.length - 1));
    }
    // an epoch through the loader, and what the audit expects of it
    let whole = SampleRange { start: 0, len: 10 };
    let digest = |recipe: &Recipe| {
        let loader = Loader::new(lockstep_data::open(&recipe.data, 0).unwrap(), recipe);
        let (mut images, mut labels) = (vec![0.0; 10 * 32 * 32 * 3], vec![0; 10]);
        (loader.load_train(Epoch(2), whole, &mut images, &mut labels).unwrap(), images, labels)
    };
    let found = digest(&remote);
    assert_eq!(found, digest(&local));
    assert_eq!(found.0, expected_digest(&far, &remote, Epoch(2), whole));
}

#[test]
fn the_cache_asks_for_each_block_once_and_survives_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let (server, mut recipe, local) = served(dir.path());
    recipe.data.cache_bytes = 100 << 20;
    let set = Shards::open(&recipe.data).unwrap();
    let expected = seen(&Shards::open(&local.data).unwrap());
    server.requests();
    assert_eq!(seen(&set), expected);
    let num_shards = set.index().train.len() + set.index().val.len();
    assert_eq!(server.requests().len(), num_shards, "each of these shards is a block");
    assert_eq!(seen(&set), expected);
    let again = Shards::open(&recipe.data).unwrap();
    assert_eq!(seen(&again), expected);
    assert!(server.requests().iter().all(|(path, _)| path.ends_with(INDEX)));
    // a block that was damaged on disk is fetched again
    for entry in super::files(&dir.path().join("cache")) {
        let path = dir.path().join("cache").join(entry.0);
        let mut bytes = entry.1;
        bytes.iter_mut().for_each(|byte| *byte ^= 0x55);
        fs::write(path, bytes).unwrap();
    }
    assert_eq!(seen(&again), expected);
    assert!(server.requests().len() >= num_shards);
}

#[test]
fn a_set_larger_than_the_cache_is_kept_only_if_it_is_read_in_stretches() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, mut recipe, _) = served(dir.path());
    recipe.data.cache_bytes = 60 << 10;
    let kept = || super::files(&dir.path().join("cache")).iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
    fs::create_dir_all(dir.path().join("cache")).unwrap();
    let set = Shards::open(&recipe.data).unwrap();
    assert!(set.index().bytes() > recipe.data.cache_bytes);
    let expected = seen(&set);
    assert_eq!(kept(), 0);
    recipe.data.order = Order::Blocks;
    recipe.check().unwrap();
    assert_eq!(seen(&Shards::open(&recipe.data).unwrap()), expected);
    assert!((1..=60 << 10).contains(&kept()), "{}", kept());
}

#[test]
fn a_server_that_answers_with_errors_and_then_works_is_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let (server, recipe, local) = served(dir.path());
    let set = Shards::open(&recipe.data).unwrap();
    server.next([
        Fault::Status(500),
        Fault::Status(500),
        Fault::Cut,
        Fault::Status(503),
        Fault::Cut,
        Fault::Status(429),
    ]);
    assert_eq!(seen(&set), seen(&Shards::open(&local.data).unwrap()));
    assert_eq!(server.num_faults(), 0);
}

/// 200 ms for an answer, and every 20th is an error: threads wait side by side, and nothing is lost.
#[test]
fn a_slow_server_with_errors_costs_latency_once_for_all_threads() {
    let dir = tempfile::tempdir().unwrap();
    let (server, recipe, local) = served(dir.path());
    let (far, near) = (Shards::open(&recipe.data).unwrap(), Shards::open(&local.data).unwrap());
    let late = Fault::Late(Duration::from_millis(200));
    server.always(Some(late));
    server.next((0..160).map(|number| if number % 20 == 7 { Fault::Status(503) } else { late }));
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let (mut here, mut there) = (Vec::new(), Vec::new());
                for sample in 0..10 {
                    far.read(Split::Train, sample, &mut here).unwrap();
                    near.read(Split::Train, sample, &mut there).unwrap();
                    assert!(here == there);
                }
            });
        }
    });
    assert_eq!(server.num_faults(), 0);
    let one_after_another = Duration::from_millis(200) * 160;
    assert!(begin.elapsed() < one_after_another / 3, "{:?}", begin.elapsed());
}

#[test]
fn a_server_that_never_works_is_named_with_the_shard_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let (server, mut recipe, _) = served(dir.path());
    recipe.data.read_timeout_s = 1.0;
    let set = Shards::open(&recipe.data).unwrap();
    for (fault, what) in [(Fault::Status(500), "500"), (Fault::Cut, ""), (Fault::Hang, "")] {
        server.always(Some(fault));
        let begin = Instant::now();
        let error = image(&set, 0).unwrap_err();
        assert!(begin.elapsed() < Duration::from_secs(10), "{fault:?} took {:?}", begin.elapsed());
        assert_eq!(error.exit_code(), ExitCode::Unavailable);
        let text = error.to_string();
        let start = format!("{}/train/000000.tar: not read within 1 s: ", server.url("set"));
        assert!(text.starts_with(&start) && text.contains(what), "{text}");
        assert!(text.ends_with("data.read_timeout_s gives it longer"), "{text}");
    }
    server.always(None);
    image(&set, 0).unwrap();
}

#[test]
fn a_shard_that_is_missing_changed_or_refused_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (server, recipe, _) = served(dir.path());
    let set = Shards::open(&recipe.data).unwrap();
    let first = dir.path().join("www/set/train/000000.tar");
    let whole = fs::read(&first).unwrap();
    let said = |code: ExitCode| {
        let error = image(&set, 0).unwrap_err();
        assert_eq!(error.exit_code(), code, "{error}");
        let text = error.to_string();
        text.strip_prefix(&format!("{}/train/000000.tar: ", server.url("set"))).unwrap_or(&text).to_owned()
    };
    fs::write(&first, [&whole[..], &[0; 512]].concat()).unwrap();
    let text = said(ExitCode::Data);
    assert!(
        text.starts_with(&format!("it has {} bytes, not {}: it changed", whole.len() + 512, whole.len())),
        "{text}"
    );
    fs::write(&first, &whole[..100]).unwrap(); // too short for the range
    let text = said(ExitCode::Data);
    assert!(text.starts_with(&format!("it has 100 bytes, not {}", whole.len())), "{text}");
    let mut other = whole.clone();
    other[700] ^= 1;
    fs::write(&first, other).unwrap();
    assert!(said(ExitCode::Data).starts_with("other bytes at offset 512 ("));
    fs::remove_file(&first).unwrap();
    assert!(said(ExitCode::NoInput).starts_with("no such shard, though lockstep-index.json lists it"));
    fs::write(&first, &whole).unwrap();
    server.always(Some(Fault::Status(403)));
    assert!(said(ExitCode::NoPermission).starts_with("access refused: "));
    server.always(Some(Fault::Whole));
    assert!(said(ExitCode::Unavailable).starts_with("the server does not answer range requests"));
    server.always(None);
    image(&set, 0).unwrap();
}

#[test]
fn without_an_index_headers_are_read_in_ranges_and_the_index_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "www/set/train/0.tar", super::foreign::TRAIN);
    put(dir.path(), "www/set/val/0.tar", super::foreign::VAL);
    let server = Server::start(&dir.path().join("www"));
    let recipe = recipe(&server.url("set"), &dir.path().join("cache"));
    let far = Shards::open(&recipe.data).unwrap();
    let near = Shards::open(&super::recipe(&dir.path().join("www/set").to_string_lossy(), dir.path()).data).unwrap();
    assert_eq!(far.index(), near.index());
    assert_eq!(far.identity(), near.identity());
    assert_eq!(seen(&far), seen(&near));
    fs::remove_file(dir.path().join("www/set").join(INDEX)).unwrap(); // the one that `near` has kept
    server.requests();
    assert_eq!(Shards::open(&recipe.data).unwrap().index(), near.index());
    let ranges = server.requests().into_iter().filter(|(_, range)| !range.is_empty()).collect::<Vec<_>>();
    assert_eq!(ranges, [], "no header is read again");
    // a server that shows no pages cannot be asked which shards there are
    put(dir.path(), "www/no-pages", b"");
    let (code, text) = refused(&recipe);
    assert_eq!(code, ExitCode::NoInput);
    assert!(text.starts_with(&format!("{}: no shards: ", server.url("set"))), "{text}");
    assert!(text.contains("must either have the index or show its folders as pages of links"), "{text}");
}

#[test]
fn verify_reads_from_a_server_too() {
    let dir = tempfile::tempdir().unwrap();
    let (server, ..) = served(dir.path());
    let report = verify(Path::new(&server.url("set")), &|_, _| ()).unwrap();
    assert_eq!((report.num_errors(), report.num_train, report.num_test), (0, 10, 4));
    fs::remove_file(dir.path().join("www/set/val/000000.tar")).unwrap();
    let report = verify(Path::new(&server.url("set")), &|_, _| ()).unwrap();
    let found: Vec<_> = report.findings.iter().filter(|finding| finding.kind == Kind::Shard).collect();
    assert_eq!(found.len(), 1);
    assert!(found[0].to_string().contains("/set/val/000000.tar: not there"), "{}", found[0]);
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut recipe = recipe("http://127.0.0.1:1/set", dir.path());
    recipe.data.read_timeout_s = 0.5;
    let (code, text) = refused(&recipe);
    assert_eq!(code, ExitCode::Unavailable);
    assert!(text.starts_with("http://127.0.0.1:1/set/lockstep-index.json: not read within 0.5 s: "), "{text}");
}

#[test]
fn a_set_may_be_opened_read_and_dropped_by_a_task_of_a_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, recipe, _) = served(dir.path());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let set = Shards::open(&recipe.data).unwrap();
        image(&set, 3).unwrap();
    });
}
