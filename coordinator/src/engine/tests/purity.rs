//! The engine reads no clock and does no I/O.

#[test]
fn the_engine_reads_no_clock_and_does_no_io() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/engine");
    let mut num_files = 0;
    for entry in std::fs::read_dir(&folder).expect("the engine's folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a source file");
        for banned in
            ["Instant", "SystemTime", "std::fs", "std::net", "std::env", "std::thread", "tokio", "async ", "rand::"]
        {
            assert!(!text.contains(banned), "{} mentions {banned}", path.display());
        }
        num_files += 1;
    }
    assert!(num_files > 10, "found {num_files} files");
}
